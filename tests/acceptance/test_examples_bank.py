"""The bank: a deposit observed by two services that know nothing of each other."""

from __future__ import annotations

import os

from acceptance.examples import ROOT, Outcome, run
from servers import PostgreSQL


def assert_told(story: Outcome) -> None:
    assert story.exit_code == 0, story.output
    assert "20 deposits: notifications observes them" in story.output
    assert "40 deposits: both observe them, and neither knows of the other" in story.output
    assert "20 deposits on the web, each in one transaction with its event" in story.output
    assert "the web server is killed: a deposit is committed, and its event has" in story.output
    assert "the relay of its outbox sends it" in story.output
    assert "notifications: 101, for each user in the order of the deposits" in story.output
    assert "transactions: 81, each booked once; total 387.60" in story.output
    assert "81 bookings downstream, each once" in story.output


def test_the_story_of_the_bank_on_nothing_but_sqlite() -> None:
    assert_told(run("examples.bank"))


def test_the_story_of_the_bank_on_rabbitmq_redis_and_postgresql(
    amqp_url: str, redis_url: str, postgres: PostgreSQL
) -> None:
    databases = {
        name: postgres.fresh_url().replace("postgresql://", "postgresql+psycopg://")
        for name in ("FINANCE_DATABASE", "TRANSACTIONS_DATABASE")
    }
    assert_told(run("examples.bank", broker=amqp_url, dedup=redis_url, variables=databases))

    again = run("examples.bank", broker=amqp_url, dedup=redis_url, variables=databases)
    assert again.exit_code == 1
    assert "the story begins with empty databases" in again.output


def test_the_migrations_of_finance_are_those_of_its_models() -> None:
    library = ROOT / "examples" / "bank_events" / "v2"
    variables = {
        "DJANGO_SETTINGS_MODULE": "examples.bank.finance.settings",
        "PYTHONPATH": os.pathsep.join([str(library), str(ROOT)]),
        "FINANCE_DATABASE": "sqlite:///:memory:",
    }
    checked = run("django", "makemigrations", "--check", "--dry-run", variables=variables)

    assert checked.exit_code == 0, checked.output

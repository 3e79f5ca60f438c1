"""The bank: a deposit observed by two services that know nothing of each other."""

from __future__ import annotations

import os
import re
import sqlite3
from contextlib import closing
from pathlib import Path

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


FINANCE = {
    "DJANGO_SETTINGS_MODULE": "examples.bank.finance.settings",
    "PYTHONPATH": os.pathsep.join([str(ROOT / "examples" / "bank_events" / "v2"), str(ROOT)]),
}


def test_the_story_refuses_a_bank_that_has_deposits(tmp_path: Path) -> None:
    file = tmp_path / "finance.db"
    # It leaves its folder behind, as after anything that went wrong.
    variables = {**FINANCE, "FINANCE_DATABASE": f"sqlite:///{file}", "TMPDIR": str(tmp_path)}
    assert run("django", "migrate", variables=variables).exit_code == 0
    with closing(sqlite3.connect(file)) as db, db:
        db.execute("INSERT INTO finance_deposit (user_id, amount, note) VALUES ('alice', 5, '')")

    story = run("examples.bank", variables=variables)
    assert story.exit_code == 1
    assert "the story begins with empty databases" in story.output


def test_the_migrations_of_finance_are_those_of_its_models() -> None:
    variables = {**FINANCE, "FINANCE_DATABASE": "sqlite:///:memory:"}
    checked = run("django", "makemigrations", "--check", "--dry-run", variables=variables)

    assert checked.exit_code == 0, checked.output


def test_by_hand_no_service_begins_in_the_background_before_its_queues_are_there() -> None:
    """Whoever pastes it publishes before the start is through, and would miss that."""
    page = (ROOT / "examples" / "bank" / "README.md").read_text()
    declared: set[str] = set()
    for command, app in re.findall(r"qworker (topology|start) --app ([\w.]+)", page):
        if command == "topology":
            declared.add(app)
        else:
            assert app in declared

    assert len(declared) == 4

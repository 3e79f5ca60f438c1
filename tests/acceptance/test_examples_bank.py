"""The bank: a deposit observed by two services that know nothing of each other."""

from __future__ import annotations

from acceptance.examples import Outcome, run


def assert_told(story: Outcome) -> None:
    assert story.exit_code == 0, story.output
    assert "20 deposits: notifications observes them" in story.output
    assert "40 deposits: both observe them, and neither knows of the other" in story.output
    assert "notifications: 60, for each user in the order of the deposits" in story.output
    assert "transactions: 40, each booked once; total 103.80" in story.output


def test_the_story_of_the_bank_on_nothing_but_sqlite() -> None:
    assert_told(run("examples.bank"))


def test_the_story_of_the_bank_on_rabbitmq_and_redis(amqp_url: str, redis_url: str) -> None:
    assert_told(run("examples.bank", broker=amqp_url, dedup=redis_url))

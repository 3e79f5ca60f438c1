"""The story that a dead letter tells, and when it must not go round again."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from worker.transport.embedded.dead_letters import bury_properties, goes_round

NOW = 1_700_000_000.9


def die(properties: dict[str, Any], queue: str, reason: str = "expired") -> dict[str, Any]:
    return bury_properties(properties, queue, reason, "ex", "key", NOW)


def test_the_first_death() -> None:
    alive = {"message_id": "m", "expiration": "50", "application_headers": {"own": 1}}
    dead = die(alive, "q")
    assert dead == {
        "message_id": "m",
        "application_headers": {
            "own": 1,
            "x-death": [
                {
                    "count": 1,
                    "exchange": "ex",
                    "original-expiration": "50",
                    "queue": "q",
                    "reason": "expired",
                    "routing-keys": ["key"],
                    "time": datetime(2023, 11, 14, 22, 13, 20),  # noqa: DTZ001 - as py-amqp has it
                }
            ],
            "x-first-death-exchange": "ex",
            "x-first-death-queue": "q",
            "x-first-death-reason": "expired",
        },
    }
    assert alive == {"message_id": "m", "expiration": "50", "application_headers": {"own": 1}}


def test_the_newest_death_stands_first_and_the_same_one_counts() -> None:
    dead = die(die(die({}, "a"), "b", "rejected"), "a")
    headers = dead["application_headers"]
    assert [(d["queue"], d["reason"], d["count"]) for d in headers["x-death"]] == [
        ("a", "expired", 2),
        ("b", "rejected", 1),
    ]
    assert headers["x-first-death-queue"] == "a"


@pytest.mark.parametrize("junk", ["text", 7, None, [1, "x"], [{"queue": "a", "count": "many"}]])
def test_a_publisher_s_own_x_death_does_no_harm(junk: object) -> None:
    dead = die({"application_headers": {"x-death": junk}}, "a")
    assert dead["application_headers"]["x-death"][0]["queue"] == "a"


def test_an_unrejected_circle_is_seen() -> None:
    once = die({}, "wait")
    assert goes_round({}, "wait", "wait")
    assert not goes_round({}, "wait", "work")
    assert not goes_round(once, "work", "dlq")
    assert goes_round(once, "work", "wait"), "wait -> work -> wait, and nobody rejected it"


def test_a_rejection_breaks_the_circle() -> None:
    story = die(die({}, "wait"), "work", "rejected")
    assert not goes_round(story, "other", "wait")

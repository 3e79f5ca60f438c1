"""A service whose ids are in PostgreSQL, as its operator meets it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from acceptance.conftest import Place
from acceptance.desk import PATIENCE, Desk, step
from servers import PostgreSQL
from waiting import until


@pytest.fixture
def place(embedded: Place, postgres_url: str) -> Place:
    """The messages in one SQLite file."""
    return replace(embedded, dedup=postgres_url)


@pytest.fixture
def nearby(tmp_path: Path, place: Place) -> Iterator[Desk]:
    """A shell where no service runs."""
    with closing(Desk(tmp_path, place, "patient")) as desk:
        yield desk


def test_parked_messages_return_in_order_and_their_key_is_free(patient: Desk) -> None:
    status = patient.run("status", "--service", "patient", "--json").json
    assert status["parked"] == {"keys": 1, "first": ["k"]}
    patient.mend()

    result = patient.dlq("replay", "--key", "k")

    assert result.out.endswith("'k' is free\n")
    patient.publish(step("k", 4))
    until(lambda: "k-4" in patient.effects("count"), PATIENCE, "the key is handled as before")
    assert patient.of_k() == ["k-0", "k-1", "k-2", "k-3", "k-4"]


def test_the_check_tells_what_it_is_and_what_makes_it_weaker(nearby: Desk) -> None:
    told = nearby.run("check", "--json").json["checks"]
    texts = {(each["level"], each["text"]) for each in told if each["check"] == "dedup"}
    assert {level for level, _ in texts} == {"ok", "warning"}
    assert any("postgresql: ids are known to all machines" in text for _, text in texts)
    assert any("fsync is off" in text for _, text in texts)  # servers of tests are killed, no more


def test_a_database_that_is_not_there_is_a_mistake(nearby: Desk, place: Place) -> None:
    url = place.dedup.replace("qworker@", "qworker:se%25cret@").replace("/test_", "/nowhere_")
    result = nearby.run("start", "--dedup", url, code=3)
    assert "does not exist; name a database, and a user that may use" in result.err
    assert "Traceback" not in result.err
    assert "cret" not in result.err


def test_a_server_that_is_not_there_is_waited_for_and_told(
    nearby: Desk, postgres: PostgreSQL
) -> None:
    postgres.stop()
    result = nearby.run("start", "--connect-timeout", "1", code=4)
    assert "Connection refused" in result.err
    assert "Traceback" not in result.err

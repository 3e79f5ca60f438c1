"""``qworker dlq replay --key``: parked messages return in order, and their key is free again."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest
import redis

from acceptance.conftest import long_on
from acceptance.desk import PATIENCE, Desk, step
from waiting import until


@long_on("servers")
def test_parked_messages_are_listed_in_their_order(patient: Desk) -> None:
    assert patient.listed("--parked") == ["k-1", "k-2", "k-3"]
    assert patient.listed() == []
    assert "3 parked messages of 1 key: dlq list --parked" in patient.dlq("list").err
    assert "1 key is parked: dlq list --parked" in patient.dlq("replay").err
    how = "dlq replay --key k sends its messages back, in order"
    assert how in patient.dlq("replay").err
    assert how in patient.dlq("list", "--parked").err


def test_a_parked_key_returns_in_order_and_is_free(patient: Desk) -> None:
    patient.mend()

    result = patient.dlq("replay", "--key", "k")

    assert result.out == "3 parked messages sent back\n'k' is free\n"
    assert patient.dlq("replay", "--key", "k").out == "0 messages sent back\n"
    patient.publish(step("k", 4))
    until(lambda: "k-4" in patient.effects("count"), PATIENCE, "the key is handled as before")
    assert patient.of_k() == ["k-0", "k-1", "k-2", "k-3", "k-4"]
    assert patient.parked() == 0


def test_a_key_that_fails_again_stays_parked_in_its_order(patient: Desk) -> None:
    result = patient.dlq("replay", "--key", "k", code=1)

    assert "'k' stays parked: k-1 (test.step) failed again" in result.err
    until(lambda: patient.parked() == 3, PATIENCE, "all are parked again")
    assert patient.listed("--parked") == ["k-1", "k-2", "k-3"]

    patient.mend()
    patient.dlq("replay", "--key", "k")
    assert patient.of_k() == ["k-0", "k-1", "k-2", "k-3"]


def test_a_key_returns_when_its_service_comes_back(patient: Desk) -> None:
    patient.stop()
    patient.mend()
    patient.environ["QWORKER_HEARTBEAT"] = "1"  # it waits longer than the broker for these

    result = patient.dlq("replay", "--key", "k", "--wait", "4", code=1)

    assert "3 parked messages sent back" in result.out
    assert "Does the service run?" in result.err
    patient.serve()
    until(lambda: "k-3" in patient.effects("count"), PATIENCE, "they are handled")
    assert "'k' is free" in patient.dlq("replay", "--key", "k").out or not patient.parked()
    patient.publish(step("k", 4))
    until(lambda: "k-4" in patient.effects("count"), PATIENCE, "the key is free")


def test_what_is_parked_during_the_return_follows_in_order(patient: Desk) -> None:
    patient.mend()
    stream = patient.start("publish", "-")

    returning = patient.start("dlq", "replay", "--key", "k")
    # Slowly, so that some come before, some amid and some after the return.
    patient.trickle(stream, (step("k", number) for number in range(4, 200)), pause=0.01)
    out, err = returning.communicate(timeout=PATIENCE)
    assert returning.returncode == 0, (out, err)

    until(lambda: len(patient.of_k()) == 200, PATIENCE, "all are done")
    assert patient.of_k() == [f"k-{number}" for number in range(200)]


def forget_everything(desk: Desk) -> None:
    """Let the dedup store forget ids and parked keys, as one without persistence does."""
    if dedup := desk.environ["QWORKER_DEDUP_URL"]:
        with closing(redis.Redis.from_url(dedup)) as server:
            server.flushdb()
        return
    with closing(sqlite3.connect(desk.folder / "qworker.db")) as database, database:
        for table in ("dedup_held", "dedup_done", "dedup_parked"):
            database.execute(f"DELETE FROM {table}")  # noqa: S608 - one of those above


@pytest.mark.parametrize("when", ["it stands", "it runs", "it comes back"])
def test_what_a_store_forgot_returns_in_order(patient: Desk, when: str) -> None:
    if when != "it runs":
        patient.stop()
    forget_everything(patient)
    if when == "it comes back":
        patient.serve()
        patient.publish(step("k", 4))
        until(lambda: patient.parked() == 4, PATIENCE, "it is parked behind the others")
    patient.mend()

    if when == "it stands":
        result = patient.dlq("replay", "--key", "k", "--wait", "0.5", code=1)
        assert "3 parked messages sent back" in result.out
        patient.serve()
        until(lambda: len(patient.of_k()) == 4, PATIENCE, "they are handled")
        patient.dlq("replay", "--key", "k")
    else:
        assert patient.dlq("replay", "--key", "k").out.endswith("'k' is free\n")
    if when != "it comes back":
        patient.publish(step("k", 4))
    until(lambda: len(patient.of_k()) == 5, PATIENCE, "the key is free")
    assert patient.of_k() == [f"k-{number}" for number in range(5)]
    assert patient.parked() == 0

"""``qworker dlq replay --key``: parked messages return in order, and their key is free again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from acceptance.conftest import Place
from acceptance.desk import PATIENCE, Desk, step, step_id
from waiting import until


@pytest.fixture
def patient(tmp_path: Path, place: Place) -> Iterator[Desk]:
    """The same places; a service that parks the keys of what fails, with one key parked."""
    with closing(Desk(tmp_path, place, "patient")) as desk:
        desk.serve()
        desk.publish(step("k", 0), step("k", 1, "declined"), step("k", 2), step("other", 0))
        desk.publish(step("k", 3))
        until(lambda: desk.parked() == 3, PATIENCE, "the failed one and its successors are parked")
        yield desk


def test_parked_messages_are_listed_in_their_order(patient: Desk) -> None:
    assert patient.listed("--parked") == ["k-1", "k-2", "k-3"]
    assert patient.listed() == []
    assert "1 key is parked: dlq list --parked" in patient.dlq("replay").err


def test_a_parked_key_returns_in_order_and_is_free(patient: Desk) -> None:
    patient.mend()

    result = patient.dlq("replay", "--key", "k")

    assert "3 parked messages sent back" in result.out
    assert result.out.endswith("'k' is free\n")
    patient.publish(step("k", 4))
    until(lambda: "k-4" in patient.effects("count"), PATIENCE, "the key is handled as before")
    assert [e for e in patient.effects("count") if e.startswith("k-")] == [
        "k-0", "k-1", "k-2", "k-3", "k-4",
    ]  # fmt: skip
    assert patient.parked() == 0


def test_a_key_that_fails_again_stays_parked_in_its_order(patient: Desk) -> None:
    result = patient.dlq("replay", "--key", "k", code=1)

    assert "'k' stays parked: k-1 (test.step) failed again" in result.err
    until(lambda: patient.parked() == 3, PATIENCE, "all are parked again")
    assert patient.listed("--parked") == ["k-1", "k-2", "k-3"]

    patient.mend()
    patient.dlq("replay", "--key", "k")
    assert [e for e in patient.effects("count") if e.startswith("k-")] == [
        "k-0", "k-1", "k-2", "k-3",
    ]  # fmt: skip


def test_a_key_returns_when_its_service_comes_back(patient: Desk) -> None:
    patient.stop()
    patient.mend()

    result = patient.dlq("replay", "--key", "k", "--wait", "0.5", code=1)

    assert "Does the service run?" in result.err
    patient.serve()
    until(lambda: "k-3" in patient.effects("count"), PATIENCE, "they are handled")
    assert "'k' is free" in patient.dlq("replay", "--key", "k").out or not patient.parked()
    patient.publish(step("k", 4))
    until(lambda: "k-4" in patient.effects("count"), PATIENCE, "the key is free")


def test_what_is_parked_during_the_return_follows_in_order(patient: Desk) -> None:
    patient.mend()
    stream = patient.start("publish", "-")
    assert stream.stdin is not None

    returning = patient.start("dlq", "replay", "--key", "k")
    for number in range(4, 200):
        one = step("k", number)
        line = {"name": "test.step", "key": "k", "id": step_id(one), "payload": one}
        stream.stdin.write(json.dumps(line).encode() + b"\n")
        stream.stdin.flush()
        time.sleep(0.01)  # so that some come before, some amid and some after the return
    _, err = stream.communicate(timeout=PATIENCE)
    assert stream.returncode == 0, err
    out, err = returning.communicate(timeout=PATIENCE)
    assert returning.returncode == 0, (out, err)

    expected = [f"k-{number}" for number in range(200)]
    until(
        lambda: len([e for e in patient.effects("count") if e.startswith("k-")]) == 200,
        PATIENCE,
        "all are done",
    )
    assert [e for e in patient.effects("count") if e.startswith("k-")] == expected

"""Who is at work on a stage, as its history tells; and that such a one is who is killed."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from time import monotonic
from typing import Any

import amqp
import pytest

from chaos.blows import EVERYBODY, thrown
from chaos.executions import Fault, Kind
from chaos.history import History, Writer
from chaos.places import Place
from chaos.stage import Stage
from chaos.workloads import Ledger
from servers import Guard
from waiting import until
from worker.transport.capabilities import connect

ME = os.getpid()
#: No process has it: it is beyond what the kernel gives.
NOBODY = 2**22 + 1
Begin = Callable[..., None]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with (
        Guard() as guard,
        Stage(
            tmp_path / "stage",
            guard,
            Ledger(1),
            Place(broker="memory://"),
            transactional=False,
            options=(),
        ) as made,
    ):
        yield made


@pytest.fixture
def embedded(tmp_path: Path) -> Iterator[Stage]:
    """A stage whose broker is a file, with no service."""
    place = Place(broker=f"sqlite:///{tmp_path / 'qworker.db'}")
    with (
        Guard() as guard,
        Stage(tmp_path / "own", guard, Ledger(1), place, transactional=False, options=()) as made,
    ):
        yield made


def test_what_the_broker_holds_beside_what_is_set_aside_is_left(embedded: Stage) -> None:
    client: Any = connect(embedded.place.broker, heartbeat=0, timeout=1, name="test")
    channel = client.channel()
    for queue in ("ledger.g1.0", "ledger.g1.1", "ledger.dlq", "ledger.parked"):
        channel.queue_declare(queue, durable=True, auto_delete=False)
    assert embedded.left() == []

    message = amqp.Message(b"x", delivery_mode=2)
    for queue in ("ledger.g1.1", "ledger.g1.1", "ledger.dlq", "ledger.parked"):
        channel.publish_many([(message, "", queue, False)])
    assert embedded.left() == ["2 left in ledger.g1.1"]
    taken = channel.basic_get("ledger.g1.1")
    assert embedded.left() == ["2 left in ledger.g1.1"], "not acknowledged"
    channel.basic_ack(taken.delivery_tag)
    until(lambda: embedded.left() == ["1 left in ledger.g1.1"])
    client.close()


@pytest.fixture
def begin(stage: Stage) -> Iterator[Begin]:
    """Note that a process began a handler, so many seconds ago."""
    writer = Writer(stage.history.file, sync=False)
    yield lambda ago, pid=ME: writer.note("begin", at=monotonic() - ago, pid=pid)
    writer.close()


def test_who_began_something_just_now_is_at_work(stage: Stage, begin: Begin) -> None:
    assert stage.at_work() == set()
    begin(0.0)
    assert stage.at_work() == {ME}


def test_who_began_nothing_for_a_while_is_idle(stage: Stage, begin: Begin) -> None:
    begin(1.0)
    assert stage.at_work() == set()


def test_who_is_dead_is_not_at_work(stage: Stage, begin: Begin) -> None:
    begin(0.0, NOBODY)
    assert stage.at_work() == set()


def test_who_has_only_begun_to_work_is_not_at_work_for_a_while(stage: Stage, begin: Begin) -> None:
    begin(0.1)
    assert stage.at_work(1.0) == set()


def test_who_has_worked_for_a_while_and_still_does(stage: Stage, begin: Begin) -> None:
    begin(1.2)
    begin(0.1)
    assert stage.at_work(1.0) == {ME}
    assert stage.at_work(3.0) == set()


def test_the_latest_lines_of_a_history(tmp_path: Path) -> None:
    file = tmp_path / "history"
    writer = Writer(file, sync=False)
    for at in (1.0, 2.0, 3.0):
        for what in ("begin", "end"):
            writer.note(what, at=at)
    writer.close()

    assert [entry.at for entry in History(file).latest("begin", 2.0)] == [2.0, 3.0]
    assert History(file).latest("begin", 3.5) == []


def test_a_blow_meets_whom_its_faults_are_of(stage: Stage) -> None:
    with stage.blow("any"):
        with stage.one(Random(1)) as nobody:
            assert nobody is None
        stage.note(Fault(Kind.OUTAGE, "", 1.0, 2.0))
        stage.note(Fault(Kind.PAUSE, "alice", 1.0, 2.0))
        stage.note(Fault(Kind.KILL, "bob", 1.0, 2.0, frozenset()))

    (blow,) = thrown(stage.history.entries())
    assert blow.met == (EVERYBODY, "alice"), "bob had no process to be killed"


def test_a_blow_of_crash_points_meets_those_at_which_somebody_died(stage: Stage) -> None:
    with stage.blow("any"), stage.armed({"after the claim": 0.5, "before the record": 0.5}):
        writer = Writer(stage.history.file, sync=False)
        at = monotonic()
        died = Fault(Kind.KILL, "bob", at, at, frozenset({ME}), "kill -9, before the record")
        writer.note("fault", detail=died.dump())
        writer.close()

    (blow,) = thrown(stage.history.entries())
    assert blow.met == ("before the record",)

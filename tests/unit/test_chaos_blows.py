"""What a schedule throws is noted, with those whom it met; and told in order, for who reads it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.blows import Blows, Thrown, counted, thrown
from chaos.executions import Execution, Fault, Kind, faults, join
from chaos.history import History, Writer
from chaos.nemesis import Blow
from chaos.timeline import timeline
from judged import ALICE, ran


class Noted:
    """A history, and what writes blows into it."""

    def __init__(self, file: Path) -> None:
        self.history = History(file)
        self.writer = Writer(file, sync=False)
        self.blows = Blows(self.writer)

    @property
    def thrown(self) -> list[Thrown]:
        return thrown(self.history.entries())

    def note(self, what: str, at: float, **facts: Any) -> None:
        self.writer.note(what, at=at, **facts)

    def told(self, schedule: list[Blow], executions: list[Execution]) -> list[str]:
        entries = self.history.entries()
        return timeline(schedule, entries, [*executions, *join(entries)], faults(entries))


@pytest.fixture
def noted(tmp_path: Path) -> Iterator[Noted]:
    it = Noted(tmp_path / "history.jsonl")
    yield it
    it.writer.close()


def test_a_blow_tells_whom_it_met_once_each(noted: Noted) -> None:
    with noted.blows.blow("scale"):
        noted.blows.meets("extra-1", "extra-2")
        noted.blows.meets("extra-1")

    (blow,) = noted.thrown
    assert (blow.fault, blow.met) == ("scale", ("extra-1", "extra-2"))
    assert blow.since <= blow.until


def test_a_blow_knows_nothing_of_what_other_threads_meet(noted: Noted) -> None:
    def strike() -> None:
        with noted.blows.blow("reload"):
            noted.blows.meets("bob")

    with noted.blows.blow("terminate"):
        other = threading.Thread(target=strike)
        other.start()
        other.join()
    noted.blows.meets("nobody, since there is no blow")

    assert {blow.fault: blow.met for blow in noted.thrown} == {"terminate": (), "reload": ("bob",)}


def test_a_blow_that_fails_is_noted_too(noted: Noted) -> None:
    def strike() -> None:
        with noted.blows.blow("reload"):
            noted.blows.meets("bob")
            raise OSError

    with pytest.raises(OSError):  # noqa: PT011 - it has no text
        strike()
    assert counted(noted.thrown) == {"reload": 1}


def test_blows_are_told_in_the_order_in_which_they_began(noted: Noted) -> None:
    for blow in (Thrown("short", 2.0, 2.1, ("bob",)), Thrown("long", 1.0, 5.0, ("bob",))):
        noted.note("blow", 9.0, detail=blow.dump())

    assert [blow.fault for blow in noted.thrown] == ["long", "short"]


def test_a_blow_that_met_nobody_does_not_count() -> None:
    assert counted([Thrown("reload", 1.0, 1.1), Thrown("scale", 2.0, 7.0, ("extra-1",))]) == {
        "scale": 1
    }


def test_the_timeline_of_a_trial_tells_what_was_to_strike_and_what_did(noted: Noted) -> None:
    noted.note("invoke", 100.0, id="a#0", key="a", sequence=0)
    noted.note("confirmed", 100.5, id="a#0", key="a", sequence=0)
    kill = Fault(Kind.KILL, "alice", 102.0, 102.1, frozenset({ALICE}))
    hung = Fault(Kind.OUTAGE, "", 103.0, 106.0, what="redis-hung")
    gone = Fault(Kind.GONE, "alice", 102.0, 102.1, frozenset({ALICE}))
    for fault in (kill, gone, hung):
        noted.note("fault", fault.until, detail=fault.dump())
    for blow in (
        Thrown("kill one child alone", 102.0, 102.05, ("alice",)),
        Thrown("redis-hung", 103.0, 106.0, ("everybody",)),
        Thrown("reload", 104.0, 104.0),
    ):
        noted.note("blow", blow.until, detail=blow.dump())
    schedule = [Blow(1.98, "kill one child alone", "7/0")]

    assert noted.told(schedule, [ran(0, ALICE, 101.0, 111.5)]) == [
        "The schedule of its seed, 1 blows:",
        "     1.98 s  kill one child alone",
        "What happened:",
        "     0.50 s  the first of 1 confirmed events",
        "     0.50 s  the last of 1 confirmed events",
        "     2.00 s  kill one child alone: alice",
        f"     2.00 s    -> kill -9: alice pid {ALICE}, in the midst of 1 handlers",
        "     3.00 s  redis-hung, for 3.00 s: everybody",
        "     4.00 s  reload: met nobody",
        "Effects, second by second:",
        "        0 s     0    0    0    0    0    0    0    0    0    0",
        "       10 s     0    1",
    ]


def test_the_timeline_of_nothing_is_that_nothing_happened(noted: Noted) -> None:
    assert noted.told([], []) == ["nothing happened"]

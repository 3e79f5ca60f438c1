"""A trial is red where nothing came of it: nothing published, nothing done, nothing in time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from chaos.executions import Fault, Kind
from chaos.history import Writer
from chaos.places import Place
from chaos.publishing import Publication, Publisher
from chaos.stage import Stage
from chaos.trial import Plan, judge, too_few
from chaos.workloads import Ledger
from servers import Guard
from waiting import until
from worker import Event

ME = os.getpid()
PLAN = Plan(seed=7, rate=60, seconds=20)


class Played:
    """A history as a trial would have left it; no service, no server."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.writer = Writer(stage.history.file, sync=False)

    def note(self, what: str, number: int, **facts: Any) -> None:
        """Note something of the ``number``-th event, which has a key of its own."""
        own = {"id": f"id-{number}", "key": f"key-{number}", "sequence": 0}
        self.writer.note(what, **own, **facts)

    def publish(self, number: int) -> None:
        for what in ("invoke", "confirmed"):
            self.note(what, number, detail="test.strict")

    def handle(self, number: int) -> None:
        for what in ("begin", "effect", "end"):
            self.note(what, number, handler="ledger.post", shard=0, fence=1)
        self.writer.note("recorded", detail=json.dumps([["ledger.post", f"id-{number}"]]))


@pytest.fixture
def played(tmp_path: Path) -> Iterator[Played]:
    place = Place(broker="memory://")
    with (
        Guard() as guard,
        Stage(tmp_path / "stage", guard, Ledger(1), place, transactional=False, options=()) as it,
    ):
        yield Played(it)


def test_a_trial_in_which_enough_was_done_is_held(played: Played) -> None:
    for number in range(100):
        played.publish(number)
        played.handle(number)

    verdict = judge(played.stage, PLAN, [], [])
    assert verdict.held, verdict.story
    assert verdict.published == 100
    assert "the last of 100 confirmed events" in "\n".join(verdict.timeline), "though it held"


def test_a_line_that_is_lost_makes_a_trial_red_and_has_a_story(played: Played) -> None:
    for number in range(100):
        played.publish(number)
        played.handle(number)
    with played.stage.history.file.open("a") as file:
        file.write(f'{{"pid": {ME}, "at": 1.0, "what": "effect", "id": "id-7", "han\n')

    verdict = judge(played.stage, PLAN, [], [])
    assert len(verdict.findings.torn) == 1
    assert "lines of the history that were lost: 1, the first one:" in verdict.story
    assert any("confirmed key-7" in line for line in verdict.story)
    played.stage.note(Fault(Kind.KILL, "alice", 1.0, 2.0, frozenset({ME})))
    assert not judge(played.stage, PLAN, [], []).held, "it wrote on"


def test_the_faults_of_a_trial_are_counted_and_told_in_its_line(played: Played) -> None:
    for _ in range(2):
        with played.stage.blow("redis-hung"):
            played.stage.note(Fault(Kind.OUTAGE, "", 1.0, 2.0, what="redis-hung"))

    verdict = judge(played.stage, PLAN, [], [])
    assert verdict.toll.faults == {"redis-hung": 2}
    assert ", 2 faults, 0 kills," in verdict.line


def test_a_trial_in_which_nothing_happened_is_red(played: Played) -> None:
    verdict = judge(played.stage, PLAN, [], [])

    assert not verdict.held
    assert len(verdict.findings.wrong) == 2, "events, and effects"


def test_a_trial_in_which_nobody_noted_what_was_recorded_is_red(played: Played) -> None:
    for number in range(100):
        played.publish(number)
        for what in ("begin", "effect", "end"):
            played.note(what, number, handler="ledger.post", shard=0, fence=1)

    assert judge(played.stage, PLAN, [], []).findings.wrong == [
        "nobody noted what the dedup store recorded"
    ]


def test_what_publishers_could_not_get_confirmed_in_time_is_stuck(played: Played) -> None:
    for number in range(100):
        played.publish(number)
        played.handle(number)
    played.note("invoke", 100, detail="test.strict")
    played.note("unknown", 100, detail="test.strict")

    verdict = judge(played.stage, PLAN, [], [])
    assert verdict.findings.stuck == ["not confirmed id-100"]
    assert any("key-100" in line for line in verdict.story), "the story of that event"


@pytest.mark.parametrize("is_there", [True, False])
def test_nobody_waits_for_what_a_dead_publisher_left(played: Played, *, is_there: bool) -> None:
    for number in range(100):
        played.publish(number)
        played.handle(number)
    for what in ("invoke", "abandoned"):
        played.note(what, 100, detail="test.strict")
    if is_there:
        played.handle(100)

    verdict = judge(played.stage, PLAN, [], [])
    assert verdict.held, verdict.story
    assert (verdict.published, verdict.unknown) == (100, 1)


def test_a_trial_in_which_all_was_set_aside_is_red(played: Played) -> None:
    for number in range(100):
        played.publish(number)
    aside = [("ledger.post", f"id-{number}") for number in range(100)]

    assert judge(played.stage, PLAN, aside, []).findings.wrong == [
        "there are only 0 effects, where 60 are the least"
    ]


def test_a_trial_whose_faults_met_nobody_is_red(played: Played) -> None:
    for number in range(100):
        played.publish(number)
        played.handle(number)
    plan = replace(PLAN, faults=["redis-hung"])
    with played.stage.blow("redis-hung"):
        pass

    assert judge(played.stage, plan, [], []).findings.wrong == ["no fault met anybody"]
    with played.stage.blow("redis-hung"):
        played.stage.note(Fault(Kind.OUTAGE, "", 1.0, 2.0))
    assert judge(played.stage, plan, [], []).held


def test_a_trial_of_no_length_has_to_do_something_too() -> None:
    tour = replace(PLAN, seconds=0.0)

    assert len(too_few(tour, 0, 0)) == 2
    assert too_few(tour, 1, 1) == []


@pytest.mark.parametrize(
    ("events", "effects", "complaints"), [(60, 60, 0), (59, 60, 1), (60, 59, 1), (0, 0, 2)]
)
def test_how_little_is_too_few(events: int, effects: int, complaints: int) -> None:
    assert len(too_few(PLAN, events, effects)) == complaints


class Refused(Event, name="test.refused", key="key"):
    """An event that no broker takes."""

    key: str


def publisher(stream: Iterator[Publication], played: Played) -> Publisher:
    """Return a publisher to a broker that is not there."""
    url = f"sqlite:///{played.stage.folder / 'nowhere' / 'qworker.db'}"
    return Publisher("publisher-0", url, stream, played.writer, rate=1000)


def test_a_publisher_that_gives_up_leaves_what_nobody_confirmed(played: Played) -> None:
    it = publisher(iter([Publication(Refused(key="a"), 0)]), played)
    history = played.stage.history
    it.start()
    until(lambda: len(history.entries("unknown")) > 1, message="it tries again and again")
    it.end()
    assert not it.is_done
    it.give_up()

    assert it.trouble() == ""
    assert it.is_done
    assert history.entries("confirmed") == []


def test_a_publisher_tells_what_it_must_not_meet(played: Played) -> None:
    def stream() -> Iterator[Publication]:
        yield from ()
        raise TypeError("no such thing")

    it = publisher(stream(), played)
    it.start()
    assert "TypeError: no such thing" in it.trouble()

"""Revisions, broken one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from simulation.breaking import mutation
from worker.dedup import memory
from worker.dedup.base import Answer, Batch, Verdict
from worker.dialogue import Dialogue
from worker.gaps import Gaps
from worker.onward import Ends
from worker.revisions import Progress


@mutation("revisions", off="comparison of revisions", sees="begins and is superseded")
def every_revision_is_handled() -> Iterator[None]:
    with patch("worker.executor.judge", lambda *_: None):
        yield


@mutation("revisions", 10, off="order of marks and looks", sees="begins and is superseded")
def revisions_are_looked_at_before_what_is_done_is_marked() -> Iterator[None]:
    revisions = memory.Records._revisions

    def look_first(
        self: memory.Records, batch: Batch, now: float, options: Any
    ) -> tuple[int | None, ...]:
        found = tuple(self._revision(place, now) for place in batch.looks)
        revisions(self, batch, now, options)
        return found

    with patch.object(memory.Records, "_revisions", look_first):
        yield


@mutation("revisions", off="marks of revisions", sees="begins and is superseded")
def no_revision_is_marked() -> Iterator[None]:
    with patch.object(memory.Records, "_mark", lambda *_: None):
        yield


@mutation("revisions", off="wait for what is missing", sees="begins past a gap")
def what_comes_too_early_is_handled_at_once() -> Iterator[None]:
    with patch("worker.revisions._beyond_gap", lambda *_, **__: None):
        yield


@mutation("revisions", off="wait for what is missing", sees="begins past a gap")
def a_wait_is_over_at_once() -> Iterator[None]:
    """As if there were no room for it."""
    wait = Gaps.wait

    def wait_not(self: Gaps, task: Any, lane: Any, *, limit: float, crowd: str = "") -> bool:
        return wait(self, task, lane, limit=limit, crowd=crowd or f"not {limit} s")

    with patch.object(Gaps, "wait", wait_not):
        yield


@mutation("revisions", off="order of those that waited in vain", sees="begins past a gap")
def the_highest_revision_goes_first_when_a_wait_is_over() -> Iterator[None]:
    with patch("worker.gaps.min", max, create=True):
        yield


@mutation("revisions", off="memory of a wait", sees="begins past a gap")
def a_restart_ends_the_wait_for_a_revision() -> Iterator[None]:
    note = Dialogue._note_wait

    def note_nothing(self: Dialogue, wait: Any, token: bytes, verdict: Verdict) -> None:
        begins = verdict.answer is Answer.FRESH and verdict.attempts == 1
        note(self, wait if begins else wait._replace(seconds=0.0), token, verdict)
        if not begins:
            wait.told(0.0)

    with patch.object(Dialogue, "_note_wait", note_nothing):
        yield


@mutation("gaps", off="end of a wait for what was done", sees="not done in time")
def what_waits_is_not_told_of_what_is_done() -> Iterator[None]:
    with patch.object(Gaps, "passed", lambda *_: None):
        yield


@mutation("gaps", off="last revision within a run", sees="not done in time")
def a_run_does_not_know_what_it_did() -> Iterator[None]:
    with patch.object(Progress, "note", lambda _: None):
        yield


@mutation("gaps", 52, off="what waits when its queue ends", sees="not done in time")
def what_waits_stays_in_a_queue_that_is_sealed() -> Iterator[None]:
    with patch.object(Ends, "look", lambda _: None):
        yield

"""Revisions, broken one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from simulation.breaking import mutation
from worker.dedup import memory
from worker.dedup.base import Batch
from worker.gaps import Gaps


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

"""What the PostgreSQL store does beside its batches: making room, and leaving none of the old.

A batch waits for what cannot be done without: room for what is done now. All else can wait itself,
takes a small part of a tick, and its failure is told in the log and keeps nobody away.
"""

from __future__ import annotations

import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from psycopg import Error, errors

from worker.dedup.partitions import drop, identify, make_room
from worker.stores.postgres import is_lost

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from worker.dedup.base import StoreOptions
    from worker.dedup.partitions import Partitions
    from worker.stores.postgres import Line

logger = logging.getLogger("worker.dedup")

#: Seconds after which the tables are looked after again, at most.
_TEND_EVERY, _SWEEP_EVERY = 3600.0, 3600.0
#: Revisions stay for long, and may be many: they are swept so often in the time that they are kept.
_SWEEPS_OF_REVISIONS = 100
#: What is in use, or another user's. (``warnings`` of the store tells of the latter.)
_NOT_NOW = (errors.LockNotAvailable, errors.QueryCanceled, errors.InsufficientPrivilege)
#: A bite of a sweep: what is in some blocks of the table. No index tells what is forgotten, and
#: where a long transaction of anybody's keeps the vacuum from the dead rows, the server takes long
#: to look at them all. Rows that another has locked are left to the next time.
_SWEEP = """SET LOCAL statement_timeout = {milliseconds};
DELETE FROM {table} WHERE {key} IN (
    SELECT {key} FROM {table}
    WHERE ctid >= '({lower},0)' AND ctid < '({upper},0)'
        AND {until} <= date_part('epoch', clock_timestamp())
    FOR UPDATE SKIP LOCKED)"""
_BLOCKS = "SELECT pg_relation_size('{table}') / current_setting('block_size')::bigint"
#: By how much the next bite is smaller after one that took too long, and larger after any other.
_SMALLER, _LARGER = 8, 2
#: Seconds: of one bite; of a tick, until no other bite begins; between ticks that have some.
_BITE, _MEAL, _PAUSE = 0.1, 0.2, 10.0


@dataclass(slots=True)
class _Sweep:
    """What is forgotten of one table, and how far this round of looking for it has come."""

    table: str
    key: str
    #: Until when a row is remembered, as SQL.
    until: str
    #: Seconds between two rounds, at least.
    every: float = 0.0
    #: When it is due; monotonic.
    due: float = 0.0
    #: Where this round has come to, where it ends, and how much it tries at once.
    block: int = 0
    blocks: int = 0
    bite: int = 0


class Upkeep:
    """Of one store. ``shown`` is what the log calls that."""

    def __init__(self, shown: str, options: StoreOptions) -> None:
        self._shown = shown
        self._retention = options.retention
        self._timeout = options.timeout
        self._tend_at = 0.0
        self._held = _Sweep("qworker_dedup_held", "record", "deadline + memory")
        every = options.revision_retention / _SWEEPS_OF_REVISIONS
        self._revisions = _Sweep("qworker_dedup_revisions", "place", "expires", every)
        #: Whether there is a table of revisions; known once it is connected.
        self.keeps_revisions = False
        self._told: set[str] = set()

    def is_due(self) -> bool:
        """Tell whether there is something to be done."""
        return time.monotonic() >= min(self._tend_at, *(sweep.due for sweep in self._sweeps))

    def begin_anew(self) -> None:
        """Know that the tables were made just now."""
        self._tend_at = 0.0

    def make_room(self, line: Line) -> None:
        """Make the room that a batch did not find."""
        make_room(line, self._retention)

    def run(self, line: Line) -> None:
        """Do what is due. Raises where nothing can be recorded, or the connection is lost."""
        now = time.monotonic()
        if now >= self._tend_at:
            self._tend(line)
        for sweep in self._sweeps:
            if now >= sweep.due and self._has_time(line):
                self._sweep(line, sweep)

    @property
    def _sweeps(self) -> Sequence[_Sweep]:
        return (self._held, self._revisions) if self.keeps_revisions else (self._held,)

    def _tend(self, line: Line) -> None:
        there = make_room(line, self._retention)
        # Ahead of what may fail: a connection that was lost by that is not lost by it for ever.
        self._plan(there)
        if there.lacks(self._retention, ahead=True):
            with self._optional(line):
                there = make_room(line, self._retention, ahead=True)
                self._plan(there)
        past = there.past()
        for partition in there.found:
            if not self._has_time(line):
                break
            with self._optional(line):
                if partition in past:
                    drop(line, partition)
                elif not partition.is_identified:
                    identify(line, partition)

    def _plan(self, there: Partitions) -> None:
        self._tend_at = time.monotonic() + min(_TEND_EVERY, there.room(self._retention) / 2)

    def _sweep(self, line: Line, sweep: _Sweep) -> None:
        """Drop what is forgotten: all in one go, or as much as this tick has time for."""
        sweep.due = time.monotonic() + max(_SWEEP_EVERY, sweep.every)
        enough = time.monotonic() + _MEAL
        with self._optional(line):
            if sweep.block >= sweep.blocks:
                ((sweep.blocks,),) = line.execute(_BLOCKS.format(table=sweep.table))
                sweep.block, sweep.bite = 0, sweep.blocks
            while sweep.block < sweep.blocks:
                if time.monotonic() >= enough:
                    sweep.due = time.monotonic() + _PAUSE
                    break
                _sweep_some(line, sweep)

    @contextmanager
    def _optional(self, line: Line) -> Iterator[None]:
        """Let nothing of the block keep the store away but that the connection is lost."""
        try:
            yield
        except _NOT_NOW:
            pass
        except Error as error:
            if is_lost(line, error):
                raise
            text = str(error).strip()
            if text not in self._told:
                self._told.add(text)
                logger.warning("%s: this is left for later: %s", self._shown, text)

    def _has_time(self, line: Line) -> bool:
        """Tell whether the batch that comes after it still has half of its time."""
        return line.give_up - time.monotonic() > self._timeout / 2


def _sweep_some(line: Line, sweep: _Sweep) -> None:
    upper = min(sweep.block + sweep.bite, sweep.blocks)
    script = _SWEEP.format(
        milliseconds=round(_BITE * 1000),
        table=sweep.table,
        key=sweep.key,
        until=sweep.until,
        lower=sweep.block,
        upper=upper,
    )
    try:
        line.begin(script)()
    except errors.QueryCanceled:
        if sweep.bite > 1:
            sweep.bite = max(1, sweep.bite // _SMALLER)
            return
        # Whatever is the matter with this one, it does not keep the others.
    else:
        sweep.bite *= _LARGER
    sweep.block = upper

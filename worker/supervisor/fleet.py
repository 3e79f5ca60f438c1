"""The processes of one service: a slot each, its holder, and the successor that will take over.

A *holder* has shards. A *successor* boots and connects beside it, and takes its place: after a
crash at once, in a planned change (fresh code, another number of processes) when the holder was
told to drain, and as soon as it is ready where the holder *resigned*: it drains by itself, at a
signal or since a handler ignored its time limit. That one is a *leaver* then: it gives its shards,
one by one as nothing of each is left, and takes none. Shards are dealt to holders only, by the
``dealer``; so a process that cannot boot never costs one that works.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from typing import TYPE_CHECKING

from worker.errors import ConfigurationError, Unreachable
from worker.leases.base import lease_clock
from worker.supervisor.change import Plans, Slot
from worker.supervisor.control import (
    Beat,
    Bury,
    Dump,
    Fatal,
    Finished,
    Followed,
    Found,
    Given,
    Hello,
    Pause,
    Paused,
    Ready,
    Stepped,
    Terms,
)
from worker.supervisor.dealer import Dealer
from worker.supervisor.policy import BurstWatch
from worker.supervisor.process import CHILD_COMMAND, ChildProcess
from worker.supervisor.resharder import Resharder
from worker.supervisor.stage import Stage
from worker.supervisor.totals import Totals

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from worker.supervisor.change import Change
    from worker.supervisor.control import Message

logger = logging.getLogger("worker.supervisor")

#: Dead owners that a new process is told of. Claims of older ones have long expired.
_REMEMBERED_DEAD = 64

#: Seconds without a sign of life after which a stack is asked of the kernel, not of the process.
_DEAF = 2.0

_EXIT_KEEP_DYING = 5


class Fleet:
    """Keeps the processes as they should be. Driven by the supervisor's loop, in one thread."""

    def __init__(
        self,
        options: Mapping[str, object],
        command: Sequence[str] = CHILD_COMMAND,
        given: Callable[[str, int], None] = lambda _lease, _epoch: None,
        propose: Callable[[int, str], None] = lambda _version, _text: None,
    ) -> None:
        self._options = options
        self._command = command
        self._slots = [Slot(0)]
        self._plans = Plans()
        self._change: Change | None = None
        self._dead: deque[str] = deque(maxlen=_REMEMBERED_DEAD)
        self._closing = False
        self._pause = Pause((), 0)
        #: Which shards are owned, and by which process.
        self.dealer = Dealer(given)
        self.resharder = Resharder(propose)
        #: From the first child that imported the app; unknown until then.
        self.terms: Terms | None = None
        #: How many processes there should be: one until it is known how many shards there are.
        self.processes, self._counted = 1, False
        #: Whether every process was ready once: from then on, start-up errors are retried.
        self.booted = False
        #: Why the service cannot go on, with the exit code that says so.
        self.failure: Fatal | None = None
        #: Whether the end of the drain came before that of a process's work.
        self.abandoned = False
        #: How many processes ended unasked.
        self.restarts = 0
        self.totals = Totals()
        #: Fed in a burst only.
        self.burst = BurstWatch()

    @property
    def holders(self) -> list[ChildProcess]:
        """The processes that may have shards."""
        return [child for slot in self._slots for child in slot.holders()]

    def children(self) -> list[ChildProcess]:
        """Return every living process."""
        return [child for slot in self._slots for child in slot.children()]

    @property
    def ready(self) -> bool:
        """Whether every slot has a process that declared, and takes what it is dealt."""
        return self.terms is not None and all(
            slot.holder is not None and slot.holder.progress is Stage.READY
            for slot in self._slots[: self.processes]
        )

    @property
    def broker_away(self) -> bool:
        """Whether a process that may have shards is without the broker, or has declared nothing.

        Not the successor of one that works: it is waited for, and nobody stands still.
        """
        ready = [child for child in self.holders if child.stage is Stage.READY]
        return any(not child.statistics.get("connected", child.declared) for child in ready)

    def waits_for(self) -> str:
        """Return which servers are away, by what the processes told last; empty if none is."""
        told = [child.statistics for child in self.holders if child.stage is Stage.READY]
        away = {
            "the broker": self.broker_away,
            "the dedup store": any(each.get("store_away") for each in told),
        }
        return " and ".join(name for name, is_away in away.items() if is_away)

    @property
    def changing(self) -> bool:
        """Whether a planned change is under way or waits."""
        return self._change is not None or not self._plans.empty

    def responsive(self, now: float) -> bool:
        """Whether every process that consumes gave a sign of life within the watchdog's time."""
        limit = self.terms.watchdog if self.terms else 0.0
        return all(child.silent_for(now) <= limit for child in self.children())

    def next_deadline(self) -> float:
        """Return the time at which :meth:`manage` has something to do, whatever happens."""
        deadlines = [child.kill_at for child in self.children() if child.kill_at is not None]
        deadlines += [slot.respawn_at for slot in self._slots if self._needs(slot)]
        return min(deadlines, default=float("inf"))

    def reload(self) -> None:
        """Replace every process by one with fresh code, one after the other."""
        if self._change is not None and not self._change.committed:
            self._plans.again(self._change, self.processes)
            self._drop(self._change)
        self._plans.reload()

    def resize(self, more: int) -> None:
        """Run ``more`` processes than now (fewer, if negative), within what the shards allow."""
        plan = self.dealer.plan
        if self.terms is None or plan is None or not self.booted:
            logger.warning("not changing the number of processes: they are still starting")
            return
        processes = self.processes if self._change is None else self._change.processes
        self._plans.resize(more, processes, self.terms, plan)

    def pause(self, pause: Pause) -> None:
        """Let no process begin anything of some handlers, nor any that comes later."""
        self._pause = pause
        for child in self.children():
            if child.ready_at is not None:
                child.say(pause)

    def dump(self, now: float) -> None:
        """Make every process write its stacks and what is in flight."""
        for child in self.children():
            logger.info("process %d: %s", child.index, child.describe(now))
            hears = child.stage in (Stage.READY, Stage.DRAINING) and child.silent_for(now) < _DEAF
            if hears:
                child.say(Dump())
            else:
                child.dump_stack()

    def drain(self, seconds: float, now: float) -> None:
        """End every process, and start none again. Work that outlasts ``seconds`` is abandoned."""
        self._closing = True
        self._change = None
        self._plans.clear()
        for child in self.children():
            child.drain(seconds, now)

    def stop(self, seconds: float, now: float) -> None:
        """End every process now: each gets ``seconds`` to close its connections."""
        self._closing = True
        for child in self.children():
            child.stop(seconds, now)

    def forgive(self, seconds: float) -> None:
        """Move the watchdogs by time in which nobody ran."""
        for child in self.children():
            child.forgive(seconds)

    def listen(self, now: float) -> None:
        """Take in what the processes said."""
        for slot in self._slots:
            for child in slot.children():
                for message in child.listen(now):
                    self._hear(slot, child, message, now)

    def reap(self, now: float) -> None:
        """Bury the processes that ended; also orphans that an init process (pid 1) inherits."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for slot in self._slots:
                for child in slot.children():
                    if child.pid == pid:
                        self.listen(now)  # its last words
                        child.reaped(status)
                        self._bury(slot, child, now)

    def manage(self, now: float) -> None:
        """Start, replace and kill processes as it is their time, and deal the shards."""
        for child in self.children():
            child.watch(now, self.terms)
        if self._closing or self.failure is not None:
            self._deal((), now)
            return
        self._count()
        if self._change is None and self.terms is not None and self.booted:
            self._change = self._plans.next(self._slots, self.processes)
        for slot in self._slots:
            if now >= slot.respawn_at and self._needs(slot):
                self._spawn(slot, now)
        if self._change is not None and not self._change.committed and self._change.booted():
            self._commit(self._change, now)
        for slot in self._slots:
            self._promote(slot)
        if self._change is not None and self._change.done():
            self._change = None
        if self._change is None:
            self._slots = [s for s in self._slots if s.index < self.processes or any(s.children())]
        self.booted = self.booted or self.ready
        self._deal(range(self.processes), now)

    def _deal(self, places: Sequence[int], now: float) -> None:
        """Tell the processes of the plan, then of their shards."""
        if lease_clock() < self.dealer.trusted_until:  # or there may be another plan by now
            self.resharder.drive(self.children(), now)
        self.dealer.deal(self.holders, places, lease_clock())

    def _count(self) -> None:
        """Have as many processes as the settings and the shards allow, once both are known."""
        if not self._counted and self.terms is not None and self.dealer.plan is not None:
            self.processes = self._plans.first(self._slots, self.terms, self.dealer.plan)
            self._counted = True

    def _needs(self, slot: Slot) -> bool:
        """Whether the slot needs a process that it neither has nor has on its way."""
        if self._closing or slot.successor is not None:
            return False
        if self._change is not None and self._change.covers(slot):
            return self._change.needs(slot)
        return slot.is_vacant and slot.index < self.processes

    def _spawn(self, slot: Slot, now: float) -> None:
        try:
            slot.successor = ChildProcess(slot.index, self._options, self._command, now)
        except OSError as error:  # no memory, too many processes or files
            logger.error("process %d cannot be started: %s", slot.index, error)  # noqa: TRY400 - the error says all
            self._retry(slot, slot.restarts.after_death(None), now)

    def _promote(self, slot: Slot) -> None:
        """Let the slot's successor connect, and take the holder's place when that leaves."""
        child, change, dealer = slot.successor, self._change, self.dealer
        if child is None or child.dismissed:
            return
        trusted = lease_clock() < dealer.trusted_until  # or there may be another plan by now
        if child.stage is Stage.GREETED and dealer.plan is not None and trusted:
            child.open(dealer.plan, dealer.version, dealer.trusted_until)
        waits = change is not None and not change.committed and change.covers(slot)
        if child.stage is Stage.READY and not waits:
            slot.promote()

    def _hear(  # noqa: C901, PLR0912 - one case for each message
        self, slot: Slot, child: ChildProcess, message: Message, now: float
    ) -> None:
        if isinstance(message, Beat | Given) and message.draining and child.resign():
            logger.warning("process %d drains by itself: another takes over", child.index)
            self._retry(slot, slot.restarts.after_death(child.lived(now)), now)
        match message:
            case Hello():
                self._greet(child, message)
            case Ready(generation, version):
                child.ready(generation, version, now)
                self.dealer.trust(self.dealer.trusted_until, [child])  # or it may not connect
                child.say(Bury([*self._dead]))
                if self._pause.version:
                    child.say(self._pause)
                for each in self._slots:  # where one can start, others were not to blame
                    each.restarts.ready()
                logger.info("process %d: %s", slot.index, child.describe(now))
            case Beat(statistics):
                child.beat(statistics, now)
                if self.terms is not None and self.terms.burst:
                    self.burst.beat(child.pid, statistics)
            case Found() | Followed() | Stepped():
                self.resharder.heard(child, message, now)
            case Given(shards):
                child.given(shards)
            case Paused(version):
                child.paused = version
            case Finished(finish):
                child.finished(finish, now)
            case Fatal():
                child.fatal = message
            case _:
                logger.error("process %d sent a %s", child.index, type(message).__name__)

    def _greet(self, child: ChildProcess, hello: Hello) -> None:
        terms = Terms(**hello.terms)
        known = self.dealer.plan.shards if self.dealer.plan else ()
        if self.terms is not None and (different := self.terms.differs(terms, known)):
            child.fatal = Fatal(ConfigurationError.exit_code, different)
            child.kill("")
            return
        self.terms = terms
        child.greeted(hello.owner)

    def _bury(self, slot: Slot, child: ChildProcess, now: float) -> None:
        """Draw the consequences of a death."""
        slot.bury(child)
        self.totals.departed(child.statistics)
        self.burst.bury(child.pid)
        if not child.drained:
            self._dead.append(child.owner)
            for other in self.children():
                if other.ready_at is not None:
                    other.say(Bury([child.owner]))
        self.abandoned = self.abandoned or (self._closing and child.abandoned)
        expected = child.dismissed or child.fatal is not None or child.finish == "DRAINED"
        level = logging.INFO if expected else logging.WARNING
        if child.unneeded or (child.fatal is not None and not self.booted):  # that will be told
            level = logging.DEBUG
        logger.log(level, "process %d ended (pid %d): %s", slot.index, child.pid, child.epitaph())
        if child.dismissed:
            slot.respawn_at = now
        elif not self._closing:
            self.restarts += 1
            if not child.resigned:
                self._replace(slot, child, now)

    def _replace(self, slot: Slot, child: ChildProcess, now: float) -> None:
        """Decide when a process that died by itself is started again."""
        fatal = child.fatal
        if fatal is None:
            self._retry(slot, slot.restarts.after_death(child.lived(now)), now)
        elif not self.booted:
            self.failure = fatal
        else:
            logger.error("process %d cannot go on:\n%s", slot.index, fatal.text)
            self._give_up_change()
            outage = fatal.exit_code == Unreachable.exit_code
            restarts = slot.restarts
            delay = restarts.after_outage() if outage else restarts.after_death(child.lived(now))
            self._retry(slot, delay, now)

    def _retry(self, slot: Slot, delay: float | None, now: float) -> None:
        """Start a process of ``slot`` in ``delay`` seconds; None: it was tried often enough."""
        if delay is None and not self._give_up_change():
            self.failure = Fatal(
                _EXIT_KEEP_DYING,
                f"process {slot.index} died {slot.restarts.startup_deaths} times in a row, and none"
                " got ready meanwhile; the log has the reasons",
            )
        slot.respawn_at = now + (delay or 0.0)
        if delay and self._needs(slot):
            logger.info("process %d starts again in %.1f s", slot.index, delay)

    def _commit(self, change: Change, now: float) -> None:
        if self.terms is not None:
            self.processes = change.processes
            change.commit(self.terms.drain_timeout, now)

    def _give_up_change(self) -> bool:
        """Give up the change under way, if nothing was drained for it; return whether there was."""
        if self._change is None or self._change.committed:
            return False
        logger.error("the change is given up; the processes that run go on as they are")
        self._plans.clear()
        self._drop(self._change)
        return True

    def _drop(self, change: Change) -> None:
        """Forget a change that is not committed."""
        change.drop(self.processes)
        self._change = None

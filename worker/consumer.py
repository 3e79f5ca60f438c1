"""The tick: the loop of one consumer process, from the broker's socket and back to it.

One I/O thread owns the consuming connection, the publishing connection and the dedup store. It
runs no handlers, so heartbeats never starve. (Of user code it runs what finds the key in a message
of a foreign publisher, and what subscribed to runtime events: both must be quick.) Each tick moves
batches through the same eight steps, and a message moves through them once:

1. wait      for the broker, for finished work, for the supervisor, for the next timer
2. collect   outcomes that the pools finished
3. gather    deliveries, without blocking; decode them; put tasks into lanes. While lanes hold
             what can be claimed, the deliveries are read while the store works on step 4
4. converse  one round trip to the dedup store: completions, releases, renewals, claims
5. route     fresh tasks to a pool; duplicates to settlement; busy ones wait in their lane
6. publish   children, dead letters, parked messages; take the confirms that have come
7. settle    acknowledge what is finished, one frame a shard
8. timers    heartbeats, retries that are due, time limits, the beat to the supervisor

The fate of a task is decided in ``fate.py`` alone, and a delivery is finished in
:meth:`Consumer._settled` alone.
"""

from __future__ import annotations

import os
from random import Random
from time import monotonic
from typing import TYPE_CHECKING, Any

from worker.assembly import assemble, open_dedup
from worker.dedup.base import OWNER_BYTES, Answer
from worker.ending import Ending, Finish
from worker.errors import BrokerUnreachable
from worker.lifespan import Lifespan
from worker.pool.aio import LoopPool
from worker.pool.threads import ThreadPool
from worker.report import Census, dump, is_idle, statistics
from worker.sharding.generations import Generation, Plan
from worker.telemetry import Counters, HandlerStuck, SecondEffect
from worker.timers import Timers
from worker.waiter import Waiter

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from worker.app import App
    from worker.config import Settings
    from worker.dedup.base import DedupStore
    from worker.dispatch import Resolve
    from worker.pool import PoolMaker
    from worker.task import Delivery

_BEAT, _BURST_BEAT = 1.0, 0.1
_WATCH_PAUSE, _LONGEST_WAIT = 0.25, 0.5
#: What is due within so many seconds is done now: to wake up for it costs more.
_TOGETHER = 0.01
_MOST_UNCONFIRMED = 2000
_PROBE_PAUSE = 0.01


def _ignore(*_: object) -> None: ...


class Consumer:
    """Consumes shards of ``app``'s service. One a process; one thread calls all of it.

    ``owner`` names this life of this process in the dedup store. ``shards`` are taken from the
    start, for as long as it lives, where nobody assigns any (:meth:`take`). ``store``, ``clock``,
    ``random`` and ``pools`` (one for plain handlers, one for coroutines) are for tests.
    """

    def __init__(  # noqa: PLR0913 - the seams of the runtime
        self,
        app: App,
        settings: Settings,
        *,
        shards: Iterable[int] = (),
        plan: Plan | None = None,
        owner: bytes | None = None,
        store: DedupStore | None = None,
        clock: Callable[[], float] = monotonic,
        random: Random | None = None,
        pools: tuple[PoolMaker, PoolMaker] = (ThreadPool, LoopPool),
    ) -> None:
        self.app = app
        self.settings = settings
        self.owner = owner or os.urandom(OWNER_BYTES)
        self.counters = Counters()
        #: Called about once a second while the loop is healthy.
        self.on_beat: Callable[[], None] = _ignore
        #: Called with shards of which nothing is left here, so that another may have them.
        self.on_given: Callable[[list[int]], None] = _ignore
        self._plan = plan or Plan(Generation(1, settings.first_shards))
        #: Called once nothing runs any more of handlers that are paused.
        self.on_paused: Callable[[], None] = _ignore
        self._clock = clock
        self._random = random or Random()
        self._pools = pools
        self._telemetry = app.telemetry
        self._shards = tuple(shards)
        self._store = store
        self._timers = Timers(clock)
        #: The tick did something that only the next one can go on with.
        self._again = False
        self._next_beat = self._next_watch = 0.0
        #: Something of a paused handler may still run.
        self._pausing = False
        self._lifespan = Lifespan(app)
        self._waiter = Waiter()

    def open(self, trusted_until: float = float("inf")) -> bool:
        """Connect to the store and the broker, declare, start the pools and the consumers.

        Past ``trusted_until`` (``lease_clock``) it declares nothing: then it tells that it is not
        connected, which the tick sees to once :meth:`trust` goes further. Raises Unreachable where
        a server does not answer, ConfigurationError where something is set wrong, or where the
        app's lifespan raises.
        """
        settings = self.settings
        if self._store is None:
            self._store = open_dedup(settings)
        state = self._lifespan.enter()
        try:
            parts = assemble(
                self.app,
                settings,
                plan=self._plan,
                trusted_until=trusted_until,
                owner=self.owner,
                store=self._store,
                state=state,
                timers=self._timers,
                counters=self.counters,
                clock=self._clock,
                random=self._random,
                pools=self._pools,
                settled=self._settled,
                wake=self._waiter.wake,
                given=lambda shards: self.on_given(shards),  # noqa: PLW0108 - set later
                lost=self._link_lost,
            )
        except BaseException:
            self._lifespan.leave()
            self._store.close()
            self._waiter.close()
            raise
        self._link, self._gatherer, self._dialogue = parts.link, parts.gatherer, parts.dialogue
        self._executor, self._detour = parts.executor, parts.detour
        self._dispatcher, self._fate = parts.dispatcher, parts.fate
        self._tenure = parts.tenure
        patience = self.settings.dedup_timeout
        self._ending = Ending(parts, self.counters, self._telemetry, patience)
        self._census = Census(parts.link, parts.dispatcher)
        self._waiter.follow(self._link.filenos())
        if self._shards:
            self.take(dict.fromkeys(self._shards, 0), float("inf"))
        return self._link.is_up

    def run(self) -> Finish:
        """Tick until drained, stopped or failed; then close everything and tell how it ended."""
        try:
            while self._ending.finish is None:
                self.tick(_LONGEST_WAIT)
        finally:
            self.close()
        return self._ending.finish

    def close(self) -> None:
        """Disconnect; what is not acknowledged goes back in order."""
        self._link.close()
        self._dispatcher.close()
        if self._store is not None:
            self._store.close()
        self._waiter.close()
        self._lifespan.leave()

    def drain(self, deadline: float) -> None:
        """Begin nothing new, give all shards; finish, record and ack what runs, by ``deadline``."""
        self._ending.begin(deadline, Finish.DRAINED)

    @property
    def draining(self) -> bool:
        """Whether it is on its way to its end, and takes no more shards."""
        return self._ending.deadline is not None

    @property
    def ended(self) -> Finish | None:
        """How it ended; None while it goes on."""
        return self._ending.finish

    def stop(self) -> None:
        """End now. What runs is abandoned: nobody may claim it before its claim ends."""
        self._ending.abandon(Finish.ABANDONED, self._resolve)

    def bury(self, owners: Iterable[bytes]) -> None:
        """Take over the claims of these consumers at once: their processes are gone."""
        self._dialogue.bury(owners)

    def take(self, fences: Mapping[int, int], trusted_until: float) -> None:
        """Consume these shards too; past ``trusted_until`` (``lease_clock``) all are given up."""
        self._tenure.take(fences, trusted_until)

    def give(self, shards: Iterable[int]) -> None:
        """Give these shards up in order: ``on_given`` tells when nothing is left of them."""
        self._tenure.give(shards)

    def lose(self, shards: Collection[int]) -> None:
        """Give these shards up at once: somebody else may have them by now."""
        self._tenure.lose(shards)

    def pause(self, handlers: Collection[str]) -> None:
        """Begin nothing of these handlers, and of all others again.

        Their messages wait here, and use up prefetch. ``on_paused`` tells when nothing of them
        runs any more.
        """
        self._dispatcher.pause(handlers)
        self._pausing = True

    def follow(self, plan: Plan) -> None:
        """Declare from now on, at each connection, what ``plan`` says."""
        self._tenure.follow(plan)

    def switch(self, plan: Plan) -> None:
        """Go over to the generation that ``plan`` consumes, holding nothing of the one before."""
        self._waiter.follow(())
        self._tenure.switch(plan)

    def trust(self, until: float) -> None:
        """Trust the leases of all that is consumed until then, by the ``lease_clock``."""
        self._tenure.trust(until)

    def watch(self, fileobj: Any, callback: Callable[[], None]) -> None:
        """Call ``callback`` in the loop whenever ``fileobj`` is readable."""
        self._waiter.watch(fileobj, callback)

    def unwatch(self, fileobj: Any) -> None:
        """No longer watch ``fileobj``."""
        self._waiter.unwatch(fileobj)

    def tick(self, longest: float) -> bool:
        """Go once through the eight steps, waiting at most ``longest`` seconds in the first.

        Returns whether there was anything to do.
        """
        self._wait(longest)
        now = self._clock()
        done = late = 0
        self._again = False
        self._gatherer.begin()
        try:
            self._tenure.check(now)
            # One that was given up may have other queues by now: it declares nothing.
            if self._executor.is_trusted(now) and self._link.ensure(now):
                self._waiter.follow(self._link.filenos())
            done += self._dispatcher.collect(self._resolve)
            if not self._dispatcher.lanes.has_ready:
                done += self._gatherer.gather()
            done += self._converse(now)
            self._detour.save()
            late += self._gatherer.gather()
            late += self._link.publish()
            self._settle()
        except BrokerUnreachable as error:
            self._link_lost(error)
        if self._pausing and not self._dispatcher.runs_paused():
            self._pausing = False
            self.on_paused()
        late += self._run_timers(now)
        done += late
        self._again |= bool(late)  # nothing else would wake the loop for that
        self._ending.check(now, self._resolve)
        self._dispatcher.ticked(self._clock() - now)
        if done:
            self._waiter.hurry()
            self._next_watch = min(self._next_watch, now + _WATCH_PAUSE)
        return bool(done)

    def _wait(self, longest: float) -> None:
        """Step 1: sleep until something is to be done."""
        now = self._clock()
        until = min(now + longest, self.next_due, self._next_beat, self._next_watch)
        until = min(until, self._tenure.next_due, self._ending.deadline or until)
        dispatcher, link = self._dispatcher, self._link

        def ready() -> bool:
            return self._again or bool(dispatcher.finished) or link.pending()

        if link.is_polled:
            self._waiter.poll(until - now, ready, link.look)
        else:
            self._waiter.wait(until - now, ready)

    @property
    def next_due(self) -> float:
        """When time alone brings something to do: a retry, a probe, a server to be tried again."""
        # A probe that is due may have nothing to probe with yet.
        claim = max(self._dispatcher.next_due, self._clock() + _PROBE_PAUSE)
        due = min(self._timers.next_due, claim)
        if self._dialogue.busy and self._dialogue.next_try:
            due = min(due, self._dialogue.next_try)
        if self._link.is_up or not self._executor.is_trusted(self._clock()):
            return due
        return min(due, self._link.next_try)

    def _converse(self, now: float) -> int:
        """Steps 4 and 5: one round trip to the store, and what its answers mean."""
        dialogue = self._dialogue
        if (
            self._ending.deadline is None
            and dialogue.away_since is None
            and self._link.outstanding < _MOST_UNCONFIRMED
        ):
            self._dispatcher.take(now)
        replies = dialogue.exchange(self._gatherer.read)
        if replies is None:
            return 0
        for task, answer in replies.completed:
            if answer is Answer.STALE:
                # Another owner has it now: it is theirs to finish, or ours to record again.
                self.counters.stale += 1
                if not task.delivery.channel.leaving:
                    self._dispatcher.add([task])
                continue
            if answer is Answer.ALREADY_DONE and not replies.repeated and task.effective:
                self._telemetry.emit(SecondEffect(task.handler_name, task.message.id))
            self.counters.completed += 1
            self._settled(task.delivery)
        if self._dispatcher.route(replies, now):
            self._again = True  # what waits behind is claimed in the next tick
        return 1

    @property
    def _resolve(self) -> Resolve:
        """What decides the fate of a task that came back."""
        return self._tenure.witnessing(self._fate.resolve)

    def _settled(self, delivery: Delivery) -> None:
        """A task of ``delivery`` needs nothing more; it is finished when that holds for all."""
        delivery.open_tasks -= 1
        if delivery.open_tasks == 0:
            delivery.channel.settlement.finish(delivery.tag)

    def _settle(self, *, full: bool = False) -> None:
        """Step 7. While the store is away nothing is acknowledged."""
        if self._dialogue.away_since is None:
            self.counters.acked += self._link.settle(full=full)

    def _run_timers(self, now: float) -> int:
        """Step 8."""
        number = self._timers.run(now)
        if now + _TOGETHER >= self._next_watch:
            waits = self._dispatcher.out or self._dispatcher.lanes.waiting
            self._next_watch = now + (_WATCH_PAUSE if waits else _LONGEST_WAIT)
            self._dispatcher.measure(now)
            self._dispatcher.collect_early(self._resolve)
            for task, seconds in self._dispatcher.overdue(now):
                stuck = HandlerStuck(task.handler_name, task.message.id, round(seconds, 1))
                self._telemetry.emit(stuck)
                self._ending.begin(now + self.settings.drain_timeout, Finish.STUCK)
            try:
                self._settle(full=True)
                self._link.keep_alive()
            except BrokerUnreachable as error:
                self._link_lost(error)
        if now + _TOGETHER >= self._next_beat:
            self._next_beat = now + (_BURST_BEAT if self.settings.burst else _BEAT)
            self.on_beat()
        return number

    def _link_lost(self, error: BrokerUnreachable) -> None:
        """Forget what the dead connection delivered; it comes again on the next one."""
        self.counters.reconnects += 1
        self._gatherer.forget()
        self._link.drop(error, self._clock())
        self._waiter.follow(())
        self._dispatcher.forget()

    def is_idle(self) -> bool:
        """Tell whether nothing waits or runs here, and the queues of its shards are empty."""
        parts = self._dispatcher, self._dialogue, self._detour, self._link
        try:
            return not self._timers.has_work and is_idle(*parts)
        except BrokerUnreachable as error:
            self._link_lost(error)
            return False

    def statistics(self) -> dict[str, object]:
        """Return counters and gauges, ready for JSON."""
        now = self._clock()
        try:
            self._census.survey(now)
        except BrokerUnreachable as error:
            self._link_lost(error)
        numbers = statistics(self.counters, self._dispatcher, self._dialogue, self._link)
        shards = self._census.shards(now)
        return {**numbers, "shards": shards, "idle": self.settings.burst and self.is_idle()}

    def dump(self) -> Iterator[str]:
        """Yield the stack of each thread, and what each run has in flight."""
        return dump(self._dispatcher, self._clock())

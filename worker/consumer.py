"""The tick: the loop of one consumer process, from the broker's socket and back to it.

One I/O thread owns the consuming connection, the publishing connection and the dedup store. It
never runs user code, so heartbeats never starve. Each tick moves batches through the same eight
steps, and a message moves through them once:

1. wait      for the broker, for finished work, for the supervisor, for the next timer
2. gather    deliveries, without blocking; decode them; put tasks into lanes
3. collect   outcomes that the pools finished
4. converse  one round trip to the dedup store: completions, releases, renewals, claims
5. route     fresh tasks to a pool; duplicates to settlement; busy ones wait in their lane
6. publish   children, dead letters, parked messages; take the confirms that have come
7. settle    acknowledge what is finished, one frame a shard
8. timers    heartbeats, retries that are due, time limits, the beat to the supervisor

The fate of a task is decided in :meth:`Consumer._resolve` alone, and a delivery is acknowledged in
:meth:`Consumer._settled` alone.
"""

from __future__ import annotations

import heapq
import os
import selectors
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from itertools import count
from random import Random
from time import monotonic
from typing import TYPE_CHECKING, Any

from worker.codec import Codec
from worker.dedup.base import OWNER_BYTES, Answer, StoreOptions, Verdict
from worker.dedup.open import open_store
from worker.detour import Detour
from worker.dialogue import Dialogue, Replies
from worker.errors import BrokerUnreachable
from worker.executor import Delivery, Executor, Task
from worker.intake import Intake
from worker.link import Link
from worker.outage import Breaker
from worker.outcome import Abandoned, DeadLetter, Done, RetryLater
from worker.parking import Parking
from worker.pool.aio import LoopPool
from worker.pool.threads import ThreadPool
from worker.sharding.lanes import Lane, Lanes, Run
from worker.telemetry import (
    AttemptFailed,
    Counters,
    HandlerStuck,
    HeldTooMuch,
    KeyParked,
    OutageBegan,
    OutageEnded,
    SecondEffect,
    ShardHalted,
    SuspectFound,
)

if TYPE_CHECKING:
    from worker.app import App
    from worker.config import Settings
    from worker.dedup.base import DedupStore
    from worker.transport.inbound import ShardChannel

_FETCH = 1000
_LONGEST_WAIT = 0.5
_BEAT = 1.0
_BURST_BEAT = 0.1
_WATCH_PAUSE = 0.25
_TIMEOUT_GRACE = 0.5
#: Seconds of work that may be claimed ahead of what runs: enough to keep the pools fed between two
#: round trips, little enough that a crash leaves few claims.
_AHEAD = 0.02
_MOST_AHEAD = 1024
_LONGEST_RUN = 64
_RUN_SECONDS = 0.005
_MOST_UNCONFIRMED = 2000


class Finish(Enum):
    """How a consumer ended."""

    #: Everything that was begun is finished, recorded and acknowledged.
    DRAINED = "drained"
    #: The drain deadline passed, or it was stopped, with work under way.
    ABANDONED = "abandoned"
    #: A handler ignored its time limit; all else has drained. The process must be replaced.
    STUCK = "stuck"
    #: It cannot go on; the log says why.
    FAILED = "failed"


class Consumer:
    """Consumes ``shards`` of ``app``'s service. One a process; one thread calls all of it.

    ``owner`` names this life of this process in the dedup store. ``fences`` gives the fence of
    each shard. ``store`` and ``clock`` are for tests.
    """

    def __init__(  # noqa: PLR0913 - the seams of the runtime
        self,
        app: App,
        settings: Settings,
        *,
        shards: Sequence[int],
        owner: bytes | None = None,
        fences: dict[int, int] | None = None,
        store: DedupStore | None = None,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.app = app
        self.settings = settings
        self.owner = owner or os.urandom(OWNER_BYTES)
        self.counters = Counters()
        #: Called about once a second while the loop is healthy.
        self.on_beat: Callable[[], None] | None = None
        self._clock = clock
        self._telemetry = app.telemetry
        self._shard_numbers = tuple(shards)
        self._fences = dict(fences or {})
        self._store = store
        self._random = Random()  # noqa: S311 - spreads retries, guards nothing
        self._lanes: Lanes[Task] = Lanes()
        self._finished: deque[Run[Task]] = deque()
        self._out: set[Run[Task]] = set()  # runs that are claimed for or running
        self._in_flight = 0  # tasks of those runs
        self._solo: Run[Task] | None = None  # the run of a suspect, while it is out
        self._suspects: deque[tuple[Task, Lane[Task]]] = deque()
        self._breakers: dict[str, Breaker] = {}
        self._stuck: set[Run[Task]] = set()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._timer_numbers = count()
        self._crowded: set[int] = set()
        self._rate = 0.0
        self._rate_since = 0.0
        self._rate_count = 0
        self._idle_poll = 0.001
        self._next_beat = 0.0
        self._next_watch = 0.0
        self._sleeping = False
        self._drain_deadline: float | None = None
        self._ending: Finish | None = None
        self._finish: Finish | None = None
        self._selector = selectors.DefaultSelector()
        self._wake_in, self._wake_out = os.pipe()
        os.set_blocking(self._wake_in, False)
        os.set_blocking(self._wake_out, False)
        self._selector.register(self._wake_in, selectors.EVENT_READ, self._drain_pipe)
        self._link_filenos: list[int] = []
        self._lifespan: Any = None

    # -- life ------------------------------------------------------------------------------------

    def open(self) -> None:
        """Connect to the store and the broker, declare, start the pools and the consumers.

        Raises Unreachable where a server does not answer, ConfigurationError where something is
        set wrong.
        """
        settings, app = self.settings, self.app
        if self._store is None:
            options = StoreOptions(settings.claim_ttl, settings.retention, settings.dedup_timeout)
            self._store = open_store(settings.dedup_url, options)
        topology = app.topology(settings)
        codec = Codec.of(app.name, settings)
        state = None
        if app.lifespan_manager is not None:
            self._lifespan = app.lifespan_manager()
            state = self._lifespan.__enter__()
        self._executor = Executor(app, codec, state, self._random)
        self._executor.fences = self._fences
        self._intake = Intake(app, codec)
        self._dialogue = Dialogue(
            self._store, self.owner, settings.claim_ttl, self._telemetry, self._clock
        )
        self._parking = Parking(self._store, app.name)
        self._parking.load()
        name = f"qworker {app.name} {os.getpid()}"
        self._link = Link(
            settings, topology, self._shard_numbers, name, self._telemetry, self._random
        )
        self._detour = Detour(
            app.name,
            self._link,
            self._dialogue,
            self._parking,
            self._telemetry,
            self.counters,
            self._settled,
            self._later,
        )
        self._link.open()
        self._watch_link()
        size = settings.concurrency
        kinds = {handler.is_async for handler in app.handlers.values()}
        self._threads = (
            ThreadPool(self._executor, size, self._finished, self._wake) if False in kinds else None
        )
        self._loop = (
            LoopPool(self._executor, size, self._finished, self._wake) if True in kinds else None
        )

    def run(self) -> Finish:
        """Tick until drained, stopped or failed; then close everything and tell how it ended."""
        try:
            while self._finish is None:
                self.tick(_LONGEST_WAIT)
        finally:
            self.close()
        return self._finish or Finish.FAILED

    def close(self) -> None:
        """Disconnect; what is not acknowledged goes back in order. Idempotent."""
        self._link.close()
        for pool in (self._threads, self._loop):
            if pool is not None:
                pool.close()
        if self._store is not None:
            self._store.close()
        self._selector.close()
        if self._lifespan is not None:
            lifespan, self._lifespan = self._lifespan, None
            lifespan.__exit__(None, None, None)

    def drain(self, deadline: float) -> None:
        """Begin nothing new; finish, record and acknowledge what runs, until ``deadline``."""
        self._begin_drain(deadline, Finish.DRAINED)

    def _begin_drain(self, deadline: float, ending: Finish) -> None:
        if self._drain_deadline is None or deadline < self._drain_deadline:
            self._drain_deadline = deadline
        self._ending = self._ending or ending
        self._executor.draining = True
        self._suspects.clear()
        self._lanes.clear()

    def stop(self) -> None:
        """End now; claims of what runs are left to expire."""
        self._finish = Finish.ABANDONED

    def bury(self, owners: Iterable[bytes]) -> None:
        """Take over the claims of these consumers at once: their processes are gone."""
        self._dialogue.bury(owners)

    def watch(self, fileobj: Any, callback: Callable[[], None]) -> None:  # noqa: ANN401
        """Call ``callback`` in the loop whenever ``fileobj`` is readable."""
        self._selector.register(fileobj, selectors.EVENT_READ, callback)

    # -- the tick --------------------------------------------------------------------------------

    def tick(self, longest: float) -> bool:
        """Go once through the eight steps, waiting at most ``longest`` seconds in the first.

        Returns whether there was anything to do.
        """
        self._wait(longest)
        now = self._clock()
        busy = 0
        try:
            if self._link.ensure(now):
                self._watch_link()
            busy += self._gather()
            busy += self._collect(now)
            self._take(now)
            replies = self._dialogue.exchange()
            if replies is not None:
                busy += 1
                self._route(replies, now)
            busy += self._link.publish()
            if not self._dialogue.away_since:
                self.counters.acked += self._link.settle()
        except BrokerUnreachable as error:
            self._link_lost(error)
        busy += self._run_timers(now)
        if self._drain_deadline is not None:
            self._finish_drain(now)
        self._idle_poll = 0.001 if busy else min(self._idle_poll * 1.5, 0.02)
        return bool(busy)

    def _wait(self, longest: float) -> None:
        """Step 1: sleep until something is to be done."""
        now = self._clock()
        until = now + longest
        if self._timers:
            until = min(until, self._timers[0][0])
        until = min(until, self._next_beat, self._next_watch)
        if self._dialogue.busy and self._dialogue.next_try:
            until = min(until, self._dialogue.next_try)
        if not self._link.is_up:
            until = min(until, self._link.next_try)
        for breaker in self._breakers.values():
            if breaker.is_open and not breaker.probing:
                until = min(until, max(breaker.next_probe, now + 0.01))
        timeout = max(0.0, until - now)
        if self._link.is_polled:
            timeout = min(timeout, self._idle_poll)
        self._sleeping = True
        if self._finished or self._link.pending() or longest <= 0:
            timeout = 0.0
        for key, _ in self._selector.select(timeout):
            if key.data is not None:
                key.data()
        self._sleeping = False

    def _wake(self) -> None:
        """Wake the loop; any thread may call it, and most calls cost one comparison."""
        if self._sleeping:
            self._sleeping = False
            try:
                os.write(self._wake_out, b"\0")
            except (BlockingIOError, OSError):
                pass  # it is awake, or gone

    def _drain_pipe(self) -> None:
        try:
            os.read(self._wake_in, 4096)
        except BlockingIOError:
            pass

    def _watch_link(self) -> None:
        for number in self._link_filenos:
            try:
                self._selector.unregister(number)
            except (KeyError, ValueError, OSError):
                pass  # the descriptor went with its connection
        self._link_filenos = self._link.filenos()
        for number in self._link_filenos:
            self._selector.register(number, selectors.EVENT_READ, None)

    def _gather(self) -> int:
        """Step 2: take deliveries off the broker and put their tasks into lanes."""
        if self._drain_deadline is not None:
            return 0
        fetched = self._link.fetch(_FETCH)
        read, lanes = self._intake.read, self._lanes
        for channel, arrival in fetched:
            delivery = Delivery(channel, arrival.delivery_info["delivery_tag"], arrival)
            tasks = read(delivery, arrival)
            if isinstance(tasks, DeadLetter):
                self._detour.dead_letter_delivery(delivery, tasks)
                continue
            message = tasks[0].message
            if self._parking and self._parking.holds(message):
                for _ in tasks:
                    self._detour.park(delivery)
            elif len(tasks) == 1:
                lanes.add(tasks[0], message.key, message.shard)
            else:
                lanes.add_together(tasks, message.key, message.shard)
        self.counters.received += len(fetched)
        return len(fetched)

    def _collect(self, now: float) -> int:
        """Step 3: take the outcomes of finished runs and free their lanes."""
        finished = self._finished
        number = 0
        while finished:
            run = finished.popleft()
            number += 1
            self._out.discard(run)
            self._stuck.discard(run)
            self._in_flight -= len(run.tasks)
            again = [
                task
                for task, outcome in zip(run.tasks, run.outcomes, strict=True)
                if self._resolve(task, outcome, run.lane, now)
            ]
            self._give_back(run.lane, [*again, *run.kept])
        return number

    def _give_back(self, lane: Lane[Task], tasks: Sequence[Task]) -> None:
        """End a lane's run; tasks return to it unless their delivery died."""
        if self._drain_deadline is not None:
            tasks = ()
        self._lanes.finish(lane, [t for t in tasks if not t.delivery.channel.closed])

    def _take(self, now: float) -> None:
        """Step 4, first half: claim for the next runs, no further ahead than work flows."""
        if self._drain_deadline is not None or self._dialogue.away_since is not None:
            return
        if self._solo in self._out:
            return
        if self._suspects:
            if self._in_flight == 0:
                self._take_suspect()
            return
        if self._link.outstanding > _MOST_UNCONFIRMED:
            return
        concurrency = self.settings.concurrency
        room = concurrency + min(int(self._rate * _AHEAD) + 1, _MOST_AHEAD) - self._in_flight
        longest = max(1, min(_LONGEST_RUN, int(self._rate * _RUN_SECONDS / concurrency) + 1))
        if room > 0 and self._lanes.waiting:
            for run in self._lanes.take(room, longest):
                self._claim(run)
        for name, breaker in self._breakers.items():
            if breaker.is_open and not breaker.probing and now >= breaker.next_probe:
                probe = self._lanes.take_probe(name)
                if probe is not None:
                    breaker.probing = True
                    self._claim(probe)

    def _claim(self, run: Run[Task], *, solo: bool = False) -> None:
        lane = run.lane
        if any(task.delivery.channel.closed for task in run.tasks):
            run.tasks = [task for task in run.tasks if not task.delivery.channel.closed]
        if self._parking:
            for task in [t for t in run.tasks if self._parking.holds(t.message)]:
                run.tasks.remove(task)
                self._detour.park(task.delivery)
        if not run.tasks:
            self._lanes.finish(lane)
            return
        self._out.add(run)
        self._in_flight += len(run.tasks)
        self._dialogue.claim(run, solo=solo)

    def _take_suspect(self) -> None:
        """Claim the next suspect, alone: if the process dies, it is known of what."""
        while self._suspects:
            task, lane = self._suspects.popleft()
            self._lanes.resume(lane, task.handler_name)
            if task.delivery.channel.closed:
                continue
            run = self._lanes.take_one(task, lane)
            if run is not None:
                self._solo = run
                self._claim(run, solo=True)
                return

    def _route(self, replies: Replies, now: float) -> None:
        """Step 5: act on the store's answers."""
        for task, answer in replies.completed:
            if answer is Answer.STALE:
                # Another owner has it. It will be done by them, or is ours to record again.
                self.counters.stale += 1
                if not task.delivery.channel.closed:
                    self._lanes.add(task, task.message.key, task.message.shard)
                continue
            if answer is Answer.ALREADY_DONE and not replies.repeated and task.effective:
                self._telemetry.emit(SecondEffect(task.handler_name, task.message.id))
            self.counters.completed += 1
            self._settled(task.delivery)
        plain: list[Run[Task]] = []
        coroutines: list[Run[Task]] = []
        for run, verdicts in replies.claimed:
            ready, run.kept = self._sort(run, verdicts, now)
            self._in_flight -= len(run.tasks) - len(ready)
            if ready:
                run.tasks = ready
                (coroutines if ready[0].is_async else plain).append(run)
            else:
                self._out.discard(run)
                self._give_back(run.lane, run.kept)
        if plain and self._threads is not None:
            self._threads.submit(plain)
        if coroutines and self._loop is not None:
            self._loop.submit(coroutines)

    def _sort(
        self, run: Run[Task], verdicts: list[Verdict], now: float
    ) -> tuple[list[Task], list[Task]]:
        """Return what of a claimed run may run now, and what must go back to its lane."""
        ready: list[Task] = []
        kept: list[Task] = []
        limit = self.settings.crash_limit
        for task, verdict in zip(run.tasks, verdicts, strict=True):
            answer = verdict.answer
            if answer is Answer.FRESH:
                if kept:  # an earlier one of its lane has to go first
                    self._dialogue.release(task, refund=True)
                    kept.append(task)
                elif task.effective:
                    self._dialogue.complete(task)
                elif verdict.crashes >= limit:
                    self._detour.dead_letter(task, _crashed(verdict.crashes, task))
                else:
                    ready.append(task)
            elif answer is Answer.DUPLICATE:
                self.counters.duplicates += 1
                self._settled(task.delivery)
            elif answer is Answer.CONFLICT:
                reason = "its id was done before with another payload"
                self._detour.dead_letter(task, DeadLetter(reason), record=False)
            elif kept:
                kept.append(task)
            else:
                kept.append(task)
                if answer is Answer.SUSPECT:
                    self._suspect(task, run.lane, verdict.crashes)
                elif all(task.record != other.record for other in ready):
                    self.counters.busy += 1
                    task.busy += 1
                    pause = min(max(verdict.wait, 0.005), 0.005 * 2 ** min(task.busy, 6))
                    self._hold(task, run.lane, now + pause)
        return ready, kept

    # -- the fate of a task ------------------------------------------------------------------------

    def _resolve(self, task: Task, outcome: Any, lane: Lane[Task], now: float) -> bool:  # noqa: ANN401
        """Decide what an outcome means; tell whether the task goes back to its lane."""
        match outcome:
            case Done(children):
                self.counters.executed += 1
                self._rate_count += 1
                task.effective = True
                self._succeeded(task)
                if children:
                    self._detour.publish_children(task, children)
                else:
                    self._dialogue.complete(task)
                return False
            case Abandoned():
                self._dialogue.release(task, refund=True)
                return True
            case RetryLater(delay, reason):
                self.counters.executed += 1
                return self._failed(task, DeadLetter(reason, exhausted=True), delay, lane, now)
            case DeadLetter(exhausted=True):
                self.counters.executed += 1
                return self._failed(task, outcome, None, lane, now)
            case DeadLetter():
                self._succeeded(task)
                self._detour.dead_letter(task, outcome)
                return False
        raise AssertionError(f"no such outcome: {outcome!r}")

    def _succeeded(self, task: Task) -> None:
        breaker = self._breakers.get(task.handler_name)
        if breaker is None:
            return
        opened = breaker.opened_at
        if breaker.succeed() and opened is not None:
            self._lanes.unblock(task.handler_name)
            seconds = round(self._clock() - opened, 3)
            self._telemetry.emit(OutageEnded(task.handler_name, seconds))

    def _failed(
        self, task: Task, last: DeadLetter, delay: float | None, lane: Lane[Task], now: float
    ) -> bool:
        """A handler failed: an outage, another attempt after ``delay``, or the end (None)."""
        name, channel = task.handler_name, task.delivery.channel
        breaker = self._breakers.get(name)
        if breaker is None:
            breaker = self._breakers[name] = Breaker(self.settings.outage_after)
        if breaker.fail(task.record, now):
            self._lanes.block(name)
            self._telemetry.emit(OutageBegan(name, breaker.failures, last.reason))
        if channel.closed or self._drain_deadline is not None:
            self._dialogue.release(task, refund=False)
            return False
        if breaker.is_open:  # the message is not to blame
            self._dialogue.release(task, refund=True)
            return True
        if delay is not None and channel.held >= max(1, channel.prefetch // 2):
            self._note_crowded(channel)
            delay = None
        if delay is None:
            return self._exhausted(task, last)
        self.counters.retried += 1
        self._telemetry.emit(
            AttemptFailed(name, task.message.id, task.attempt, round(delay, 3), last.reason)
        )
        if channel.held * 4 >= channel.prefetch and self._detour.leave(task, delay):
            return False
        self._dialogue.release(task, refund=False)
        channel.held += 1
        self._hold(task, lane, now + delay, channel)
        return True

    def _exhausted(self, task: Task, last: DeadLetter) -> bool:
        policy = task.handler.retry.exhausted
        message, channel = task.message, task.delivery.channel
        if policy == "halt_shard":
            self._dialogue.release(task, refund=False)
            self._link.close_shard(channel)
            self._telemetry.emit(
                ShardHalted(channel.shard, task.handler_name, message.id, last.reason)
            )
            return False
        if policy == "park_key" and message.key is not None:
            self._parking.park(message)
            self._telemetry.emit(KeyParked(task.handler_name, message.key, last.reason))
            self._dialogue.release(task, refund=True)
            self._detour.park(task.delivery, last.reason, task)
            return False
        self._detour.dead_letter(task, last)
        return False

    def _hold(
        self, task: Task, lane: Lane[Task], due: float, channel: ShardChannel | None = None
    ) -> None:
        """Let ``task``'s handler wait in its lane until ``due``."""
        epoch, name = self._link.epoch, task.handler_name
        self._lanes.hold(lane, name)

        def resume() -> None:
            if channel is not None:
                channel.held -= 1
            if epoch == self._link.epoch:
                self._lanes.resume(lane, name)

        self._at(due, resume)

    def _suspect(self, task: Task, lane: Lane[Task], crashes: int) -> None:
        self.counters.suspects += 1
        self._lanes.hold(lane, task.handler_name)
        self._suspects.append((task, lane))
        self._telemetry.emit(SuspectFound(task.handler_name, task.message.id, crashes))

    def _settled(self, delivery: Delivery) -> None:
        """A task of ``delivery`` needs nothing more; acknowledge when that holds for all."""
        delivery.open_tasks -= 1
        if delivery.open_tasks == 0:
            delivery.channel.settlement.finish(delivery.tag)

    # -- step 8: timers ----------------------------------------------------------------------------

    def _at(self, due: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (due, next(self._timer_numbers), call))

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self._at(self._clock() + seconds, call)

    def _run_timers(self, now: float) -> int:
        number = 0
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
            number += 1
        if now >= self._next_watch:
            self._next_watch = now + _WATCH_PAUSE
            self._watch_time_limits()
            self._measure_rate(now)
            try:
                self._link.keep_alive()
            except BrokerUnreachable as error:
                self._link_lost(error)
        if now >= self._next_beat:
            self._next_beat = now + (_BURST_BEAT if self.settings.burst else _BEAT)
            if self.on_beat is not None:
                self.on_beat()
        return number

    def _measure_rate(self, now: float) -> None:
        """Estimate executions a second, by which the claims ahead are bounded."""
        elapsed = now - self._rate_since
        if elapsed <= 0:
            return
        recent = self._rate_count / elapsed
        self._rate = recent if recent > self._rate else (self._rate + recent) / 2
        self._rate_since, self._rate_count = now, 0

    def _watch_time_limits(self) -> None:
        """Notice threads that ignore their time limit: the process must be replaced."""
        real = monotonic()
        for run in self._out - self._stuck:
            for task in run.tasks:
                limit, started = task.handler.timeout, task.started
                if limit is None or not started:
                    continue
                grace = _TIMEOUT_GRACE if not task.is_async else _TIMEOUT_GRACE + limit
                if real > started + limit + grace:
                    self._stuck.add(run)
                    seconds = round(real - started, 1)
                    self._telemetry.emit(HandlerStuck(task.handler_name, task.message.id, seconds))
                    deadline = self._clock() + self.settings.drain_timeout
                    self._begin_drain(deadline, Finish.STUCK)

    def _link_lost(self, error: BrokerUnreachable) -> None:
        """Forget what the dead connection delivered; it comes again on the next one."""
        self.counters.reconnects += 1
        self._link.drop(error, self._clock())
        self._watch_link()
        self._lanes.clear()
        self._suspects.clear()
        self._crowded.clear()

    def _note_crowded(self, channel: ShardChannel) -> None:
        if channel.shard not in self._crowded:
            self._crowded.add(channel.shard)
            self._telemetry.emit(HeldTooMuch(channel.shard, channel.held, channel.prefetch))

    def _finish_drain(self, now: float) -> None:
        """End the drain once nothing is under way, or its deadline passed."""
        assert self._drain_deadline is not None  # noqa: S101 - the caller looked
        running = self._out - self._stuck
        if not running and not self._dialogue.busy and not self._detour.under_way:
            try:
                self.counters.acked += self._link.settle(everything=True)
            except BrokerUnreachable:
                pass  # what was not acknowledged comes again, as a duplicate
            self._finish = Finish.STUCK if self._stuck else self._ending
        elif now >= self._drain_deadline:
            self._finish = Finish.STUCK if self._stuck else Finish.ABANDONED

    # -- what others may know ----------------------------------------------------------------------

    def is_idle(self) -> bool:
        """Tell whether nothing waits or runs here, and the queues of its shards are empty."""
        if (
            self._out
            or self._lanes.waiting
            or self._timers
            or self._dialogue.busy
            or self._detour.under_way
            or not self._link.is_up
            or any(channel.settlement.unsettled for channel in self._link.shards)
        ):
            return False
        try:
            return not any(self._link.depths().values())
        except BrokerUnreachable as error:
            self._link_lost(error)
            return False

    def statistics(self) -> dict[str, object]:
        """Return counters and gauges, ready for JSON."""
        return {
            **self.counters.as_dict(),
            "in_flight": self._in_flight,
            "waiting": self._lanes.waiting,
            "lanes": len(self._lanes),
            "held": sum(channel.held for channel in self._link.shards),
            "unsettled": sum(c.settlement.unsettled for c in self._link.shards),
            "outages": [name for name, b in self._breakers.items() if b.is_open],
            "connected": self._link.is_up,
            "store_away": self._dialogue.away_since is not None,
            "idle": self.settings.burst and self.is_idle(),
        }

    def dump(self) -> str:
        """Return the stack of every thread, and what is in flight."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        lines = []
        for ident, frame in sys._current_frames().items():  # noqa: SLF001 - the documented way
            lines.append(f"thread {names.get(ident, ident)}")
            lines += traceback.format_stack(frame)
        for run in self._out:
            for task in run.tasks:
                since = f"for {monotonic() - task.started:.1f} s" if task.started else "waiting"
                lines.append(
                    f"in flight: {task.handler.full_name} {task.message.id}"
                    f" key={task.message.key} attempt={task.attempt} {since}"
                )
        return "\n".join(line.rstrip("\n") for line in lines)


def _crashed(crashes: int, task: Task) -> DeadLetter:
    limit = task.handler.timeout
    also = f", or ran past its {limit} s" if limit is not None else ""
    return DeadLetter(
        f"crashed the worker: {crashes} processes died while they ran it alone or among"
        f" others{also}"
    )

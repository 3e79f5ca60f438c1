"""Which tasks run next: claims for the heads of the lanes, and what the store's answers mean.

Claims are made late: only for what will begin within a few milliseconds, so that a crash leaves
few of them behind. A *suspect* (its last owner died with it) runs alone, as far as that can be had
in a moment, so that the next crash names its culprit (``suspects.py``).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from worker.dedup.base import Answer, Verdict
from worker.gaps import Gaps
from worker.holds import Holds
from worker.outcome import ABANDONED, DONE, DeadLetter, Early, Superseded
from worker.parkedlanes import ParkedLanes
from worker.probing import Probes
from worker.sharding.lanes import Lane, Lanes, Run
from worker.suspects import Suspects
from worker.telemetry import SuspectFound
from worker.timelimits import TimeLimits

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from worker.config import Settings
    from worker.detour import Detour
    from worker.dialogue import Dialogue, Replies
    from worker.executor import Executor
    from worker.parking import Parking
    from worker.pool import PoolMaker
    from worker.task import Delivery, Task
    from worker.telemetry import Counters, Telemetry
    from worker.timers import Timers

    #: Tells whether a task must run again, from what became of it in its lane.
    Resolve = Callable[[Task, object, Lane[Task]], bool]

#: Claimed ahead of what runs is the work of some ticks, within these seconds and tasks: enough to
#: feed the pools until the next tick's claims are answered, so little that a crash leaves few.
_TICKS_AHEAD = 2
_LEAST_AHEAD, _FURTHEST_AHEAD, _MOST_AHEAD = 0.02, 0.05, 1024
_TICK_SHARE = 0.125
#: Seconds of work, and tasks, that one run may hold.
_RUN_SECONDS = 0.005
_LONGEST_RUN = 64
_FIRST_BUSY_PAUSE = 0.005
_BUSY_DOUBLINGS = 6
#: Why a handler is blocked, where not for an outage.
_PAUSED = "paused"


class Dispatcher:
    """Lanes, claims and pools of one consumer. I/O thread only, but for the pools."""

    def __init__(  # noqa: PLR0913 - the parts of the consumer that it stands between
        self,
        *,
        settings: Settings,
        executor: Executor,
        dialogue: Dialogue,
        detour: Detour,
        parking: Parking,
        timers: Timers,
        telemetry: Telemetry,
        counters: Counters,
        settled: Callable[[Delivery], None],
        wake: Callable[[], None],
        kinds: set[bool],
        pools: tuple[PoolMaker, PoolMaker],
    ) -> None:
        self._settings = settings
        self._executor = executor
        self._dialogue = dialogue
        self._detour = detour
        self._parking = parking
        self._telemetry = telemetry
        self._counters = counters
        self._settled = settled
        self.lanes: Lanes[Task] = Lanes()
        #: Runs that the pools have finished; they append, the I/O thread takes.
        self.finished: deque[Run[Task]] = deque()
        #: Runs that are claimed for or running.
        self.out: set[Run[Task]] = set()
        self.in_flight = 0
        self.probes = Probes(self.lanes, self.out, settings.outage_after)
        self._suspects = Suspects(self.lanes, self.out, dialogue)
        self._parked_lanes = ParkedLanes(self.lanes, self._suspects, parking, detour)
        self.holds = Holds(self.lanes, timers, self._parked_lanes.clear)
        self.gaps = Gaps(self.lanes, timers, dialogue, executor.clock)
        self._executions = 0
        self._busy_seconds = 0.0
        #: Executions a second, and the seconds that one takes; both as measured of late.
        self._rate = 0.0
        self._seconds = _RUN_SECONDS
        self._rate_since = 0.0
        #: Seconds that a tick takes, without its wait.
        self._tick = 0.0
        size = settings.concurrency
        threads, loop = pools
        self._threads = threads(executor, size, self.finished, wake) if False in kinds else None
        self._loop = loop(executor, size, self.finished, wake) if True in kinds else None
        self.limits = TimeLimits(self._loop)

    def add(self, tasks: Sequence[Task]) -> None:
        """Put the tasks of one message into the lane of its key."""
        message = tasks[0].message
        if len(tasks) == 1:
            self.lanes.add(tasks[0], message.key, message.shard)
        else:
            self.lanes.add_together(tasks, message.key, message.shard)

    def add_or_park(self, tasks: Sequence[Task]) -> None:
        """Put the tasks of one message into the lane of its key, or park them behind its tasks."""
        self.add(tasks)
        message = tasks[0].message
        if self._parking.holds(message):
            lane = self.lanes.find(message.key, message.shard)
            if lane is not None:
                self._parked_lanes.clear(lane)

    def collect(self, resolve: Resolve) -> int:
        """Take finished runs back; ``resolve`` tells of each task whether it must run again."""
        number = 0
        while self.finished:
            run = self.finished.popleft()
            number += 1
            self.out.discard(run)
            self.limits.stuck.discard(run)
            self.in_flight -= len(run.tasks)
            self._executions += len(run.tasks)
            self._busy_seconds += run.seconds
            ended: Iterable[tuple[Task, object]] = zip(run.tasks, run.outcomes, strict=True)
            if run.taken:
                ended = [*run.passed, *[*ended][run.taken :]]
            again = [task for task, outcome in ended if resolve(task, outcome, run.lane)]
            self._give_back(run.lane, [*again, *run.kept])
        return number

    def collect_early(self, resolve: Resolve) -> None:
        """Act on what is done of runs that still run: a slow task keeps none before it waiting.

        What is done and not recorded would be done again after a crash. What has to wait goes back
        to its lane with the run; what is done behind it is done all the same.
        """
        for run in self.out:
            outcomes = run.outcomes
            while run.taken < len(outcomes):
                task, outcome = run.tasks[run.taken], outcomes[run.taken]
                if isinstance(outcome, Early):
                    run.passed.append((task, outcome))
                elif _is_over(outcome):
                    resolve(task, outcome, run.lane)
                else:
                    break
                run.taken += 1

    def abandon(self) -> None:
        """Give back what is under way, since the process is about to end; ``collect_early`` before.

        Left without a word it would count as a crash when somebody takes it over. What may still
        run is nobody's for as long as a claim lives. What came back without having run, and what
        waits in a run behind another, never began and never will: nothing begins in a drain. A
        handler that ignores its time limit is left as it is, to count.
        """
        waiting = {task for run in self.out for task in _not_begun(run)}
        stuck = {t for run in self.limits.stuck for t in run.tasks[run.taken : run.taken + 1]}
        for task in self._dialogue.owned - stuck:
            begun = task not in waiting
            wait = self._settings.claim_ttl if begun else 0.0
            self._dialogue.release(task, refund=not begun, wait=wait)

    def take(self, now: float) -> None:
        """Claim for the next runs, no further ahead than work flows."""
        if self._suspects:
            while (suspect := self._suspects.next(now)) is not None:
                self._claim(suspect, solo=True)
            if self._suspects.want_quiet:
                return
        concurrency = self._settings.concurrency
        ahead = self._rate * min(max(_LEAST_AHEAD, self._tick * _TICKS_AHEAD), _FURTHEST_AHEAD)
        room = concurrency + min(int(ahead) + 1, _MOST_AHEAD) - self.in_flight
        if room > 0 and self.lanes.waiting:
            for run in self.lanes.take(room, self._longest_run):
                self._claim(run)
        for probe in self.probes.due(now):
            self._claim(probe)

    def route(self, replies: Replies, now: float) -> bool:
        """Act on the answers to claims: what is fresh goes to a pool.

        Tells whether lanes were freed without running anything (by duplicates, say): nothing will
        wake the loop to take what waits behind.
        """
        for task in replies.judged:
            self.gaps.passed(task)
        freed = False
        plain: list[Run[Task]] = []
        coroutines: list[Run[Task]] = []
        for run, verdicts in replies.claimed:
            ready, run.kept = self._sort(run, verdicts, now)
            self.in_flight -= len(run.tasks) - len(ready)
            if ready:
                run.tasks = ready
                (coroutines if ready[0].is_async else plain).append(run)
            else:
                freed = True
                self.out.discard(run)
                self._give_back(run.lane, run.kept)
        if plain and self._threads is not None:
            self._threads.submit(plain)
        if coroutines and self._loop is not None:
            self._loop.submit(coroutines)
        if replies.repeated:  # since it was asked, what may begin may have become less
            self.recall()
        return freed

    def pause(self, handlers: Collection[str]) -> None:
        """Begin nothing of these handlers, and of all others again."""
        before, now = self.paused, frozenset(handlers)
        self._executor.paused = self.probes.paused = now
        for name in now - before:
            self.lanes.block(name, _PAUSED)
        for name in before - now:
            self.lanes.unblock(name, _PAUSED)
        self._suspects.drop(lambda task: task.handler_name in now)
        self.recall()

    @property
    def next_due(self) -> float:
        """When time alone lets something be claimed: a probe, a suspect or what it keeps back."""
        return min(self.probes.next_due, self._suspects.next_due)

    @property
    def paused(self) -> frozenset[str]:
        """The handlers of which nothing begins."""
        return self._executor.paused

    def runs_paused(self) -> bool:
        """Tell whether something of a paused handler is claimed for or runs."""
        paused = self.paused
        return any(task.handler_name in paused for run in self.out for task in run.tasks)

    def waiting_paused(self) -> int:
        """Return how many tasks here wait for handlers that are paused."""
        found = (self.lanes.waiting_for(name) for name in self.paused)
        return sum(len(tasks) for lanes in found for _, tasks in lanes)

    def forget(self) -> None:
        """Forget every task that does not run: its delivery is dead, or a drain began."""
        self.holds.forget()
        self.lanes.clear()
        self._suspects.clear()

    def forget_shard(self, shard: int) -> None:
        """Forget every task of a shard that does not run: its channel is leaving.

        A hold of before that ends later finds a lane to which nothing comes any more: its key has
        another one once the shard is taken again.
        """
        self._suspects.drop(lambda task: task.delivery.channel.leaving)
        self.lanes.clear_shard(shard)

    def recall(self) -> None:
        """Let what is claimed, has not begun, and must not any more, come back from behind others.

        Called whenever less may begin than before: at a pause, a drain, when a shard is given up.
        """
        for pool in (self._threads, self._loop):
            if pool is not None:
                pool.recall()

    def shards(self) -> set[int]:
        """Return the shards of which something is claimed for or runs."""
        return {run.lane.shard for run in self.out}

    def measure(self, now: float) -> None:
        """Estimate executions a second, and what one takes: they bound the claims ahead."""
        if self._executions:
            self._seconds = (self._seconds + self._busy_seconds / self._executions) / 2
        self._busy_seconds = 0.0
        elapsed = now - self._rate_since
        if elapsed > 0:
            recent = self._executions / elapsed
            self._rate = recent if recent > self._rate else (self._rate + recent) / 2
            self._rate_since, self._executions = now, 0

    def ticked(self, seconds: float) -> None:
        """Note how long a tick took, without its wait: meanwhile the pools get nothing new."""
        self._tick += (seconds - self._tick) * _TICK_SHARE

    @property
    def _longest_run(self) -> int:
        """How many tasks of a key may be claimed together: some milliseconds of work."""
        return max(1, int(min(_LONGEST_RUN, _RUN_SECONDS / max(self._seconds, 1e-9))))

    def overdue(self, now: float) -> list[tuple[Task, float]]:
        """Return the tasks that began to ignore their time limit, with the seconds they ran."""
        return self.limits.overdue(self.out, now)

    def close(self) -> None:
        """Let the pools end; does not wait for handlers."""
        for pool in (self._threads, self._loop):
            if pool is not None:
                pool.close()

    def _give_back(self, lane: Lane[Task], tasks: Sequence[Task]) -> None:
        """End a lane's run; tasks return to it unless their delivery died."""
        if self._executor.draining:
            tasks = ()
        self.lanes.finish(lane, [t for t in tasks if not t.delivery.channel.leaving])
        self._parked_lanes.clear(lane)

    def _claim(self, run: Run[Task], *, solo: bool = False) -> None:
        if any(task.delivery.channel.leaving for task in run.tasks):
            run.tasks = [task for task in run.tasks if not task.delivery.channel.leaving]
        if self._parking and any(map(self._parked_lanes.holds, run.tasks)):
            self._give_back(run.lane, run.tasks)  # parked from another shard, meanwhile
            return
        if not run.tasks:
            self.lanes.finish(run.lane)
            return
        self.out.add(run)
        self.in_flight += len(run.tasks)
        self._dialogue.claim(run, solo=solo)

    def _sort(  # noqa: C901 - one case for each answer
        self, run: Run[Task], verdicts: list[Verdict], now: float
    ) -> tuple[list[Task], list[Task]]:
        """Return what of a claimed run may run now, and what must go back to its lane."""
        ready: list[Task] = []
        kept: list[Task] = []
        for task, verdict in zip(run.tasks, verdicts, strict=True):
            match verdict.answer:
                case Answer.FRESH if kept:  # an earlier one of its lane has to go first
                    self._dialogue.release(task, refund=True)
                    kept.append(task)
                case Answer.FRESH if task.effective:
                    self._dialogue.complete(task)
                case Answer.FRESH if verdict.crashes >= self._settings.crash_limit:
                    task.attempt -= 1  # this claim ran nothing
                    self._detour.dead_letter(task, _crashed(task, verdict.crashes))
                case Answer.FRESH:
                    ready.append(task)
                case Answer.DUPLICATE:
                    self._counters.duplicates += 1
                    if task.progress is not None:  # done elsewhere, which nobody told those here
                        self.gaps.passed(task)
                    self._settled(task.delivery)
                case Answer.CONFLICT:
                    reason = "its id was done before with another payload"
                    self._detour.dead_letter(task, DeadLetter(reason), record=False)
                case _ if kept or ready:  # asked again when those before it are through
                    kept.append(task)
                case Answer.SUSPECT:
                    kept.append(task)
                    self._suspect(task, run.lane, verdict.crashes + 1)  # it counts the last later
                case Answer.LATER:
                    kept.append(task)
                    self.holds.for_retry(task, run.lane, now + verdict.wait)
                case _:
                    kept.append(task)
                    self._wait_for_owner(task, run.lane, verdict, now)
        return ready, kept

    def _wait_for_owner(self, task: Task, lane: Lane[Task], verdict: Verdict, now: float) -> None:
        """Busy is not a duplicate: ask again soon, at growing intervals."""
        self._counters.busy += 1
        pause = _FIRST_BUSY_PAUSE * 2 ** min(task.busy, _BUSY_DOUBLINGS)
        task.busy += 1
        due = now + min(max(verdict.wait, _FIRST_BUSY_PAUSE), pause)
        self.holds.until(due, task, lane)

    def _suspect(self, task: Task, lane: Lane[Task], crashes: int) -> None:
        if task.handler_name in self.paused:
            return
        self._counters.suspects += 1
        self._suspects.add(task, lane)
        self._telemetry.emit(SuspectFound(task.handler_name, task.message.id, crashes))


def _is_over(outcome: object) -> bool:
    """Tell whether there is nothing to wait for but that it is recorded."""
    return outcome is DONE or isinstance(outcome, Superseded)


def _not_begun(run: Run[Task]) -> list[Task]:
    """Return the tasks of ``run`` that never began; while it is out nothing may begin any more."""
    outcomes = [*run.outcomes]  # a thread may add to them meanwhile
    known = zip(run.tasks, outcomes, strict=False)
    back = [task for task, out in known if out is ABANDONED or isinstance(out, Early)]
    return back + run.tasks[len(outcomes) + 1 :]


def _crashed(task: Task, crashes: int) -> DeadLetter:
    limit = task.handler.timeout
    also = f" or it ran past its {limit} s" if limit is not None else ""
    told = f"{crashes} times the process died or was away too long while it ran"
    return DeadLetter(f"crashed the worker: {told}{also}")

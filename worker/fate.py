"""What the outcome of a task means: the one place that decides the fate of a message.

============  ==================================================================================
Done          children are published and confirmed, then the id is recorded, then it is
              acknowledged; where there are children its key waits until it is recorded
RetryLater    the claim is given back, the lane of the key holds until the next attempt
DeadLetter    by the handler's policy: to the dead-letter queue, the key parked, the shard halted
Abandoned     it never ran: the claim is given back without counting the attempt
Superseded    it never ran, and is recorded as done: a later revision of its key was
Early         it never ran: it waits in its lane for an earlier revision (``gaps.py``)
============  ==================================================================================

When a handler fails for one message after another, that is an outage and no message's fault: its
messages wait, and none is given up, until a probe succeeds (``outage.py``).

A drain or a lost connection changes none of that, but that nothing waits here: what failed counts,
and what failed at its last attempt goes by its policy now, since its next delivery would be one
attempt too many. It is recorded as done, so that next delivery is a duplicate. Only to park a key
takes more than the claim: the shard, since one that is lost has another consumer, which goes on
with the key; and all of the key that came before and is not done, since that is to be parked first.
Where either is missing the message is left to whoever consumes the shard next, who tries it once.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from worker.errors import BrokerUnreachable
from worker.outcome import Abandoned, DeadLetter, Done, Early, RetryLater, Superseded
from worker.parkedlanes import precedes
from worker.telemetry import (
    AttemptFailed,
    HeldTooMuch,
    KeyParked,
    OutageBegan,
    OutageEnded,
    RevisionMissing,
    RevisionSuperseded,
    ShardHalted,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.detour import Detour
    from worker.dialogue import Dialogue
    from worker.dispatch import Dispatcher
    from worker.executor import Executor
    from worker.link import Link
    from worker.parking import Parking
    from worker.sharding.lanes import Lane
    from worker.task import Task
    from worker.telemetry import Counters, Telemetry
    from worker.transport.queuechannel import QueueChannel

_LEAVE_SHARE = 4  # keyless retries leave the process once they hold a quarter of the prefetch
_CROWDED_SHARE = 2  # retries are cut short once they hold half of it


class Fate:
    """Resolves outcomes for one consumer. I/O thread only.

    ``has_lost`` tells whether somebody else may have a shard by now.
    """

    def __init__(  # noqa: PLR0913 - the parts of the consumer that it stands between
        self,
        *,
        executor: Executor,
        dispatcher: Dispatcher,
        dialogue: Dialogue,
        detour: Detour,
        parking: Parking,
        link: Link,
        telemetry: Telemetry,
        counters: Counters,
        clock: Callable[[], float],
        has_lost: Callable[[int], bool],
    ) -> None:
        self._executor = executor
        self._dispatcher = dispatcher
        self._dialogue = dialogue
        self._detour = detour
        self._parking = parking
        self._link = link
        self._telemetry = telemetry
        self._counters = counters
        self._clock = clock
        self._has_lost = has_lost
        self._crowded: set[QueueChannel] = set()

    def resolve(  # noqa: PLR0911 - one case for each outcome
        self, task: Task, outcome: object, lane: Lane[Task]
    ) -> bool:
        """Act on what became of ``task``; tell whether it goes back to its lane."""
        match outcome:
            case Done(children):
                self._counters.executed += 1
                task.effective = True
                self._succeeded(task)
                if children:
                    resume = self._dispatcher.holds.until_settled(task, lane)
                    self._detour.publish_children(task, children, resume)
                else:
                    self._dialogue.complete(task)
                return False
            case RetryLater(delay, reason, asked):
                self._counters.executed += 1
                last = DeadLetter(reason, exhausted=True, asked=asked)
                return self._failed(task, last, delay, lane)
            case DeadLetter(exhausted=True):
                self._counters.executed += 1
                return self._failed(task, outcome, None, lane)
            case DeadLetter():
                self._counters.executed += 1
                self._succeeded(task)
                resume = self._dispatcher.holds.until_settled(task, lane)
                self._detour.dead_letter(task, outcome, resume)
                return False
            case Abandoned():
                self._dialogue.release(task, refund=True)
                return _back(task, lane)
            case Superseded(revision, last):
                self._counters.superseded += 1
                facts = task.handler_name, task.message.id, str(task.message.key), revision, last
                self._telemetry.emit(RevisionSuperseded(*facts))
                self._dialogue.complete(task)
                return False
            case Early():
                return self._wait(task, outcome, lane)
        raise AssertionError(f"no such outcome: {outcome!r}")

    def _wait(self, task: Task, early: Early, lane: Lane[Task]) -> bool:
        """Let ``task`` wait for an earlier revision, where there is room for that."""
        self._dialogue.release(task, refund=True)
        channel, revisions = task.delivery.channel, task.handler.revisions
        if revisions is not None and not (channel.leaving or self._executor.draining):
            # Counted with this one: with a prefetch of one nothing else could come meanwhile.
            crowded = (channel.held + 1) * _CROWDED_SHARE > channel.prefetch
            if crowded:
                self._note_crowded(channel)
            limit, crowd = revisions.limit, _with_it(task) if crowded else ""
            if self._dispatcher.gaps.wait(task, lane, limit=limit, crowd=crowd):
                self._counters.early += 1
                name, message = task.handler_name, task.message
                missing = RevisionMissing(
                    name, message.id, str(message.key), early.revision, early.last, limit
                )
                self._telemetry.emit(missing)
        return _back(task, lane)

    def _succeeded(self, task: Task) -> None:
        breaker = self._dispatcher.probes.breakers.get(task.handler_name)
        if breaker is None:
            return
        opened_at = breaker.opened_at
        if breaker.succeed() and opened_at is not None:
            self._end_outage(task.handler_name, opened_at)

    def _end_outage(self, handler: str, opened_at: float) -> None:
        self._dispatcher.lanes.unblock(handler)
        self._telemetry.emit(OutageEnded(handler, round(self._clock() - opened_at, 3)))

    def _failed(self, task: Task, last: DeadLetter, delay: float | None, lane: Lane[Task]) -> bool:
        """A handler failed: an outage, another attempt after ``delay``, or the end (None)."""
        name, channel, now = task.handler_name, task.delivery.channel, self._clock()
        breaker = self._dispatcher.probes.breaker(name)
        if last.asked:
            breaker.wait(now)
        elif breaker.fail(task.record, now):
            self._dispatcher.lanes.block(name)
            self._telemetry.emit(OutageBegan(name, breaker.failures, last.reason))
        opened_at = breaker.opened_at
        poison = delay is None and breaker.only_poison
        if opened_at is not None and not last.asked and not poison:  # the message is not to blame
            task.spent = delay is None
            self._dialogue.release(task, refund=task.spent)
            return _back(task, lane)
        leaving = channel.leaving or self._executor.draining
        crowded = channel.held * _CROWDED_SHARE >= channel.prefetch
        if (
            delay is not None
            and crowded
            and not leaving
            and not self._detour.can_leave(task, delay)
        ):
            self._note_crowded(channel)
            if not last.asked:  # a handler that asks for another time gets it
                delay, last = None, _early(last, task)
        if delay is None:
            back = self._exhausted(task, last, lane)
            if poison and breaker.give_up() and opened_at is not None:
                self._end_outage(name, opened_at)
            return back
        if leaving:
            # It comes again, here or elsewhere.
            self._dialogue.release(task, refund=False, wait=delay)
            return _back(task, lane)
        self._counters.retried += 1
        failed = AttemptFailed(name, task.message.id, task.attempt, round(delay, 3), last.reason)
        self._telemetry.emit(failed, told=not last.asked)
        if channel.held * _LEAVE_SHARE >= channel.prefetch and self._detour.leave(task, delay):
            return False
        self._dialogue.release(task, refund=False, wait=delay)
        self._dispatcher.holds.for_retry(task, lane, now + delay)
        return _back(task, lane)

    def _exhausted(self, task: Task, last: DeadLetter, lane: Lane[Task]) -> bool:
        """A task failed for the last time; tell whether it goes back to its lane."""
        policy = task.handler.retry.exhausted
        message, channel = task.message, task.delivery.channel
        if policy == "halt_shard":
            # Whoever consumes the shard next tries once, and halts it again if that fails.
            self._dialogue.release(task, refund=True)
            if channel.leaving or self._executor.draining:
                return False
            channel.halted = True
            with suppress(BrokerUnreachable):  # then it is closed already
                self._link.close_channel(channel)
            halted = ShardHalted(channel.shard, task.handler_name, message.id, last.reason)
            self._telemetry.emit(halted)
        elif policy == "park_key" and message.key is not None:
            return self._park_key(task, message.key, last.reason, lane)
        else:
            resume = self._dispatcher.holds.until_settled(task, lane)
            self._detour.dead_letter(task, last, resume)
        return False

    def _park_key(self, task: Task, key: str, reason: str, lane: Lane[Task]) -> bool:
        """Park a key because of ``task``, which returns to its lane to be parked in its turn."""
        channel = task.delivery.channel
        self._dialogue.release(task, refund=True)
        if self._has_lost(channel.shard):
            return False
        ending = channel.leaving or self._executor.draining
        if ending and (lane.settling or any(precedes(left, task) for left in lane.left)):
            return False
        self._parking.park(task.message)
        self._telemetry.emit(KeyParked(task.handler_name, key, reason))
        if ending:  # nothing goes back
            self._detour.park(task.delivery, reason, task)
            return False
        task.given_up = reason
        return True

    def _note_crowded(self, channel: QueueChannel) -> None:
        if channel not in self._crowded:
            self._crowded = {c for c in self._crowded if not c.closed} | {channel}
            self._telemetry.emit(HeldTooMuch(channel.shard, channel.held, channel.prefetch))


def _back(task: Task, lane: Lane[Task]) -> bool:
    """Let ``task`` go back to its lane, or to the broker where its channel is leaving."""
    lane.left.append(task)
    return True


def _with_it(task: Task) -> str:
    channel = task.delivery.channel
    crowd = f"{channel.held + 1} of {channel.prefetch} prefetched messages"
    return f"given up early, since with it {crowd} of shard {channel.shard} would wait"


def _early(last: DeadLetter, task: Task) -> DeadLetter:
    channel = task.delivery.channel
    crowd = f"{channel.held} of {channel.prefetch} prefetched messages of shard {channel.shard}"
    reason = f"given up early, {crowd} wait for retries; failed at attempt {task.attempt}"
    return replace(last, reason=f"{reason}: {last.reason}")

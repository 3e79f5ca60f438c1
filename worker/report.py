"""What a consumer tells of itself: numbers for the supervisor, a dump for people."""

from __future__ import annotations

import sys
import threading
import traceback
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

from worker.pool.threads import waits_for_work
from worker.sharding.generations import lease_of
from worker.telemetry import Gauges, ShardGauges

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.detour import Detour
    from worker.dialogue import Dialogue
    from worker.dispatch import Dispatcher
    from worker.link import Link
    from worker.task import Task
    from worker.telemetry import Counters
    from worker.transport.queuechannel import QueueChannel

#: Seconds between two looks at how full queues are, and how many are looked at each time.
_SURVEY_PAUSE, _SURVEYED = 1.0, 16
#: Marks that are kept of a channel.
_MOST_MARKS = 64


def statistics(
    counters: Counters, dispatcher: Dispatcher, dialogue: Dialogue, link: Link
) -> dict[str, object]:
    """Return counters and gauges, what is drained and which handlers have an outage, for JSON."""
    channels = link.channels
    gauges = Gauges(
        in_flight=dispatcher.in_flight,
        waiting=dispatcher.lanes.waiting,
        lanes=len(dispatcher.lanes),
        held=sum(channel.held for channel in channels),
        unsettled=sum(channel.settlement.unsettled for channel in channels),
        halted=sum(channel.halted for channel in channels),
        paused=dispatcher.waiting_paused(),
        connected=link.is_up,
        store_away=dialogue.away_since is not None,
    )
    return {
        **counters.as_dict(),
        **gauges.as_dict(),
        # By lease, which has the generation in its name: this is read after others may have come.
        "drained": [lease_of(link.topology.generation, c.shard) for c in channels if c.drained],
        "outages": [name for name, b in dispatcher.probes.breakers.items() if b.is_open],
    }


class Marks:
    """When the deliveries of a channel came, about: its highest tag at some moments. Pure.

    Costs nothing for a message. What came between two marks counts as having come at the second.
    There are 64 marks at most; the longer the time that they cover, the farther apart they lie.
    """

    def __init__(self) -> None:
        self._marks: deque[tuple[int, float]] = deque()

    def note(self, highest: int, now: float) -> None:
        """Note the highest tag that was delivered until now."""
        marks = self._marks
        if marks and marks[-1][0] >= highest:
            return
        if len(marks) > 1 and now - marks[-2][1] < (now - marks[0][1]) * 2 / _MOST_MARKS:
            marks.pop()
        marks.append((highest, now))
        if len(marks) > _MOST_MARKS:
            self._marks = deque([*marks][::2])

    def age(self, tag: int, now: float) -> float:
        """Return for how long ``tag`` has been here, at least. Tags are asked for as they rise."""
        marks = self._marks
        while marks and marks[0][0] < tag:
            marks.popleft()
        return now - marks[0][1] if marks else 0.0


class Census:
    """What is known of each shard that is consumed, from one beat to the next. I/O thread only."""

    def __init__(self, link: Link, dispatcher: Dispatcher) -> None:
        self._link = link
        self._dispatcher = dispatcher
        self._marks: dict[QueueChannel, Marks] = {}
        self._next_survey = float("-inf")
        self._turn = 0

    def survey(self, now: float) -> None:
        """Ask how full a few of the queues are, all in turn. Raises BrokerUnreachable."""
        queues = [c.queue for c in self._link.channels if not c.relays]
        if now < self._next_survey or not queues:
            return
        first = self._turn % len(queues)
        chosen = [*queues[first:], *queues[:first]][:_SURVEYED]
        if self._link.survey(chosen):
            self._turn = first + len(chosen)
        self._next_survey = now + _SURVEY_PAUSE

    def shards(self, now: float) -> dict[str, dict[str, Any]]:
        """Return the :class:`ShardGauges` of each shard, as told, by its number as text."""
        channels = [channel for channel in self._link.channels if not channel.relays]
        self._marks = {channel: self._marks.get(channel) or Marks() for channel in channels}
        out = self._dispatcher.out
        in_flight = Counter[int]()
        for run in out:
            in_flight[run.lane.shard] += len(run.tasks)
        running = Counter({t.delivery: t.message.shard for run in out for t in run.tasks}.values())
        held = Counter(lane.shard for lane in self._dispatcher.lanes.held)
        depths = self._link.surveyed
        return {
            str(channel.shard): _gauges(
                channel,
                self._marks[channel],
                now,
                depth=depths.get(channel.queue),
                in_flight=in_flight[channel.shard],
                running=running[channel.shard],
                held=held[channel.shard],
            ).told()
            for channel in channels
        }


def _gauges(  # noqa: PLR0913 - what a shard is described by
    channel: QueueChannel,
    marks: Marks,
    now: float,
    *,
    depth: int | None,
    in_flight: int,
    running: int,
    held: int,
) -> ShardGauges:
    settlement = channel.settlement
    marks.note(settlement.highest, now)
    here = not channel.closed  # what a closed channel had is the broker's again
    oldest = settlement.oldest if here else None
    unsettled = settlement.unsettled if here else 0
    return ShardGauges(
        depth=depth,
        unsettled=unsettled,
        in_flight=in_flight,
        waiting=max(0, unsettled - settlement.finished - running),
        held=held,
        oldest=0.0 if oldest is None else round(marks.age(oldest, now), 1),
        halted=channel.halted,
    )


def is_idle(dispatcher: Dispatcher, dialogue: Dialogue, detour: Detour, link: Link) -> bool:
    """Tell whether nothing waits or runs, and the queues are empty. Raises BrokerUnreachable.

    A halted shard has no say: nothing of it will be done here. Nor has what waits for a handler
    that is paused, or in the queue behind a prefetch that is full of that.
    """
    paused = dispatcher.waiting_paused()
    if (
        dispatcher.out
        or dispatcher.lanes.waiting > paused
        or dialogue.busy
        or detour.under_way
        or not link.is_up
    ):
        return False
    channels = [channel for channel in link.channels if not channel.leaving]
    if not paused and any(channel.settlement.unsettled for channel in channels):
        return False
    full = {c.queue for c in channels if paused and c.settlement.unsettled >= c.prefetch}
    return not any(depth for queue, depth in link.depths().items() if queue not in full)


def dump(dispatcher: Dispatcher, now: float) -> Iterator[str]:
    """Yield what each run has in flight, and the stack of each thread: a text for a log record.

    One record of it all would lose its middle, where there is much of it. Of threads that wait for
    work nothing is told but how many they are.
    """
    for run in dispatcher.out:
        yield "\n".join(_in_flight(task, now) for task in run.tasks)
    if not dispatcher.out:
        yield "nothing is in flight"
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    idle = 0
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - the documented way
        if waits_for_work(frame):
            idle += 1
            continue
        stack = "".join(traceback.format_stack(frame)).rstrip()
        yield f"thread {names.get(ident, ident)}\n{stack}"
    if idle:
        yield f"{idle} threads for handlers wait for work"


def _in_flight(task: Task, now: float) -> str:
    since = f"for {now - task.started:.1f} s" if task.started else "waiting"
    return (
        f"in flight: {task.handler.full_name} {task.message.name} {task.message.id}"
        f" key={task.message.key} attempt={task.attempt} {since}"
    )

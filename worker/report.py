"""What a consumer tells of itself: numbers for the supervisor, a dump for people."""

from __future__ import annotations

import sys
import threading
import traceback
from typing import TYPE_CHECKING

from worker.sharding.generations import lease_of

if TYPE_CHECKING:
    from worker.dialogue import Dialogue
    from worker.dispatch import Dispatcher
    from worker.link import Link
    from worker.telemetry import Counters


def statistics(
    counters: Counters, dispatcher: Dispatcher, dialogue: Dialogue, link: Link
) -> dict[str, object]:
    """Return counters and gauges, ready for JSON."""
    channels = link.channels
    return {
        **counters.as_dict(),
        "in_flight": dispatcher.in_flight,
        "waiting": dispatcher.lanes.waiting,
        "lanes": len(dispatcher.lanes),
        "held": sum(channel.held for channel in channels),
        "unsettled": sum(channel.settlement.unsettled for channel in channels),
        # By lease, which has the generation in its name: this is read after others may have come.
        "drained": [lease_of(link.topology.generation, c.shard) for c in channels if c.drained],
        "halted": sum(channel.halted for channel in channels),
        "outages": [name for name, b in dispatcher.breakers.items() if b.is_open],
        "connected": link.is_up,
        "store_away": dialogue.away_since is not None,
    }


def dump(dispatcher: Dispatcher, now: float) -> str:
    """Return the stack of every thread, and what is in flight."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    lines = []
    for ident, frame in sys._current_frames().items():  # noqa: SLF001 - the documented way
        lines.append(f"thread {names.get(ident, ident)}")
        lines += [line.rstrip() for line in traceback.format_stack(frame)]
    for run in dispatcher.out:
        for task in run.tasks:
            since = f"for {now - task.started:.1f} s" if task.started else "waiting"
            lines.append(
                f"in flight: {task.handler.full_name} {task.message.id}"
                f" key={task.message.key} attempt={task.attempt} {since}"
            )
    return "\n".join(lines)

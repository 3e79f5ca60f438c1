"""Named places between two lines of the runtime at which a process kills itself with SIGKILL.

They cost nothing when off: the runtime knows nothing of them. Where ``CHAOS_POINTS`` names a file,
Python itself (``startup/sitecustomize.py``) calls :func:`install` in each process, which wraps the
functions that the table names once their modules are imported; handlers of the harness call
:func:`reach` at theirs. The file says how likely a process dies at each point, and is looked at
again all the time, so that a trial arms and disarms points (:class:`Board`) while processes run.

A process that dies notes it in the history first, as the fault that it is.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from random import SystemRandom
from typing import Any

from chaos.executions import Fault, Kind
from chaos.history import Writer
from chaos.wrapping import when_imported

#: Seconds after which the file is looked at again.
_FRESH = 0.1
_random = SystemRandom()


class Side(Enum):
    """Where of a call the point is."""

    BEFORE = "before"
    AFTER = "after"
    #: Half of what is to be written is written.
    AMIDST = "amidst"


Condition = Callable[[tuple[Any, ...], Any], Any]


def _always(_arguments: tuple[Any, ...], _result: Any) -> bool:
    return True


def _told(_arguments: tuple[Any, ...], result: Any) -> Any:
    return result


@dataclass(frozen=True, slots=True)
class Point:
    """A place: before or after a call of the runtime, where ``when`` holds for it."""

    module: str
    function: str
    side: Side
    #: Asked with the arguments, and the result where there is one.
    when: Condition = _always


POINTS: Mapping[str, Point] = {
    # The path of a message
    "after the claim": Point(
        "worker.dispatch", "Dispatcher.route", Side.BEFORE, lambda args, _: args[1].claimed
    ),
    "before the record": Point(
        "worker.dialogue", "Dialogue.exchange", Side.BEFORE, lambda args, _: args[0]._completing
    ),
    "after the record": Point(
        "worker.dialogue",
        "Dialogue.exchange",
        Side.AFTER,
        lambda _, replies: replies and replies.completed,
    ),
    "before the acknowledgement": Point(
        "worker.transport.inbound",
        "Inbound.settle",
        Side.BEFORE,
        lambda args, _: any(c.settlement.finished for c in args[0].channels),
    ),
    "in the midst of an acknowledgement": Point(
        "worker.transport.frames", "FramePump.write", Side.AMIDST
    ),
    "after the acknowledgement": Point(
        "worker.transport.inbound", "Inbound.settle", Side.AFTER, _told
    ),
    # What is published on the way
    "after publishing, before the confirm": Point(
        "worker.transport.outbound",
        "Outbound.send",
        Side.AFTER,
    ),
    "after the confirm, before what follows": Point(
        "worker.transport.outbound", "Outbound.pump", Side.AFTER, _told
    ),
    "after what was published is known, before the record": Point(
        "worker.link", "Link.publish", Side.AFTER, _told
    ),
    "before a dead letter": Point("worker.detour", "Detour.dead_letter", Side.BEFORE),
    "before a message is parked": Point("worker.detour", "Detour.park", Side.BEFORE),
    "before parked keys are told": Point("worker.parking", "Parking.save", Side.BEFORE),
    "after parked keys are told": Point("worker.parking", "Parking.save", Side.AFTER),
    # A shard changes hands
    "a shard is taken": Point("worker.tenure", "Tenure.take", Side.AFTER),
    "a shard is to be given": Point("worker.tenure", "Tenure.give", Side.AFTER),
    "nothing is left of a shard": Point(
        "worker.tenure", "Tenure._finish", Side.BEFORE, lambda args, _: args[1]
    ),
    "before its channel is closed": Point(
        "worker.transport.inbound", "Inbound.close_channel", Side.BEFORE
    ),
    "after its channel is closed": Point(
        "worker.transport.inbound", "Inbound.close_channel", Side.AFTER
    ),
    "a shard is given": Point(
        "worker.tenure", "Tenure._finish", Side.AFTER, lambda args, _: args[1]
    ),
    # The supervisor
    "the supervisor, before its leases are renewed": Point(
        "worker.supervisor.keeper", "Keeper._round", Side.BEFORE
    ),
    "the supervisor, after its leases are renewed": Point(
        "worker.supervisor.keeper", "Keeper._round", Side.AFTER
    ),
    "the supervisor, before a lease is given back": Point(
        "worker.supervisor.keeper", "Keeper.given", Side.BEFORE
    ),
    "the supervisor, after a lease is given back": Point(
        "worker.supervisor.keeper", "Keeper.given", Side.AFTER
    ),
    # Resharding
    "reshard, before a plan is declared": Point(
        "worker.resharding", "Resharding.declare", Side.BEFORE
    ),
    "reshard, after a plan is declared": Point(
        "worker.resharding", "Resharding.declare", Side.AFTER
    ),
    "reshard, before a step": Point("worker.resharding", "Resharding.take", Side.BEFORE),
    "reshard, after a step": Point("worker.resharding", "Resharding.take", Side.AFTER),
    "reshard, before old queues are removed": Point(
        "worker.resharding", "Resharding._remove", Side.BEFORE
    ),
    "reshard, while messages are moved": Point(
        "worker.resharding", "Resharding._forward", Side.AFTER
    ),
    "reshard, the supervisor before the next step is told": Point(
        "worker.supervisor.resharder", "Resharder._advance", Side.BEFORE
    ),
    "reshard, the supervisor after the next step is told": Point(
        "worker.supervisor.resharder", "Resharder._advance", Side.AFTER
    ),
}
#: Those of an inbox and an outbox, which only a service has that uses them.
OUTBOX_POINTS: Mapping[str, Point] = {
    "before the commit": Point(
        "sqlalchemy.engine.default", "DefaultDialect.do_commit", Side.BEFORE
    ),
    "after the commit": Point("sqlalchemy.engine.default", "DefaultDialect.do_commit", Side.AFTER),
    "before rows are written": Point(
        "worker.contrib.sqlalchemy.pending",
        "Pending.seal",
        Side.BEFORE,
        lambda args, _: args[0].has_waiting,
    ),
    "after rows are written": Point(
        "worker.contrib.sqlalchemy.pending",
        "Pending.seal",
        Side.AFTER,
        lambda args, _: args[0]._written,
    ),
    "after an outbox commit": Point(
        "worker.contrib.sqlalchemy.pending",
        "Pending.committed",
        Side.BEFORE,
        lambda args, _: args[0]._written,
    ),
    "after the sender is told": Point("worker.contrib.outbox.sender", "Sender.wake", Side.AFTER),
    "after rows are read": Point(
        "worker.contrib.sqlalchemy.rows", "OutboxRows.read", Side.AFTER, _told
    ),
    "a row is sent, and not confirmed": Point("worker.publisher", "Publisher.send", Side.AFTER),
    "rows are confirmed, and not removed": Point(
        "worker.contrib.sqlalchemy.rows", "OutboxRows.remove", Side.BEFORE
    ),
    "after rows are removed": Point(
        "worker.contrib.sqlalchemy.rows", "OutboxRows.remove", Side.AFTER
    ),
}
#: The same where it is Django's.
DJANGO_POINTS: Mapping[str, Point] = {
    "before the commit": Point(
        "django.db.backends.base.base", "BaseDatabaseWrapper._commit", Side.BEFORE
    ),
    "after the commit": Point(
        "django.db.backends.base.base", "BaseDatabaseWrapper._commit", Side.AFTER
    ),
    "before rows are written": Point(
        "worker.contrib.django.pending", "Pending._write", Side.BEFORE
    ),
    "after rows are written": Point("worker.contrib.django.pending", "Pending._write", Side.AFTER),
    "after an outbox commit": Point("worker.contrib.django.pending", "Pending._tell", Side.BEFORE),
    "after rows are read": Point(
        "worker.contrib.django.rows", "OutboxRows.read", Side.AFTER, _told
    ),
    "rows are confirmed, and not removed": Point(
        "worker.contrib.django.rows", "OutboxRows.remove", Side.BEFORE
    ),
    "after rows are removed": Point("worker.contrib.django.rows", "OutboxRows.remove", Side.AFTER),
}
#: Those of a relay: between two of its steps. It passes by those of the outbox too.
RELAY_POINTS: Mapping[str, Point] = {
    "the relay, before a pass": Point("worker.contrib.outbox.relay", "Relay.turn", Side.BEFORE),
    "the relay, with rows in hand": Point(
        "worker.contrib.outbox.relay", "Relay._settle", Side.BEFORE, lambda args, _: args[1]
    ),
    "the relay, after a pass": Point("worker.contrib.outbox.relay", "Relay.turn", Side.AFTER),
    "the relay, before its lease is renewed": Point(
        "worker.leases.sole", "SoleLease.turn", Side.BEFORE
    ),
    "the relay, after its lease is renewed": Point(
        "worker.leases.sole", "SoleLease.turn", Side.AFTER
    ),
}
#: No process comes by two of one name: it has one of the integrations.
_ALL = [
    each for some in (POINTS, OUTBOX_POINTS, DJANGO_POINTS, RELAY_POINTS) for each in some.items()
]
#: Points that handlers of the harness reach by themselves.
IN_HANDLERS = ("in the handler", "in the handler's transaction", "after the effect")


class Board:
    """The file, as the trial writes it. Any thread may."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._armed: list[Mapping[str, float]] = []
        self._lock = threading.Lock()

    @contextmanager
    def armed(self, points: Mapping[str, float]) -> Iterator[None]:
        """Let processes die at these points while the block runs, each time as likely as that.

        What several blocks arm adds up, and each takes back its own.
        """
        mine = dict(points)
        with self._lock:
            self._armed.append(mine)
            self._write()
        try:
            yield
        finally:
            with self._lock:
                self._armed = [theirs for theirs in self._armed if theirs is not mine]
                self._write()

    def _write(self) -> None:
        likely: dict[str, float] = {}
        for points in self._armed:
            for name, each in points.items():
                likely[name] = min(1.0, likely.get(name, 0.0) + each)
        new = self._file.with_suffix(".new")
        new.write_text(json.dumps(likely))
        new.replace(self._file)  # nobody reads half of it


class _Arming:
    """What the file says, as of a moment ago."""

    def __init__(self, file: Path, history: Path) -> None:
        self._file = file
        self._history = history
        self._likely: dict[str, float] = {}
        self._read_at = float("-inf")

    def reach(self, name: str) -> None:
        """Die, where that is to be."""
        if self.is_struck(name):
            self.die(name)

    def is_struck(self, name: str) -> bool:
        """Tell whether the process has to die at this point now."""
        now = time.monotonic()
        if now - self._read_at > _FRESH:
            self._read_at = now
            try:
                self._likely = json.loads(self._file.read_bytes())
            except (OSError, ValueError):
                self._likely = {}
        likely = self._likely.get(name, 0.0)
        return bool(likely) and _random.random() < likely

    def die(self, name: str) -> None:
        """Note it, and die.

        Without waiting for the disk: other threads would have effects meanwhile, in a process that
        counts as dead; and a line that is written outlives its writer.
        """
        fault = Fault(
            Kind.KILL,
            os.environ.get("SUPERVISOR", ""),
            time.monotonic(),
            pids=frozenset({os.getpid()}),
            what=f"kill -9, {name}",
        )
        Writer(self._history, sync=False).note("fault", detail=fault.dump())
        os.kill(os.getpid(), signal.SIGKILL)


_arming: _Arming | None = None


def install() -> None:
    """Wrap what the table names, in this process, where the environment asks for it."""
    global _arming  # noqa: PLW0603 - one a process, as its environment is
    if "CHAOS_POINTS" not in os.environ or _arming is not None:
        return
    _arming = _Arming(Path(os.environ["CHAOS_POINTS"]), Path(os.environ["CHAOS_HISTORY"]))
    for name, point in _ALL:
        when_imported(point.module, partial(_wrap, name, point, _arming))


def reach(name: str) -> None:
    """Die here, if this point is armed."""
    if _arming is not None:
        _arming.reach(name)


def resolve(point: Point) -> tuple[type, str, Callable[..., Any]]:
    """Return the class, the name of its function, and the function."""
    class_name, function = point.function.split(".")
    owner = getattr(import_module(point.module), class_name)
    return owner, function, getattr(owner, function)


def _wrap(name: str, point: Point, arming: _Arming) -> None:
    owner, function, original = resolve(point)
    if point.side is Side.BEFORE:

        @wraps(original)
        def wrapped(*args: Any, **options: Any) -> Any:
            if point.when(args, None):
                arming.reach(name)
            return original(*args, **options)

    elif point.side is Side.AFTER:

        @wraps(original)
        def wrapped(*args: Any, **options: Any) -> Any:
            result = original(*args, **options)
            if point.when(args, result):
                arming.reach(name)
            return result

    else:

        @wraps(original)
        def wrapped(*args: Any, **options: Any) -> Any:
            *before, data = args
            if arming.is_struck(name):
                original(*before, data[: len(data) // 2], **options)
                arming.die(name)
            return original(*args, **options)

    setattr(owner, function, wrapped)

"""Where the product meets the outside, the simulation's parts are put: once, for all worlds."""

from __future__ import annotations

import builtins
import faulthandler
import gc
import importlib
import io
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import count
from typing import TYPE_CHECKING, Any

from simulation import members, servers, wires
from simulation.children import Steps
from simulation.members import Member, Rounds
from simulation.moments import Clock, Ordered, Stand
from worker.sharding.ring import Ring
from worker.transport.embedded.broker import _READY

if TYPE_CHECKING:
    from simulation.world import World

CLOCK = Clock()

_EMBEDDED = "worker.transport.embedded."
_MODULES_OF_TIME = (
    "worker.leases.base",
    "worker.leases.memory",
    "worker.supervisor.supervisor",
    "worker.supervisor.child",
    *(
        f"{_EMBEDDED}{name}"
        for name in (
            "broker",
            "connection",
            "database",
            "dead_letters",
            "declarations",
            "presence",
            "store",
        )
    ),
)
_MODULES_OF_MONOTONIC = (
    "worker.supervisor.stage",
    "worker.transport.outbound",
    "worker.deadletters",
)


class Here:
    """The world that runs, which the parts below belong to."""

    world: World

    @classmethod
    def member(cls) -> Member:
        running = cls.world.seams.running
        assert isinstance(running, Member)
        return running


class _Popen:
    """Takes the part of ``subprocess.Popen``, and is the child's entry at its parent."""

    DEVNULL = None

    def __init__(self, command: Any, *, pass_fds: Any, stdin: Any, env: Any) -> None:
        self.pid = Here.member().spawn(Here.world.offered).pid
        self.returncode: int | None = None


def _socketpair() -> tuple[wires.End, wires.End]:
    ours, theirs = wires.End.pair(CLOCK.monotonic, Here.world.random)
    Here.world.offered = theirs
    return ours, theirs


def _hard_exit(seconds: float, *, exit: bool) -> None:  # noqa: A002 - the name there
    running: Any = Here.world.seams.running
    running.hard_exit = CLOCK.now + seconds


def _at_once(connect: Any, _seconds: float) -> Any:
    return connect()


def _parts() -> Iterator[tuple[str, str, Any]]:
    """Yield module, name and what stands there in a simulation."""
    for module in _MODULES_OF_TIME:
        yield module, "time", CLOCK
    for module in _MODULES_OF_MONOTONIC:
        yield module, "monotonic", CLOCK.monotonic
    yield "worker.parking", "time_ns", CLOCK.time_ns
    yield "worker.waiter", "sleep", CLOCK.sleep
    numbers = count(1)
    yield "worker.seal", "new_id", lambda: f"seal-{next(numbers)}"

    secrets = Stand(
        importlib.import_module("secrets"),
        token_bytes=lambda size: Here.world.unique().to_bytes(size, "big"),
        token_hex=lambda size: f"{Here.world.unique():0{2 * size}x}",
    )
    for module in ("child", "keeper"):
        yield f"worker.supervisor.{module}", "secrets", secrets

    process = "worker.supervisor.process"
    yield process, "socket", Stand(socket, socketpair=_socketpair)
    yield process, "subprocess", Stand(subprocess, Popen=_Popen)
    yield process, "Channel", lambda end: end
    kill = Stand(os, kill=lambda pid, number: Here.member().kill(pid, number))
    yield process, "os", kill
    yield process, "signal", Stand(signal, pthread_sigmask=lambda *_: None)
    yield "worker.supervisor.fleet", "os", Stand(os, waitpid=lambda *_: Here.member().wait())

    supervisor = "worker.supervisor.supervisor"
    yield supervisor, "Signals", wires.Signals
    yield (
        supervisor,
        "selectors",
        Stand(importlib.import_module("selectors"), DefaultSelector=wires.Selector),
    )
    yield supervisor, "Reporter", wires.Reporter
    yield supervisor, "Keeper", Rounds
    yield supervisor, "sys", Stand(sys, stderr=io.StringIO())
    yield supervisor, "configure_logging", lambda *_, **__: None

    child = "worker.supervisor.child"
    yield child, "Signals", wires.Signals
    yield child, "Stepper", Steps
    yield child, "configure_logging", lambda *_, **__: None
    yield child, "faulthandler", Stand(faulthandler, dump_traceback_later=_hard_exit)

    rings = lru_cache(lambda members: Ring(dict(members)))
    ring = lambda members: rings((*members.items(),))  # noqa: E731 - in the place of a class
    yield "worker.sharding.assignment", "Ring", ring
    yield "worker.consumer", "Waiter", wires.Waiter
    yield "worker.assembly", "patiently", _at_once
    yield "worker.supervisor.keeper", "patiently", _at_once
    yield "worker.supervisor.keeper", "open_leases", lambda *_: Here.world.leases
    yield f"{_EMBEDDED}presence", "Process", servers.Lives
    yield f"{_EMBEDDED}broker", "_READY", servers.as_of_quorum_queues(_READY)
    yield "worker.transport.sqlite", "_LEASE", 2.0  # each world has its own
    for module in ("dispatch", "dialogue"):
        yield f"worker.{module}", "set", Ordered


@contextmanager
def in_place() -> Iterator[None]:
    """Put the simulation's parts in their places while the block runs."""
    missing = object()
    members.Rounds.member_of = staticmethod(Here.member)
    before = []
    logging.disable(logging.CRITICAL)
    gc.disable()
    try:
        for name, attribute, part in _parts():
            module = importlib.import_module(name)
            was = module.__dict__.get(attribute, missing)
            if was is missing and not hasattr(builtins, attribute):
                raise LookupError(f"{name} has no {attribute!r} any more")
            before.append((module, attribute, was))
            setattr(module, attribute, part)
        yield
    finally:
        gc.enable()
        logging.disable(logging.NOTSET)
        for module, attribute, was in reversed(before):
            if was is missing:
                delattr(module, attribute)
            else:
                setattr(module, attribute, was)

"""A child process with a stand-in for the consumer, which behaves as ``behaviour.json`` says.

``boot``, ``open``: ``ok``, ``crash``, ``hang``, ``wrong`` (a ConfigurationError), ``unreachable``.
``run``: ``ok``, ``failed``, ``stuck``, ``hang``. ``drain_takes``: seconds. ``busy``: not idle.
``only``: the index of the process that the behaviour is meant for. ``terms``: changed settings.
"""

import json
import os
import selectors
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from worker.errors import BrokerUnreachable, ConfigurationError
from worker.supervisor.child import Service, run_child
from worker.supervisor.control import Boot, Channel, Terms
from worker.supervisor.signals import Signals

BEAT = 0.05


class Finish(Enum):
    DRAINED = "drained"
    ABANDONED = "abandoned"
    STUCK = "stuck"
    FAILED = "failed"


class Journal:
    def __init__(self, index: int) -> None:
        self.index = index
        self._file = os.open("journal", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def write(self, what: str, about: object = None) -> None:
        entry = {"at": time.monotonic(), "pid": os.getpid(), "index": self.index}
        os.write(self._file, json.dumps({**entry, "what": what, "about": about}).encode() + b"\n")

    def behaviour(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(Path("behaviour.json").read_text())
        return found if found.get("only", self.index) == self.index else {}


class StandIn:
    def __init__(self, journal: Journal, shards: Mapping[int, int], owner: bytes) -> None:
        self.on_beat: Callable[[], None] | None = None
        self._journal = journal
        self._shards = shards
        self._owner = owner
        self._selector = selectors.DefaultSelector()
        self._finish: Finish | None = None
        self._drain_until: float | None = None
        self._drained_at = 0.0
        self._beats = 0

    def open(self) -> None:
        misbehave(self._journal.behaviour().get("open", "ok"))
        self._journal.write("consume", [*self._shards])
        self._journal.write("fences", [*self._shards.values()])
        self._journal.write("owner", self._owner.hex())

    def run(self) -> Finish:
        while self._finish is None:
            for key, _ in self._selector.select(BEAT):
                key.data()
            self._round()
        self._journal.write("close", self._finish.name)
        return self._finish

    def _round(self) -> None:
        behaviour = self._journal.behaviour()
        now = time.monotonic()
        if self._drain_until is not None:
            if now >= self._drained_at + behaviour.get("drain_takes", 0.0):
                self._finish = Finish.DRAINED
            elif now >= self._drain_until:
                self._finish = Finish.ABANDONED
        match behaviour.get("run", "ok"):
            case "failed":
                self._finish = Finish.FAILED
            case "stuck":
                threading.Thread(target=time.sleep, args=(3600,)).start()
                self._finish = Finish.STUCK
            case "hang":
                self._journal.write("hang")
                time.sleep(3600)
        if self.on_beat is not None:
            self.on_beat()

    def watch(self, fileobj: Channel | Signals, callback: Callable[[], None]) -> None:
        self._selector.register(fileobj, selectors.EVENT_READ, callback)

    def unwatch(self, fileobj: Channel | Signals) -> None:
        self._selector.unregister(fileobj)

    def drain(self, deadline: float) -> None:
        self._journal.write("drain", deadline - time.monotonic())
        if self._drain_until is None:
            self._drain_until, self._drained_at = deadline, time.monotonic()

    def stop(self) -> None:
        self._journal.write("stop")
        self._finish = Finish.ABANDONED

    def bury(self, owners: Iterable[bytes]) -> None:
        self._journal.write("bury", [owner.hex() for owner in owners])

    def statistics(self) -> dict[str, object]:
        self._beats += 1
        busy = bool(self._journal.behaviour().get("busy"))
        return {"idle": not busy, "received": self._beats if busy else 7, "in_flight": int(busy)}

    def dump(self) -> str:
        return f"dump of {os.getpid()}: nothing in flight"


def misbehave(how: str) -> None:
    match how:
        case "crash":
            os._exit(9)
        case "hang":
            time.sleep(3600)
        case "wrong":
            raise ConfigurationError("--shards: 0 is too small; at least 1")
        case "unreachable":
            raise BrokerUnreachable("amqp://user:secret@broker.invalid does not answer")
        case "exception":
            raise RuntimeError("a bug")


def load(boot: Boot) -> Service:
    journal = Journal(boot.index)
    journal.write("boot")
    behaviour = journal.behaviour()
    misbehave(behaviour.get("boot", "ok"))
    given: Any = boot.options["terms"]
    terms = {
        "service": "bank",
        "shards": 4,
        "processes": 2,
        "most_processes": 4,
        "drain_timeout": 10.0,
        "watchdog": 5.0,
        "connect_timeout": 5.0,
        "log_format": "text",
        "log_level": "debug",
        **given,
        **behaviour.get("terms", {}),
    }
    return Service(Terms(**terms), lambda shards, owner: StandIn(journal, shards, owner))


if __name__ == "__main__":
    run_child(int(sys.argv[1]), load)

"""A child process with a stand-in for the consumer, which behaves as ``behaviour.json`` says.

``boot``, ``open``: ``ok``, ``crash``, ``hang``, ``wrong`` (a ConfigurationError), ``unreachable``.
``open`` also ``late``: no trust is left to declare. ``declare``: ``ok``, ``unreachable``.
``run``: ``ok``, ``failed``, ``stuck``, ``hang``. ``drain_takes``, ``give_takes``: seconds; so long
what runs of a shard takes to finish. ``busy``: not idle. ``away``: the broker does not answer, or
only not these processes. ``idle``: shards of which nothing runs: a drain gives them at once, all
others by the end of the process.
``only``: the index of the process that the behaviour is meant for. ``terms``: changed settings.

As the consumer does, it gives by itself what it was not told to trust any longer.
"""

import json
import os
import selectors
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import Any

from worker.errors import BrokerUnreachable, ConfigurationError
from worker.leases.base import lease_clock
from worker.sharding.generations import Plan
from worker.supervisor.child import Service, run_child
from worker.supervisor.control import Boot, Terms
from worker.supervisor.pipe import Channel
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
    def __init__(self, journal: Journal, plan: Plan, owner: bytes) -> None:
        self.on_beat: Callable[[], None] = lambda: None
        self.on_given: Callable[[list[int]], None] = lambda _shards: None
        self.on_paused: Callable[[], None] = lambda: None
        self._journal = journal
        self._plan = plan
        self._owner = owner
        self._shards: dict[int, int] = {}
        self._giving: dict[int, float] = {}
        self._trusted_until = float("inf")
        self._selector = selectors.DefaultSelector()
        self._finish: Finish | None = None
        self._drain_until: float | None = None
        self._drained_at = 0.0
        self._beats = 0

    def open(self, trusted_until: float) -> bool:
        how = self._journal.behaviour().get("open", "ok")
        misbehave(how)
        self._journal.write("open", self._plan.consumed.number)
        self._journal.write("owner", self._owner.hex())
        return bool(how != "late")

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
        self._give_in_time(now, behaviour.get("give_takes", 0.0))
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
        self.on_beat()

    def _give_in_time(self, now: float, takes: float) -> None:
        if lease_clock() > self._trusted_until and self._shards.keys() - self._giving.keys():
            self._journal.write("lapse", sorted(self._shards.keys() - self._giving.keys()))
            self.give(self._shards)
        given = [shard for shard, since in self._giving.items() if now >= since + takes]
        if given:
            for shard in given:
                del self._shards[shard], self._giving[shard]
            self._tell_given(given)

    def _tell_given(self, shards: list[int]) -> None:
        self._journal.write("given", shards)
        self.on_given(shards)

    def follow(self, plan: Plan) -> None:
        self._journal.write("follow", plan.dump())

    def switch(self, plan: Plan) -> None:
        if self._shards:
            raise AssertionError("it holds something of the generation before")
        self._plan = plan
        self._journal.write("open", plan.consumed.number)

    def take(self, fences: Mapping[int, int], trusted_until: float) -> None:
        self.trust(trusted_until)
        if self._shards.keys() & fences.keys():
            raise AssertionError("it has that already")
        if lease_clock() > trusted_until or self.draining:
            self._tell_given([*fences])
            return
        self._journal.write("take", {str(shard): fence for shard, fence in fences.items()})
        self._shards.update(fences)

    def trust(self, until: float) -> None:
        self._trusted_until = until

    def give(self, shards: Iterable[int]) -> None:
        for shard in [shard for shard in shards if shard in self._shards]:
            self._giving.setdefault(shard, time.monotonic())

    def lose(self, shards: Collection[int]) -> None:
        self._journal.write("lose", [*shards])
        self.give(shards)

    def pause(self, handlers: Collection[str]) -> None:
        self._journal.write("pause", sorted(handlers))
        self.on_paused()

    def watch(self, fileobj: Channel | Signals, callback: Callable[[], None]) -> None:
        self._selector.register(fileobj, selectors.EVENT_READ, callback)

    def unwatch(self, fileobj: Channel | Signals) -> None:
        self._selector.unregister(fileobj)

    def drain(self, deadline: float) -> None:
        self._journal.write("drain", deadline - time.monotonic())
        if self._drain_until is None:
            self._drain_until, self._drained_at = deadline, time.monotonic()

        idle = self._journal.behaviour().get("idle", [])
        self.give([shard for shard in self._shards if shard in idle])

    @property
    def draining(self) -> bool:
        return self._drain_until is not None

    def stop(self) -> None:
        self._journal.write("stop")
        self._finish = Finish.ABANDONED

    def bury(self, owners: Iterable[bytes]) -> None:
        self._journal.write("bury", [owner.hex() for owner in owners])

    def statistics(self) -> dict[str, object]:
        self._beats += 1
        busy = bool(self._journal.behaviour().get("busy"))
        return {
            "idle": not busy,
            "received": self._beats if busy else 7,
            "in_flight": int(busy),
            "connected": not self._is_away(),
        }

    def _is_away(self) -> bool:
        away = self._journal.behaviour().get("away", [])
        return bool(away is True or os.getpid() in away)

    def dump(self) -> Iterator[str]:
        yield f"dump of {os.getpid()}: nothing in flight"


class StandInSteps:
    """Takes the steps of a change of the number of shards, of which no broker knows."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def declare(self, plan: Plan) -> None:
        misbehave(self._journal.behaviour().get("declare", "ok"))
        self._journal.write("declare", plan.dump())

    def take(self, plan: Plan) -> bool:
        self._journal.write("step", plan.dump())
        return True


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
        "queues": "bank",
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
    return Service(
        Terms(**terms), lambda plan, owner: StandIn(journal, plan, owner), StandInSteps(journal)
    )


if __name__ == "__main__":
    run_child(int(sys.argv[1]), load)

"""The servers, and one contender at work on them."""

from __future__ import annotations

import ast
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kombu.connection import Connection

from peers.contenders import Contender, argv
from peers.history import BEGIN, History
from peers.judge import ids_in, missing
from peers.unit import Unit, spawn
from processes import is_alive
from servers import Guard, RabbitMQ, Redis
from waiting import until

BENCHMARKS = Path(__file__).resolve().parent.parent
#: With the history that they write.
TESTS = BENCHMARKS.parent / "tests"
_PATIENCE = 60.0
#: Each waits for its confirms, a few milliseconds each: one could not keep up the rate.
_PUBLISHERS = 4
#: Seconds for which all queues have to be empty before what has no effect is given up as lost.
#: RabbitMQ counts what quorum queues hold every 5 s.
_EMPTY = 15.0
#: Seconds without a message after which the queues were read to their ends.
_SILENT = 3.0

_QUEUES = """\
[{binary_to_list(element(4, proplists:get_value(name, Q))), proplists:get_value(messages, Q),
  proplists:get_value(consumers, Q)}
 || Q <- rabbit_amqqueue:info_all(<<"%(vhost)s">>,
                                  [name, messages, consumers, durable, auto_delete]),
    proplists:get_value(durable, Q), not proplists:get_value(auto_delete, Q)].
"""
#: Ends of the names of queues where messages are set aside.
_ASIDE = (".dlq", ".parked", ".XQ")


@dataclass(frozen=True, slots=True)
class Queues:
    """What the durable queues of a virtual host hold."""

    names: Sequence[str]
    waiting: int
    aside: int
    consumers: int


class Site:
    """One contender with its publishers, and what they note."""

    def __init__(
        self, contender: Contender, folder: Path, rabbitmq: RabbitMQ, redis: Redis, guard: Guard
    ) -> None:
        self.contender = contender
        self.rabbitmq = rabbitmq
        self.redis = redis
        self._folder = folder
        self._guard = guard
        self.history = History(folder / "history")
        self._vhost = ""
        self._environ: dict[str, str] = {}
        self.unit: Unit

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Run the worker while the block runs; it consumes when the block begins."""
        with self.rabbitmq.vhost() as broker:
            self._vhost = broker.rpartition("/")[2]
            self._environ = {
                **os.environ,
                "PYTHONPATH": f"{BENCHMARKS}{os.pathsep}{TESTS}",
                "PYTHONUNBUFFERED": "1",
                "BOOKINGS": str(self._folder / "history"),
                "BROKER_URL": broker,
                "REDIS_URL": self.redis.fresh_url(),
                "MARK": self.contender.mark,
                "QWORKER_RUN_DIR": str(self._folder / "run"),
            }
            command = argv(self.contender)
            with Unit(command, self._folder, self._environ, self._guard) as self.unit:
                until(lambda: self.queues().consumers, _PATIENCE, "somebody consumes")
                yield

    @contextmanager
    def published_to(self, rate: float, keys: int, seed: int) -> Iterator[None]:
        """Publish while the block runs."""
        processes = []
        for number in range(_PUBLISHERS):
            own = [f"key-{key}" for key in range(number, keys, _PUBLISHERS)]
            words = (self.contender.app, str(rate / _PUBLISHERS), f"{seed}-{number}", *own)
            command = [sys.executable, "-m", "peers.publisher", *words]
            with (self._folder / f"publisher-{number}.log").open("wb") as log:
                process = spawn(command, self._folder, self._environ, log)
            self._guard.watch(process.pid)
            processes.append(process)
        try:
            yield
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(_PATIENCE)
                process.kill()
                process.wait()
                self._guard.forget(process.pid)

    def busy(self, seconds: float) -> list[int]:
        """Return the processes that have begun a handler in the last seconds, and live."""
        since = time.monotonic() - seconds
        begun = [e for e in self.history.entries(BEGIN) if e.at > since]
        return [pid for pid in sorted({e.pid for e in begun}) if is_alive(pid)]

    def queues(self) -> Queues:
        """Ask the broker."""
        answer = self.rabbitmq.eval(_QUEUES % {"vhost": self._vhost})
        rows = ast.literal_eval(answer.translate(str.maketrans("{}", "()")))
        return Queues(
            names=[name for name, _, _ in rows],
            waiting=sum(count for name, count, _ in rows if not name.endswith(_ASIDE)),
            aside=sum(count for name, count, _ in rows if name.endswith(_ASIDE)),
            consumers=sum(consumers for _, _, consumers in rows),
        )

    def held(self) -> frozenset[str]:
        """End the worker, and return the ids of what the queues hold; they go on holding it."""
        self.unit.end()
        found: set[str] = set()

        def hear(message: Any) -> None:
            body = message.body
            found.update(ids_in(body.encode() if isinstance(body, str) else bytes(body)))
            found.update(ids_in(repr(message.properties).encode()))

        with Connection(self._environ["BROKER_URL"]) as connection:
            channel = connection.channel()  # its end gives all of it back
            for name in self.queues().names:
                channel.basic_consume(name, callback=hear)
            with suppress(TimeoutError):
                while True:
                    connection.drain_events(timeout=_SILENT)
        return frozenset(found)

    def drain(self, bound: float) -> float | None:
        """Wait until everything is done or lost; return the seconds, or None: not in time."""
        began = empty = time.monotonic()
        while (now := time.monotonic()) < began + bound:
            waiting = self.queues().waiting
            if waiting:
                empty = now
            quiet = _EMPTY if missing(self.history.entries()) else _EMPTY / 2
            if not waiting and now - empty >= quiet:
                return empty - began
            time.sleep(0.5)
        return None

"""Where a service runs: its servers or its file, and the links and the clock of each supervisor."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random

from chaos.faults import rabbitmq
from chaos.faults.catalog import Setting
from chaos.faults.clock import Clock
from chaos.faults.disk import SmallDisk, can_mount
from chaos.faults.proxy import Proxy
from chaos.faults.redis_clock import RedisByClock
from servers import RabbitMQ, Redis
from worker.transport.capabilities import sqlite_path

#: The messages of each queue of an embedded broker.
_DEPTHS = (
    "SELECT q.name, count(m.queue) FROM broker_queues q LEFT JOIN broker_messages m"
    " ON m.queue = q.id GROUP BY q.name"
)
#: Seconds that a look waits for who writes.
_BUSY = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A broker and a dedup store by their URLs; and what of them can be troubled."""

    broker: str
    dedup: str = ""
    rabbitmq: RabbitMQ | None = None
    redis: Redis | None = None
    disk: SmallDisk | None = None
    #: Who shares a file shares a machine, and so its clock: no namespace has a time of day of its
    #: own (time_namespaces(7)). What differing ones would do is in docs/shards.md (Limits).
    clock: Clock | None = None

    def depths(self) -> Mapping[str, int]:
        """Return how many messages each queue holds, delivered or not."""
        if self.rabbitmq is not None:
            return rabbitmq.depths(self.rabbitmq, self.broker)
        if not self.broker.startswith("sqlite:"):
            return {}
        with closing(sqlite3.connect(sqlite_path(self.broker), timeout=_BUSY)) as db:
            return dict(db.execute(_DEPTHS).fetchall())

    @classmethod
    @contextmanager
    def on_servers(cls, broker: RabbitMQ, redis: Redis) -> Iterator[Place]:
        """Give a virtual host and a database of their own."""
        with broker.vhost() as url:
            yield cls(broker=url, dedup=redis.fresh_url(), rabbitmq=broker, redis=redis)

    @classmethod
    @contextmanager
    def on_a_file(cls, folder: Path) -> Iterator[Place]:
        """Give one SQLite file, on a small disk where that can be made."""
        with ExitStack() as stack:
            disk, home = None, folder
            if can_mount():
                home = folder / "disk"
                disk = stack.enter_context(SmallDisk(home, megabytes=64))
            broker = f"sqlite:///{home / 'qworker.db'}"
            # The clock is the machine's: it goes on where the disk is full.
            yield cls(broker=broker, disk=disk, clock=Clock(folder / "clock"))


class Wiring:
    """How one supervisor reaches the servers, and the clock that it lives by."""

    def __init__(self, place: Place, folder: Path) -> None:
        self._place = place
        self.broker, self.dedup = place.broker, place.dedup
        self._to_rabbitmq: list[Proxy] = []
        self._to_redis: list[Proxy] = []
        if place.rabbitmq is not None and place.redis is not None:
            to_rabbitmq, to_redis = Proxy(place.rabbitmq.url), Proxy(place.redis.url)
            self.broker = to_rabbitmq.url_through(place.broker)
            self.dedup = to_redis.url_through(place.dedup)
            self._to_rabbitmq, self._to_redis = [to_rabbitmq], [to_redis]
        folder.mkdir(exist_ok=True)
        self.clock = place.clock or Clock(folder / "clock")

    def setting(self, random: Random) -> Setting:
        """Return what there is to trouble: the servers of all, and what is this supervisor's."""
        redis = self._place.redis
        return Setting(
            random=random,
            rabbitmq=self._place.rabbitmq,
            redis=redis,
            redis_clock=redis.clock if isinstance(redis, RedisByClock) else None,
            clocks=[self.clock],
            disk=self._place.disk,
            to_rabbitmq=self._to_rabbitmq,
            to_redis=self._to_redis,
        )

    def close(self) -> None:
        """End the links."""
        for link in (*self._to_rabbitmq, *self._to_redis):
            link.close()

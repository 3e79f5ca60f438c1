"""Who takes part: how each is started, and what the table says of its settings."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

RABBITMQ, REDIS, SQLITE = "RabbitMQ", "Redis", "SQLite"
#: The dedup stores of qworker.
STORES = ("memory", "redis", "postgresql", "sqlite")
#: Shards of qworker where nothing else is said.
SHARDS = 8
_QWORKER = "speed.apps.qworker_app"
_CLASSIC = {"QWORKER_QUEUE_TYPE": "classic", "KOMBU_QUEUE_TYPE": "classic"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contender:
    """One worker, as its users start it."""

    #: For the command line, tables and plots.
    slug: str
    #: What was installed.
    distribution: str
    #: Its app; publishes, and is what the command names.
    app: str
    command: tuple[str, ...]
    settings: str
    #: How many of its processes run handlers.
    processes: int = 2
    broker: str = RABBITMQ
    #: qworker's own store.
    dedup: str = ""
    #: Whether its handler asks Redis by ``SET key 1 NX EX`` first.
    mark: bool = False
    #: Of its own, beside those that all have.
    environ: Mapping[str, str] = field(default_factory=dict)
    #: Whether its handlers are, or can be, coroutines.
    asynchronous: bool = False

    @property
    def is_qworker(self) -> bool:
        """Whether it is this project."""
        return self.app == _QWORKER

    def on_classic_queues(self) -> Contender:
        """Return qworker or the bare loop on the type of queues that the peers have."""
        return replace(self, slug=f"{self.slug}-classic", environ=_CLASSIC)

    def marked(self) -> Contender:
        """Return the same with the dedup that people write by hand."""
        return replace(self, slug=f"{self.slug}-setnx", mark=True)


def qworker(  # noqa: PLR0913 - what it is started with
    dedup: str,
    *,
    broker: str = RABBITMQ,
    shards: int = SHARDS,
    processes: int = 2,
    prefetch: int = 0,
    slug: str = "",
) -> Contender:
    """Return this project with a dedup store of ``STORES``; ``prefetch`` a shard, if any."""
    name = f"qworker-{dedup}" if broker == RABBITMQ else f"qworker-on-{broker.lower()}"
    if dedup == "memory":
        processes = 1  # it is one process's memory
    amount = ["--shards", str(shards), "--processes", str(processes)]
    settings = f"processes: {processes}, shards: {shards}, dedup: {dedup}"
    if prefetch:
        amount += ["--prefetch", str(prefetch)]
        settings += f", prefetch: {prefetch}"
    return Contender(
        slug=slug or name,
        distribution="qworker-runtime",
        app=_QWORKER,
        command=("worker.cli", "start", "--app", _QWORKER, *amount, "--log-level", "warning"),
        processes=processes,
        settings=settings,
        broker=broker,
        dedup=dedup,
        asynchronous=True,
    )


def kombu() -> Contender:
    """Return the limit: the bare loop."""
    app = "speed.apps.kombu_app"
    return Contender(
        slug="kombu",
        distribution="kombu",
        app=app,
        command=(app,),
        processes=1,
        settings="one process, quorum queue, an ack for 50 messages, no handler",
    )


def libraries() -> Contender:
    """Return what qworker is built on, in as many processes: the floor of its memory."""
    app = "speed.apps.libraries_app"
    settings = "the bare loop in two processes below a third; kombu and redis-py imported in all"
    return replace(kombu(), slug="kombu-and-redis", app=app, command=(app,), settings=settings)


def peers() -> Iterator[Contender]:
    """Yield the peers without dedup."""
    app = "speed.apps.celery_app"
    common = ("celery", "--app", app, "worker", "--loglevel", "warning", "--concurrency")
    yield Contender(
        slug="celery-prefork",
        distribution="celery",
        app=app,
        command=(*common, "2"),
        settings="prefork, 2 processes; acks_late, prefetch multiplier 64",
    )
    yield Contender(
        slug="celery-threads",
        distribution="celery",
        app=app,
        command=(*common, "8", "--pool", "threads"),
        processes=1,
        settings="8 threads; acks_late, prefetch multiplier 64",
    )
    app = "speed.apps.dramatiq_app"
    yield Contender(
        slug="dramatiq",
        distribution="dramatiq",
        app=app,
        command=("dramatiq", app, "--processes", "2", "--threads", "8"),
        settings="2 processes x 8 threads",
        asynchronous=True,
    )
    app = "speed.apps.taskiq_app"
    yield Contender(
        slug="taskiq",
        distribution="taskiq",
        app=app,
        command=("taskiq", "worker", f"{app}:broker", "--workers", "2", "--log-level", "ERROR"),
        settings="aio-pika, 2 processes, qos 128, coroutine",
        asynchronous=True,
    )
    app = "speed.apps.faststream_app"
    yield Contender(
        slug="faststream",
        distribution="faststream",
        app=app,
        command=("faststream", "run", f"{app}:app", "--workers", "2", "--log-level", "warning"),
        settings="rabbit, 2 processes, prefetch 128, coroutine",
        asynchronous=True,
    )
    app = "speed.apps.huey_app"
    command = ("huey.bin.huey_consumer", f"{app}.huey", "-w", "2", "-k", "process")
    yield Contender(
        slug="huey-redis",
        distribution="huey",
        app=app,
        command=(*command, "--quiet"),
        settings="2 processes",
        broker=REDIS,
    )
    yield Contender(
        slug="huey-sqlite",
        distribution="huey",
        app=app,
        command=(*command, "--quiet"),
        settings="2 processes",
        broker=SQLITE,
    )


def ours() -> Iterator[Contender]:
    """Yield this project with each of its stores, and on its own broker."""
    for store in STORES:
        yield qworker(store)
    yield qworker("redis", processes=1, slug="qworker-redis-1")
    yield qworker("sqlite", broker=SQLITE)


def contenders() -> list[Contender]:
    """Return everyone, in the order of the tables."""
    plain = [*peers()]
    return [kombu(), *ours(), *plain, *(each.marked() for each in plain)]


def argv(contender: Contender) -> list[str]:
    """Return the command line that starts it, by the interpreter that runs this."""
    return [sys.executable, "-m", *contender.command]

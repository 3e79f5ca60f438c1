"""Who takes part: how each is started, and what the table says of its settings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version

#: When the hand-written dedup marks an id as done.
BEFORE, AFTER = "before", "after"


@dataclass(frozen=True, slots=True)
class Contender:
    """One worker; ``mark`` is empty where dedup is its own."""

    name: str
    #: What was installed.
    distribution: str
    #: Its app in ``peers.apps``.
    app: str
    command: tuple[str, ...]
    settings: str
    mark: str = ""

    @property
    def title(self) -> str:
        """Its line in the table."""
        return f"{self.name}, marked {self.mark}" if self.mark else self.name

    @property
    def slug(self) -> str:
        """The name for the command line and of its folder."""
        return f"{self.name.lower()}-{self.mark}" if self.mark else self.name.lower()

    @property
    def version(self) -> str:
        """What is installed."""
        return f"{self.name} {version(self.distribution)}"


def contenders() -> Iterator[Contender]:
    """Yield everyone, in the order of the table."""
    yield Contender(
        "qworker",
        "qworker-runtime",
        "peers.apps.qworker_app",
        ("worker.cli", "start", "--app", "peers.apps.qworker_app"),
        "2 processes x 8 threads, 8 shards, dedup in Redis; else its defaults (quorum queues)",
    )
    for mark in (BEFORE, AFTER):
        yield Contender(
            "Celery",
            "celery",
            "peers.apps.celery_app",
            ("celery", "--app", "peers.apps.celery_app", "worker", "--concurrency", "16"),
            "prefork, 16 processes; acks_late, reject_on_worker_lost, prefetch multiplier 1,"
            " confirm_publish, connects anew for ever; retries for ever, after 1 to 5 s",
            mark,
        )
    for mark in (BEFORE, AFTER):
        yield Contender(
            "Dramatiq",
            "dramatiq",
            "peers.apps.dramatiq_app",
            ("dramatiq", "peers.apps.dramatiq_app", "--processes", "2", "--threads", "8"),
            "2 processes x 8 threads; confirm_delivery; retries for ever, after 0.5 to 5 s",
            mark,
        )
    for mark in (BEFORE, AFTER):
        yield Contender(
            "FastStream",
            "faststream",
            "peers.apps.faststream_app",
            (
                "faststream",
                "run",
                "peers.apps.faststream_app:app",
                "--workers",
                "2",
                "--log-level",
                "warning",
            ),
            "2 processes, prefetch 8 each; AckPolicy.NACK_ON_ERROR, durable queue, persist=True,"
            " confirms, graceful_timeout 25 s, reconnect_interval 1 s",
            mark,
        )


def argv(contender: Contender) -> list[str]:
    """Return the command line that starts it, by the interpreter that runs this."""
    return [sys.executable, "-m", *contender.command]

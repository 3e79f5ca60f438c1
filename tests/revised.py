"""A service whose handler has revisions, and what tests ask of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import orjson

from worker import App, Context, Event, Revisions
from worker.testing import TestWorker


class Price(Event, name="price.changed", key="article", revision="revision"):
    """What an article costs, from some revision on."""

    article: str
    revision: int
    amount: int = 0


WAIT = Revisions("revision", gap="wait", limit=60)
ACCEPT_LATE = Revisions("revision", gap="wait", limit=60, then="accept")


class Shop:
    """One handler, which notes what it is called for."""

    def __init__(self, revision: Any = "revision", **settings: Any) -> None:
        self.app = App("shop", settings=settings)
        self.seen: list[tuple[str, int]] = []
        self.meanwhile: Callable[[Price, Context], None] = lambda *_: None
        self.app.on(Price, name="note", revision=revision)(self.note)

    def note(self, event: Price, context: Context) -> None:
        self.meanwhile(event, context)
        self.seen.append((event.article, event.revision))

    def revisions(self, article: str = "pen") -> list[int]:
        return [revision for name, revision in self.seen if name == article]


def publish(worker: TestWorker, *revisions: int, article: str = "pen") -> None:
    for revision in revisions:
        worker.publish(Price(article=article, revision=revision))


def reasons(worker: TestWorker) -> list[tuple[int, str]]:
    """Return the dead letters: their revisions, and why they are there."""
    return [(orjson.loads(each.body)["revision"], each.reason) for each in worker.dead_letters]


def counted(worker: TestWorker) -> tuple[int, int]:
    """Return how many were superseded, and how many had to wait."""
    consumer: Any = worker._consumer
    return consumer.counters.superseded, consumer.counters.early

"""The messages of a load, each when it is due."""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from itertools import accumulate
from typing import NamedTuple

from speed.load import Load
from speed.sharedmemory import Moments


class Message(NamedTuple):
    """One event; the padding makes it as long as the load says."""

    ident: str
    key: str
    number: int
    padding: str


class Stream:
    """The messages of a load, each when it is due, for ``for`` and for ``async for``."""

    def __init__(self, load: Load, sent: Moments | None = None, warm: float = 0.05) -> None:
        self.load = load
        self._sent = sent
        self._warm = int(load.events * warm)
        #: Wall clock and CPU seconds when the first few had left: what is before is connecting.
        self.began = self.began_cpu = 0.0
        #: How many left after that.
        self.counted = load.events - self._warm

    def __iter__(self) -> Iterator[Message]:
        for message, due in self._planned():
            if (left := due - time.monotonic()) > 0:  # a sleep of nothing takes 0.1 ms all the same
                time.sleep(left)
            yield self._leaving(message)

    async def __aiter__(self) -> AsyncIterator[Message]:
        for message, due in self._planned():
            if (left := due - time.monotonic()) > 0:
                await asyncio.sleep(left)
            yield self._leaving(message)

    def _planned(self) -> Iterator[tuple[Message, float]]:
        padding = padding_of(self.load)
        begin = time.monotonic()
        spacing = 1 / self.load.rate if self.load.rate else 0.0
        for number, key in enumerate(keys_of(self.load)):
            due = begin + number * spacing if spacing else 0.0
            yield Message(str(uuid.uuid4()), key, number, padding), due

    def _leaving(self, message: Message) -> Message:
        if message.number == self._warm:
            self.began, self.began_cpu = time.monotonic(), time.process_time()
        if self._sent is not None:
            self._sent.note(message.number, time.monotonic())
        return message


def padding_of(load: Load) -> str:
    """Return what makes a body of the middle of the stream as long as was asked for."""
    message = Message(str(uuid.UUID(int=0)), "key-100", load.events // 2, "")
    return "." * (load.body - len(json.dumps(message._asdict(), separators=(",", ":"))))


def keys_of(load: Load) -> Iterator[str]:
    """Yield the key of each event."""
    if not load.skew:
        yield from (f"key-{number % load.keys}" for number in range(load.events))
        return
    chance = random.Random(load.seed)
    weights = [*accumulate(1 / rank**load.skew for rank in range(1, load.keys + 1))]
    ranks = chance.choices(range(load.keys), cum_weights=weights, k=load.events)
    yield from (f"key-{rank}" for rank in ranks)

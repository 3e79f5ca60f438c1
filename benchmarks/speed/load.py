"""What is published: how many events of how many keys, how long, and when each is due.

A load goes to the publishing process as JSON in ``SPEED_LOAD``, and is the same for everyone.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict, dataclass
from itertools import accumulate
from typing import NamedTuple

from speed.sharedmemory import Moments

#: What handlers can do beside counting.
NOTHING, SLEEPING, COMPUTING = "nothing", "sleeping", "computing"
ASYNCHRONOUS, REJECTING, RETRYING = "asynchronous", "rejecting", "retrying"


class Message(NamedTuple):
    """One event; the padding makes it as long as the load says."""

    ident: str
    key: str
    number: int
    padding: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Many events."""

    events: int = 20_000
    keys: int = 1_000
    #: Exponent of Zipf's law: 0 gives all keys as often as each other.
    skew: float = 0.0
    #: Bytes of a body; with all of an event in it, JSON and without spaces.
    body: int = 120
    #: Whether the key orders; no peer knows order.
    ordered: bool = True
    #: What a handler does.
    work: str = NOTHING
    #: Events a second, 0 for as fast as it goes.
    rate: float = 0.0
    #: Wait for the confirm of each, where the publisher can do both.
    one_by_one: bool = False
    seed: int = 1

    def dump(self) -> str:
        """Return it as text."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Load:
        """Return what ``dump`` wrote."""
        return cls(**json.loads(text))

    def padding(self) -> str:
        """Return what makes a body of the middle of the stream as long as was asked for."""
        message = Message(str(uuid.UUID(int=0)), "key-100", self.events // 2, "")
        return "." * (self.body - len(json.dumps(message._asdict(), separators=(",", ":"))))

    def chosen(self) -> Iterator[str]:
        """Yield the key of each event."""
        if not self.skew:
            yield from (f"key-{number % self.keys}" for number in range(self.events))
            return
        chance = random.Random(self.seed)
        weights = [*accumulate(1 / rank**self.skew for rank in range(1, self.keys + 1))]
        ranks = chance.choices(range(self.keys), cum_weights=weights, k=self.events)
        yield from (f"key-{rank}" for rank in ranks)


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
            time.sleep(max(0.0, due - time.monotonic()))
            yield self._leaving(message)

    async def __aiter__(self) -> AsyncIterator[Message]:
        for message, due in self._planned():
            if (left := due - time.monotonic()) > 0:
                await asyncio.sleep(left)
            yield self._leaving(message)

    def _planned(self) -> Iterator[tuple[Message, float]]:
        padding = self.load.padding()
        begin = time.monotonic()
        spacing = 1 / self.load.rate if self.load.rate else 0.0
        for number, key in enumerate(self.load.chosen()):
            due = begin + number * spacing if spacing else 0.0
            yield Message(str(uuid.uuid4()), key, number, padding), due

    def _leaving(self, message: Message) -> Message:
        if message.number == self._warm:
            self.began, self.began_cpu = time.monotonic(), time.process_time()
        if self._sent is not None:
            self._sent.note(message.number, time.monotonic())
        return message

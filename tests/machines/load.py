"""A steady load: publishers that go on through every fault, and know what was confirmed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

from acceptance.apps.events import Step
from acceptance.running import Load
from worker import App

_BATCH = 4


class SteadyLoad:
    """Several publishers, each with keys of its own, which it publishes to in turn.

    They run here, where no link is cut, and connect anew where a broker goes away. ``seconds`` is
    what a handler takes; ``rate`` counts events a second, of all publishers together.
    """

    def __init__(
        self,
        broker: str,
        *,
        publishers: int = 3,
        keys: int = 48,
        rate: float = 100.0,
        seconds: float = 0.01,
    ) -> None:
        settings = {"connect_timeout": 60}
        apps = [App(f"publisher-{n}", broker=broker, settings=settings) for n in range(publishers)]
        self._apps = apps
        self._loads = [Load(app) for app in apps]
        self._streams = [
            _steps([f"key-{key}" for key in range(n, keys, publishers)], seconds)
            for n in range(publishers)
        ]
        self._pause = _BATCH * publishers / rate

    @property
    def confirmed(self) -> set[str]:
        """The ids that the broker has confirmed."""
        return set[str]().union(*(load.confirmed for load in self._loads))

    @contextmanager
    def running(self) -> Iterator[None]:
        """Publish while the block runs. Sequences go on where the last block left them."""
        with ExitStack() as stack:
            for load, steps in zip(self._loads, self._streams, strict=True):
                stack.enter_context(load.in_background(steps, batch=_BATCH, pause=self._pause))
            yield

    def close(self) -> None:
        """Disconnect."""
        for app in self._apps:
            app.close()


def _steps(keys: list[str], seconds: float) -> Iterator[Step]:
    for sequence in count():
        for key in keys:
            yield Step(key=key, sequence=sequence, seconds=seconds)

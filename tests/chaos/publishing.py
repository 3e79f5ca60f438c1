"""Publishers that go on through every fault, and note what the broker confirmed.

A publisher sends its events in order, some at a time, and those of before again, with their ids,
until the broker has confirmed them: as an application does that must not lose one. What it does not
hear of is *unknown*, which is not the same as failed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from chaos.history import Writer
from worker import App, Event
from worker.errors import QworkerError
from worker.message import key_of

_BATCH = 4
#: Seconds for one attempt to connect and publish.
_PATIENCE = 5.0
_AGAIN = 0.1


@dataclass(frozen=True, slots=True)
class Publication:
    """An event, and its place in the order of its key; -1 where it has none."""

    event: Event
    sequence: int

    @property
    def facts(self) -> dict[str, Any]:
        """What the history tells of it."""
        return {
            "id": self.event.event_id,
            "key": key_of(self.event) or "",
            "sequence": self.sequence,
            "detail": self.event.name,
            "order": getattr(self.event, "fault", ""),
        }


class Publisher:
    """One publisher, in a thread of its own; ``rate`` counts events a second."""

    def __init__(
        self, name: str, url: str, stream: Iterator[Publication], writer: Writer, *, rate: float
    ) -> None:
        self._app = App(name, broker=url, settings={"connect_timeout": _PATIENCE})
        self._stream = stream
        self._writer = writer
        self._pause = _BATCH / rate
        self._ends = threading.Event()
        self._gives_up = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Publish from now on."""
        self._thread.start()

    def end(self) -> None:
        """Begin nothing new; what is begun is published to its end."""
        self._ends.set()

    @property
    def is_done(self) -> bool:
        """Whether it has ended, and all that it began is confirmed, unless it gave up."""
        return not self._thread.is_alive()

    def give_up(self) -> None:
        """End; what is not confirmed by now stays unknown."""
        self._ends.set()
        self._gives_up.set()

    def trouble(self) -> str:
        """Wait for the end of one that gave up; return what a publisher must not meet, if any."""
        self._thread.join(2 * _PATIENCE)
        if self._thread.is_alive():
            return f"{self._thread.name} hangs"
        self._app.close()
        error = self._error
        return f"{self._thread.name} met {type(error).__name__}: {error}" if error else ""

    def _run(self) -> None:
        try:
            while not self._ends.is_set():
                self._publish(list(islice(self._stream, _BATCH)))
                self._ends.wait(self._pause)
        except BaseException as error:  # noqa: BLE001 - told by trouble()
            self._error = error

    def _publish(self, batch: list[Publication]) -> None:
        facts = [each.facts for each in batch]
        is_confirmed = False
        while not (is_confirmed or self._gives_up.is_set()):
            self._note("invoke", facts)
            try:
                with self._app.publisher() as out:
                    for each in batch:
                        out.publish(each.event)
            except* QworkerError:  # not confirmed, or refused: some of them, or all
                self._note("unknown", facts)
                self._gives_up.wait(_AGAIN)
            else:
                self._note("confirmed", facts)
                is_confirmed = True

    def _note(self, what: str, facts: list[dict[str, Any]]) -> None:
        self._writer.note_all({"what": what, **each} for each in facts)

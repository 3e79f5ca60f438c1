"""A database that does not answer is away: who asks it waits for so long, and then goes on.

Drivers wait for ever where a session hangs, or a network swallows what is sent, and each has its
own way to be told otherwise, if it has any. So whatever the driver, each question is asked by a
thread of its own, and given up after a time. The thread is left where it is; the next question has
another one, and with it another connection, which may be better off. Once the first is answered
after all, its thread is there for later questions.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from worker.contrib.outbox.rows import EVERYTHING, OutboxUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from contrib.outbox.rows import Bounds, Entry, OutboxStore

T = TypeVar("T")

#: Seconds that a database has to answer.
PATIENCE = 10.0
#: Questions that may hang at a time: each has a thread and a connection.
_MOST = 8
#: A process that was stopped for long finds one of so many parts of its patience gone, not all.
_PARTS = 10


class Answering:
    """The rows of ``store``, which answers in time or is away; an OutboxStore, for one thread."""

    def __init__(
        self,
        store: OutboxStore,
        patience: float = PATIENCE,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._store = store
        self._patience = patience
        self._clock = clock
        self._idle: list[_Asker] = []
        self._count = 0
        #: When the first question was asked of those that were not answered; None where the last
        #: one was. Any thread may look at it.
        self.silent_since: float | None = None

    def check(self) -> None:
        """Return if rows could be read now."""
        self._ask(self._store.check)

    def horizon(self) -> int | None:
        """Return the first open transaction that may have written rows."""
        return self._ask(self._store.horizon)

    def newest(self) -> int:
        """Return the highest sequence number."""
        return self._ask(self._store.newest)

    def read(self, limit: int, within: Bounds = EVERYTHING) -> list[Entry]:
        """Return rows by their sequence numbers."""
        return self._ask(lambda: self._store.read(limit, within))

    def remove(self, sequences: Sequence[int]) -> None:
        """Remove rows."""
        self._ask(lambda: self._store.remove(sequences))

    def _ask(self, question: Callable[[], T]) -> T:
        """Return the answer. Raises OutboxUnavailable where there is none, and what there is."""
        begun = self._clock()
        try:
            answer = self._answer(question)
        except OutboxUnavailable:
            if self.silent_since is None:
                self.silent_since = begun
            raise
        self.silent_since = None
        return answer

    def _answer(self, question: Callable[[], T]) -> T:
        call = _Call(question)
        self._asker().take(call)
        for _ in range(_PARTS):
            if call.is_over.wait(self._patience / _PARTS):
                return call.answer()
        raise OutboxUnavailable(
            f"the database of the outbox has not answered for {self._patience:g} seconds"
        )

    def _asker(self) -> _Asker:
        """Return a thread that has nothing to do. Raises OutboxUnavailable where too many hang."""
        if self._idle:
            return self._idle.pop()
        if self._count >= _MOST:
            raise OutboxUnavailable(
                f"the database of the outbox has not answered {self._count} times in a row, and is"
                " asked no more until it answers one of these"
            )
        asker = _Asker(self._idle)
        asker.start()
        self._count += 1
        return asker


class _Call(Generic[T]):
    """A question, and what came of it."""

    def __init__(self, question: Callable[[], T]) -> None:
        self._question = question
        self._answers: list[T] = []
        self._error: BaseException | None = None
        self.is_over = threading.Event()

    def ask(self) -> None:
        """Ask, for ever."""
        try:
            self._answers.append(self._question())
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits
            self._error = error

    def answer(self) -> T:
        """Return, or raise, what came of it."""
        if self._error is not None:
            raise self._error
        return self._answers[0]


class _Asker(threading.Thread):
    """Asks one question after the other; is in ``idle`` when it has none."""

    def __init__(self, idle: list[_Asker]) -> None:
        super().__init__(name="qworker-outbox-database", daemon=True)
        self._idle = idle
        self._calls: SimpleQueue[_Call[Any]] = SimpleQueue()

    def take(self, call: _Call[Any]) -> None:
        """Ask this next."""
        self._calls.put(call)

    def run(self) -> None:
        """Ask."""
        while True:
            call = self._calls.get()
            call.ask()
            self._idle.append(self)  # before the answer is heard: the next question finds it
            call.is_over.set()
            del call  # and what it holds

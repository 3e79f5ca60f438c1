"""The relay as a program: a signal ends it whenever it comes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from worker.contrib.outbox import running

from waiting import until
from worker import App


class Nothing:
    """No rows; notes that it was asked for some."""

    def __init__(self) -> None:
        self.was_asked = threading.Event()

    def check(self) -> None: ...

    def horizon(self) -> int | None:
        return None

    def newest(self) -> int:
        return 0

    def read(self, *_: Any, **__: Any) -> list[Any]:
        self.was_asked.set()
        return []

    def remove(self, *_: Any) -> None: ...


class Unlucky(threading.Event):
    """One in which a signal always meets the main thread while that has the lock."""

    is_locked = False

    def wait(self, timeout: float | None = None) -> bool:
        if threading.current_thread() is threading.main_thread():
            self.is_locked = True
            signal.raise_signal(signal.SIGTERM)
            self.is_locked = False
        return super().wait(timeout)

    def set(self) -> None:
        assert not self.is_locked, "it waits for a lock that it has itself"
        super().set()


@contextmanager
def sigterm_once(rows: Nothing) -> Iterator[list[int]]:
    """Send SIGTERM as soon as the relay is at work; yield what was left to the old handler."""
    old: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: old.append(number))

    def send() -> None:
        if rows.was_asked.wait(30):
            os.kill(os.getpid(), signal.SIGTERM)

    sender = threading.Thread(target=send)
    sender.start()
    try:
        yield old
    finally:
        rows.was_asked.set()
        sender.join(30)
        signal.signal(signal.SIGTERM, before)


def test_a_signal_that_meets_it_in_the_midst_of_waiting_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = SimpleNamespace(Event=Unlucky, Thread=threading.Thread)
    monkeypatch.setattr(running, "threading", parts)
    broker, leases = (f"sqlite:///{tmp_path / name}" for name in ("broker.db", "leases.db"))
    app = App("desk", broker=broker, settings={"leases": leases, "lease_ttl": 1.0})
    rows = Nothing()

    with sigterm_once(rows) as old:
        assert running.run(app, rows, pause=0.05, grace=0.0) == 0
        assert old == []

    until(lambda: "qworker-outbox-relay" not in map(_name, threading.enumerate()), 30)


def test_one_that_comes_as_soon_as_it_can_be_noted_is_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: old.append(number))

    def at_once(number: int, handler: Any) -> Any:
        replaced = signal.signal(number, handler)
        if number == signal.SIGTERM and replaced is not handler and not sent:
            sent.append(number)
            signal.raise_signal(number)
        return replaced

    sent: list[int] = []
    parts = SimpleNamespace(
        signal=at_once, getsignal=signal.getsignal, SIGTERM=signal.SIGTERM, SIGINT=signal.SIGINT
    )
    monkeypatch.setattr(running, "signal", parts)
    try:
        with running._until_signalled() as signalled:
            assert signalled.yet
            signal.raise_signal(signal.SIGTERM)
            assert old == [signal.SIGTERM], "the second one does what it did before"
    finally:
        signal.signal(signal.SIGTERM, before)


def _name(thread: threading.Thread) -> str:
    return thread.name

"""A wall clock that jumps, for chosen processes: the machine's own is not touched.

A file says by how many seconds it is ahead. Python processes that ``install`` ran in read it at
every look at the time, and so does what runs with libfaketime (see ``redis_clock``). Time that only
passes (CLOCK_MONOTONIC) is as it is.

This module is imported by services before anything else, so it imports nothing but what they do.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

VARIABLE = "CHAOS_CLOCK"
_EPOCH = 2_440_587.5  # of 1970, in days of the Julian calendar
_DAY = 86_400.0


class Clock:
    """The clock that a file stands for; at first it tells the time of the machine."""

    def __init__(self, file: Path) -> None:
        self.file = file.absolute()
        self.set(0.0)

    @property
    def ahead(self) -> float:
        """How many seconds it is ahead."""
        return float(self.file.read_text())

    def set(self, ahead: float) -> None:
        """Put it so many seconds ahead of the machine's; a negative number: behind."""
        draft = self.file.with_suffix(".new")
        draft.write_text(f"{ahead:+.3f}\n")  # the sign tells libfaketime that it is no moment
        draft.replace(self.file)

    @contextmanager
    def stepped(self, seconds: float) -> Iterator[None]:
        """Let it jump by so many seconds, and back at the end."""
        before = self.ahead
        self.set(before + seconds)
        try:
            yield
        finally:
            self.set(before)

    def environment(self) -> dict[str, str]:
        """Return what a service that lives by this clock needs in its environment."""
        return {VARIABLE: str(self.file)}


def install(environment: Mapping[str, str]) -> None:
    """Let this process live by the clock that its environment names.

    Everything that the runtime asks for the time is led there: ``time.time``, ``time.time_ns`` (and
    with them the modules written in Python), ``datetime.now`` and, in SQL, ``julianday('now')``.
    """
    file = environment[VARIABLE]
    seconds, nanoseconds, moment = time.time, time.time_ns, datetime.now

    def ahead() -> float:
        descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return float(os.read(descriptor, 64))
        finally:
            os.close(descriptor)

    def now(cls: type[datetime], tz: tzinfo | None = None) -> datetime:
        return moment(tz) + timedelta(seconds=ahead())

    time.time = lambda: seconds() + ahead()
    time.time_ns = lambda: nanoseconds() + round(ahead() * 1e9)
    _replace(datetime, "now", classmethod(now))
    sqlite3.connect = _connecting(sqlite3.connect)


def _replace(builtin: type, name: str, value: object) -> None:
    """Replace an attribute of a class written in C.

    A class of our own in its place would be refused by what knows this one by its identity, as
    orjson and msgspec do.
    """
    attributes: dict[str, Any] = gc.get_referents(builtin.__dict__)[0]
    attributes[name] = value
    ctypes.pythonapi.PyType_Modified(ctypes.py_object(builtin))


def _connecting(connect: Callable[..., sqlite3.Connection]) -> Callable[..., Any]:
    """Return ``sqlite3.connect`` for databases whose ``julianday('now')`` follows ``time.time``."""

    def julianday(text: str) -> float | None:
        if text == "now":
            return time.time() / _DAY + _EPOCH
        with closing(connect(":memory:")) as other:
            found: float | None = other.execute("SELECT julianday(?)", (text,)).fetchone()[0]
        return found

    def connect_by_clock(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        database = connect(*args, **kwargs)
        database.create_function("julianday", 1, julianday)
        return database

    return connect_by_clock

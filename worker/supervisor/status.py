"""What a supervisor tells of itself, and the file in which it does so once a second.

Probes that run a command (``qworker check --live``) read the file: no port, no broker, no
process disturbed. A reader knows by a lock whether the writer still lives. Each new content is a
new file, locked by its writer (flock(2)) before it takes the place of the one before; the kernel
releases the lock of a writer that dies, however it dies, and pids that are used again, or that
belong to another container, confuse nobody.
"""

from __future__ import annotations

import fcntl
import json
import os
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from worker.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Seconds after which a supervisor that wrote no new status counts as hung.
STALE_AFTER = 10.0


@dataclass(frozen=True, slots=True)
class Status:
    """The state of a service on this machine, at one moment."""

    service: str
    pid: int
    #: ``starting``, ``running``, ``reloading`` or ``draining``.
    state: str
    #: Whether every process that consumes gives signs of life. Says nothing of the broker.
    live: bool
    #: Whether every process consumes and none is being drained or waits for a server.
    ready: bool
    #: Reading of the monotonic clock, which the processes of one machine share.
    at: float
    text: str = ""
    http: str = ""
    restarts: int = 0
    processes: Sequence[Mapping[str, Any]] = ()
    counters: Mapping[str, float] = field(default_factory=dict)
    gauges: Mapping[str, float] = field(default_factory=dict)

    def says_the_same(self, other: Status) -> bool:
        """Whether ``other`` differs in nothing but the time, and how long ago processes spoke."""
        return _steady(self) == _steady(other)

    def fresh(self, now: float) -> bool:
        """Whether the supervisor's loop went round lately."""
        return now - self.at <= STALE_AFTER


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to a probe, with the reason in plain words."""

    ok: bool
    text: str


def _steady(status: Status) -> Status:
    """Return ``status`` without what time alone changes."""
    processes = [{**each, "silent_for": 0.0} for each in status.processes]
    return replace(status, at=0.0, processes=processes)


def is_live(statuses: Sequence[Status], now: float, service: str | None = None) -> Verdict:
    """Whether there is a supervisor, and every one there is goes round with live processes.

    ``service`` is whose they are, where they are of one alone.
    """
    return _verdict(statuses, now, "live", service)


def is_ready(statuses: Sequence[Status], now: float, service: str | None = None) -> Verdict:
    """The same: whether every one there is consumes with all its processes."""
    return _verdict(statuses, now, "ready", service)


def _verdict(statuses: Sequence[Status], now: float, wanted: str, service: str | None) -> Verdict:
    if not statuses:
        who = "supervisor" if service is None else f"supervisor of {service!r}"
        return Verdict(False, f"not {wanted}: no {who} runs here (looked in {run_folder()})")
    for status in statuses:
        name = f"{status.service or 'a service'} (pid {status.pid})"
        if not status.fresh(now):
            return Verdict(False, f"{name}: no new status for {now - status.at:.0f} s")
        if not getattr(status, wanted):
            return Verdict(False, f"{name}: not {wanted}: {status.text}")
    return Verdict(True, "; ".join(f"{s.service} (pid {s.pid}): {s.text}" for s in statuses))


def run_folder() -> Path:
    """Return the folder of status files: QWORKER_RUN_DIR, or one of this user's own."""
    if given := os.environ.get("QWORKER_RUN_DIR"):
        return Path(given)
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "qworker"
    return Path(tempfile.gettempdir()) / f"qworker-{os.geteuid()}"


def read_status(service: str | None = None) -> list[Status]:
    """Return the status of every living supervisor of ``service`` (of all services, if None).

    Files whose writer is gone are removed. Raises ConfigurationError if the folder is not safe.
    """
    folder = run_folder()
    if not folder.is_dir():
        return []
    _check(folder)
    found = []
    for file in sorted(folder.glob("*.json")):
        with suppress(OSError, ValueError, TypeError):
            status = _read(file)
            if status is not None and service in (None, status.service):
                found.append(status)
    return found


def _read(file: Path) -> Status | None:
    """Return the status of one file, or None, and the file removed, if its writer is gone."""
    while True:
        with file.open("rb") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return Status(**json.load(stream))
            # Nobody holds this one: its writer died, or has put a newer one in its place.
            if os.path.samestat(os.fstat(stream.fileno()), file.stat()):
                file.unlink()
                return None


class StatusFile:
    """Writes the status of this process. Used by the supervisor's loop alone."""

    def __init__(self, service: str) -> None:
        """Make the folder. Raises ConfigurationError or OSError if it cannot be used."""
        folder = run_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check(folder)
        name = "".join(c if c.isalnum() or c in "-_." else "_" for c in service) or "service"
        self.path = folder / f"{name}-{os.getpid()}.json"
        self._fresh = folder / f".{self.path.name}.new"
        self._held = -1
        self._fresh.unlink(missing_ok=True)

    def write(self, status: Status) -> None:
        """Put ``status`` in the place of the one before, whole or not at all. Raises OSError."""
        facts = {name: getattr(status, name) for name in Status.__slots__}  # asdict copies it all
        content = json.dumps(facts, separators=(",", ":"), default=str).encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._fresh, flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.write(descriptor, content)
            self._fresh.replace(self.path)
        except OSError:
            os.close(descriptor)
            self._fresh.unlink(missing_ok=True)
            raise
        self._release()
        self._held = descriptor

    def remove(self) -> None:
        """Remove the file: this supervisor ends."""
        self.path.unlink(missing_ok=True)
        self._release()

    def _release(self) -> None:
        if self._held >= 0:
            os.close(self._held)
            self._held = -1


def _check(folder: Path) -> None:
    """Refuse a folder in which somebody else could have put a file, unless it was named to us."""
    if os.environ.get("QWORKER_RUN_DIR"):
        return
    facts = folder.lstat()
    if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.geteuid() or facts.st_mode & 0o077:
        raise ConfigurationError(
            f"{folder} must be a folder of this user's own, with mode 0700; set QWORKER_RUN_DIR to"
            " use another"
        )

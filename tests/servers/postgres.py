"""A private PostgreSQL cluster."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import ClassVar

import psycopg

from processes import children_of, is_alive, stands_still
from servers.guard import Guard
from servers.process import Server, ServerFailed, find_program
from waiting import until

_USER = "qworker"


class PostgreSQL(Server):
    """``fresh_url`` gives each test an empty database of its own."""

    #: "Fast": end the sessions, then stop. SIGTERM would wait for clients to leave.
    stop_signal: ClassVar[signal.Signals] = signal.SIGINT

    def __init__(self, folder: Path, guard: Guard) -> None:
        self._user = _unprivileged() if os.geteuid() == 0 else None
        self._initdb = find_program("initdb", package="postgresql", places=_installations())
        self._postgres = self._initdb.with_name("postgres")
        self._names = (f"test_{number}" for number in count(1))
        if self._user:
            # pytest's folders are closed to everybody but their owner, root.
            folder = Path(tempfile.mkdtemp(prefix="qworker-postgres-"))
            shutil.chown(folder, self._user)
        super().__init__(folder, guard)
        self._data = folder / "data"

    @property
    def url(self) -> str:
        """The database ``postgres``."""
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/postgres"

    def fresh_url(self, encoding: str = "UTF8") -> str:
        """Return the URL of an empty database that no other test uses."""
        self.start()
        name = next(self._names)
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} ENCODING '{encoding}' TEMPLATE template0")
        return f"postgresql://{_USER}@127.0.0.1:{self.port}/{name}"

    def user(self) -> str | None:
        """PostgreSQL refuses to run as root."""
        return self._user

    def prepare(self) -> None:
        """Create the cluster."""
        options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"]
        initdb = self.spawn([self._initdb, "-D", self._data, "-U", _USER, *options])
        code = initdb.wait()
        self._guard.forget(initdb.pid)
        if code:
            raise ServerFailed(self.report(f"could not be set up (initdb ended with code {code})"))

    def command(self) -> Sequence[str | Path]:
        """No fsync: the tests kill processes, and what the kernel has, it keeps.

        What sessions share lies in the data folder, so that a killed cluster leaves nothing in
        the system's shared memory.
        """
        options = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": "200",
            "dynamic_shared_memory_type": "mmap",
            "fsync": "off",
            "max_prepared_transactions": "20",
        }
        settings = [word for key, value in options.items() for word in ("-c", f"{key}={value}")]
        return [self._postgres, "-D", self._data, "-p", str(self.port), *settings]

    def answers(self) -> bool:
        """Connect; a cluster that recovers from a crash refuses."""
        try:
            psycopg.connect(self.url, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def kill(self) -> None:
        """End the postmaster and, as a power cut would, its children with it.

        Left to themselves the children end a little later, and until then they hold the shared
        memory that the next start refuses to take over.
        """
        children = children_of(self.pid) if self.pid else []
        super().kill()
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        until(lambda: not any(map(is_alive, children)), message="PostgreSQL's children are gone")

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """Let the postmaster hang, and all sessions with it."""
        with super().standing_still():
            children = children_of(self.pid) if self.pid else []
            for child in children:
                os.kill(child, signal.SIGSTOP)
            try:
                until(lambda: all(map(stands_still, children)), message="its sessions stand still")
                yield
            finally:
                for child in children:
                    with suppress(ProcessLookupError):
                        os.kill(child, signal.SIGCONT)

    def close(self) -> None:
        """Stop, so that no shared memory stays; remove the folder where it is not pytest's."""
        self.stop()
        super().close()
        if self._user:
            shutil.rmtree(self.folder, ignore_errors=True)


def _installations() -> list[Path]:
    """Return the folders that Debian keeps PostgreSQL's programs in, newest version first."""
    folders = Path("/usr/lib/postgresql").glob("*/bin")
    return sorted(folders, key=lambda folder: int(folder.parent.name), reverse=True)


def _unprivileged() -> str:
    """Return a user that may run PostgreSQL: the package's own, else the one that owns nothing."""
    known = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in known)

"""A private MariaDB, which speaks MySQL's protocol. Its client is there for tests alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path

import pymysql

from servers.guard import Guard
from servers.process import Server, ServerFailed, find_program

_USER = "root"
_PACKAGE = "mariadb-server-core"
#: Seconds that the system's tables may take.
_SETTING_UP = 120.0
#: Debian keeps the server's program out of a user's PATH.
_PLACES = (Path("/usr/sbin"),)


class MariaDB(Server):
    """``fresh_url`` gives each test an empty database of its own."""

    def __init__(self, folder: Path, guard: Guard) -> None:
        self._server = find_program("mariadbd", package=_PACKAGE, places=_PLACES)
        self._install = find_program("mariadb-install-db", package=_PACKAGE)
        self._names = (f"test_{number}" for number in count(1))
        super().__init__(folder, guard)
        self._data = folder / "data"
        #: Its own: one that starts removes all temporary tables there, also those of another one.
        self._temporary = folder / "tmp"

    @property
    def url(self) -> str:
        """The server, without a database."""
        return f"mysql://{_USER}@127.0.0.1:{self.port}"

    def fresh_url(self) -> str:
        """Return the URL of an empty database that no other test uses."""
        self.start()
        name = next(self._names)
        with self._connect() as connection, connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {name} CHARACTER SET utf8mb4")
        return f"{self.url}/{name}"

    def prepare(self) -> None:
        """Make the system's tables, and a user who needs no password."""
        self._temporary.mkdir(exist_ok=True)
        options = ["--auth-root-authentication-method=normal", "--skip-test-db"]
        installing = self.spawn([self._install, "--no-defaults", *self._options(), *options])
        code = installing.wait(_SETTING_UP)
        self._guard.forget(installing.pid)
        if code:
            ended = f"could not be set up (mariadb-install-db ended with code {code})"
            raise ServerFailed(self.report(ended))

    def command(self) -> Sequence[str | Path]:
        """No fsync: the tests kill processes, and what the kernel has, it keeps."""
        options = {
            "port": self.port,
            "bind-address": "127.0.0.1",
            "socket": "socket",  # in the data folder, whose path may be too long for one
            "pid-file": "pid",
            "max-connections": 200,
            "innodb-flush-log-at-trx-commit": 2,
            "innodb-flush-method": "nosync",
            "innodb-buffer-pool-size": "32M",
            "innodb-log-file-size": "16M",
        }
        settings = [f"--{name}={value}" for name, value in options.items()]
        return [self._server, "--no-defaults", *self._options(), *settings]

    def answers(self) -> bool:
        """Connect; one that recovers from a crash does not listen yet."""
        try:
            self._connect().close()
        except pymysql.OperationalError:
            return False
        return True

    def _options(self) -> list[str | Path]:
        """Return what both programs are told. MariaDB runs as root only where that is said."""
        places = [f"--datadir={self._data}", f"--tmpdir={self._temporary}"]
        return [*places, *(["--user=root"] if os.geteuid() == 0 else [])]

    def _connect(self) -> pymysql.Connection[pymysql.cursors.Cursor]:
        return pymysql.connect(
            host="127.0.0.1", port=self.port, user=_USER, connect_timeout=2, autocommit=True
        )

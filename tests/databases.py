"""Databases that the transactions of users are tried on: SQLite, PostgreSQL, MariaDB."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True, slots=True)
class Database:
    """An empty database, by its URLs for SQLAlchemy."""

    kind: str
    #: For an Engine, and for an AsyncEngine.
    url: str
    async_url: str

    @classmethod
    def of(cls, kind: str, request: pytest.FixtureRequest) -> Database:
        """Return one of ``sqlite``, ``postgresql``, ``mariadb`` for the test that asks."""
        if kind == "sqlite":
            folder: Path = request.getfixturevalue("tmp_path")
            file = folder / "effects.db"
            return cls(kind, f"sqlite:///{file}", f"sqlite+aiosqlite:///{file}")
        if kind == "mariadb":
            url = request.getfixturevalue("mariadb_url")
            return cls(kind, _with(url, "pymysql"), _with(url, "asyncmy"))
        url = _with(request.getfixturevalue("postgres_url"), "psycopg")
        return cls(kind, url, url)


def _with(url: str, driver: str) -> str:
    """Return a URL of SQLAlchemy's, which names the driver."""
    return url.replace("://", f"+{driver}://", 1)

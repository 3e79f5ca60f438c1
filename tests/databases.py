"""Databases that the transactions of users are tried on: a file of SQLite, and PostgreSQL."""

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
        """Return one of ``sqlite`` and ``postgresql`` for the test that asks."""
        if kind == "sqlite":
            folder: Path = request.getfixturevalue("tmp_path")
            file = folder / "effects.db"
            return cls(kind, f"sqlite:///{file}", f"sqlite+aiosqlite:///{file}")
        url = request.getfixturevalue("postgres_url").replace(
            "postgresql://", "postgresql+psycopg://"
        )
        return cls(kind, url, url)

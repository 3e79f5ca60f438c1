"""The transactional tier: a handler's effect and the memory of its id are one transaction."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

import pytest

from worker import inbox
from worker.errors import AlreadyDone

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A database with one account."""
    path = tmp_path / "accounts.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE account (balance INTEGER)")
        db.execute("INSERT INTO account VALUES (0)")
    return path


def deposit(path: Path, message_id: str, *, crash: bool = False) -> None:
    """Add one to the balance as a handler does."""
    with sqlite3.connect(path) as db:
        inbox.record(db, "bank.deposit", message_id)
        db.execute("UPDATE account SET balance = balance + 1")
        if crash:
            raise KeyboardInterrupt


def balance(path: Path) -> int:
    with sqlite3.connect(path) as db:
        return int(db.execute("SELECT balance FROM account").fetchone()[0])


def test_an_effect_with_its_memory_happens_once(database: Path) -> None:
    deposit(database, "one")
    with pytest.raises(AlreadyDone):
        deposit(database, "one")
    deposit(database, "two")
    assert balance(database) == 2


def test_an_effect_that_was_rolled_back_is_not_remembered(database: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        deposit(database, "one", crash=True)
    assert balance(database) == 0
    deposit(database, "one")
    assert balance(database) == 1


def test_each_handler_has_its_own_memory(database: Path) -> None:
    with sqlite3.connect(database) as db:
        inbox.record(db, "bank.audit", "one")
    deposit(database, "one")
    assert balance(database) == 1


def test_old_ids_can_be_purged(database: Path) -> None:
    deposit(database, "one")
    with sqlite3.connect(database) as db:
        assert inbox.purge(db, older_than=60) == 0
        for age in (-60, float("nan")):
            with pytest.raises(ValueError, match="zero or more"):
                inbox.purge(db, older_than=age)
        assert inbox.purge(db, older_than=0) == 1
    deposit(database, "one")
    assert balance(database) == 2

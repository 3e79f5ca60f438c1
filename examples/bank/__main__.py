"""python -m examples.bank: the story of README.md, told by running it."""

from __future__ import annotations

import os
import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from contextlib import closing
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any

from examples.bank.deposit import deposit
from examples.running import servers, service, start, story_folder, until

USERS = ("alice", "bob", "carol", "dave")
DEPOSITS = 20


def main() -> None:
    with story_folder() as folder:
        os.environ.update(servers(folder))
        tell(folder)


def tell(folder: Path) -> None:
    environ = {"BANK_FOLDER": str(folder)}
    notifications = service("bank.notifications", folder, environ, "--shards=2")
    transactions = service("bank.transactions", folder, environ, "--shards=2")
    try:
        start(notifications)
        early = deposits(1)
        until(lambda: len(notified(folder)) >= len(early), "everybody is notified")
        print(f"{len(early)} deposits: notifications observes them")

        print("from now on, deposits should also be recorded: transactions is added")
        start(transactions)
        late = deposits(2)
        killed = transactions.kill_one(Random())
        late += deposits(3)
        until(lambda: len(notified(folder)) >= len(early + late), "everybody is notified")
        until(lambda: {i for i, _, _ in late} <= booked(folder).keys(), "all deposits are recorded")
        print(
            f"{len(late)} deposits: both observe them, and neither knows of the other"
            f" ({'a process' if killed else 'none'} of transactions was killed meanwhile)"
        )
    finally:
        notifications.end()
        transactions.end()
    check(folder, early + late, late)


def deposits(year: int) -> list[tuple[str, str, Decimal]]:
    """Make some deposits; return id, user and amount of each."""
    made = []
    for number in range(DEPOSITS):
        user, amount = USERS[number % len(USERS)], Decimal(f"{year}.{number:02}")
        made.append((deposit(user, amount), user, amount))
    return made


def check(
    folder: Path, all_: list[tuple[str, str, Decimal]], late: list[tuple[str, str, Decimal]]
) -> None:
    expected = by_user((user, f"Congrats for your {amount} deposit") for _, user, amount in all_)
    seen = by_user(notified(folder))
    if seen != expected:
        raise SystemExit(f"notifications: expected {expected}, found {seen}")
    print(f"notifications: {len(all_)}, for each user in the order of the deposits")

    recorded = booked(folder)
    wrong = [i for i, user, amount in late if recorded.get(i) != (user, amount)]
    totals: dict[str, Decimal] = defaultdict(Decimal)
    for user, amount in recorded.values():
        totals[user] += amount
    if wrong or totals != balances(folder):
        raise SystemExit(f"transactions: wrong {wrong}, {totals}, {balances(folder)}")
    print(f"transactions: {len(recorded)}, each booked once; total {sum(totals.values())}")


def notified(folder: Path) -> list[tuple[str, str]]:
    return rows(
        folder / "notifications.db", "SELECT user_id, text FROM notifications ORDER BY rowid"
    )


def booked(folder: Path) -> dict[str, tuple[str, Decimal]]:
    found = rows(folder / "transactions.db", "SELECT deposit_id, user_id, amount FROM transactions")
    return {deposit_id: (user, Decimal(amount)) for deposit_id, user, amount in found}


def balances(folder: Path) -> dict[str, Decimal]:
    found = rows(folder / "transactions.db", "SELECT user_id, balance FROM balances")
    return {user: Decimal(balance) for user, balance in found}


def rows(file: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(file, timeout=30)) as db:
        return db.execute(query).fetchall()


def by_user(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for user, text in pairs:
        found[user].append(text)
    return found


if __name__ == "__main__":
    main()

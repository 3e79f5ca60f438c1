"""python -m examples.bank: the story of README.md, told by running it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack
from decimal import Decimal
from random import Random

from examples.bank.books import Books, Deposit
from examples.bank.stage import Stage
from examples.running import start, story_folder, until

USERS = ("alice", "bob", "carol", "dave")
DEPOSITS = 20
#: How the notifications of the two events begin.
CONGRATS, RECORDED = "Congrats", "Your"


def main() -> None:
    with story_folder() as folder, ExitStack() as stack:
        stage = Stage(folder)
        for each in stage.services:
            stack.callback(each.end)
        stage.make_tables()
        books = Books(folder, stage.databases)
        if books.taken():
            raise SystemExit("the story begins with empty databases, and a broker of its own")
        early, late = at_the_desk(stage, books, stack)
        late += on_the_web(stage, books)
        until(lambda: len(books.lines()) >= len(late), "each booking has its line")
        until(lambda: len(books.notified(RECORDED)) >= len(late), "everybody is told of it")
        until(stage.transactions.mourned, "what was killed is replaced")
        for service in stage.services:
            service.end()
        check(books, early, late)


def at_the_desk(
    stage: Stage, books: Books, stack: ExitStack
) -> tuple[list[Deposit], list[Deposit]]:
    """Add an observer; return what was paid in before that, and after it."""
    start(stage.notifications)
    early = deposits(1)
    stage.take_at_the_desk(early)
    until(lambda: len(books.notified(CONGRATS)) >= len(early), "everybody is notified")
    print(f"{len(early)} deposits: notifications observes them")

    print("from now on, deposits should also be recorded: transactions is added")
    stack.enter_context(stage.relay_of_transactions())
    start(stage.transactions, stage.statements, stage.bridge)
    late = deposits(2) + deposits(3)
    stage.take_at_the_desk(late[:DEPOSITS])
    killed = stage.transactions.kill_one(Random())
    stage.take_at_the_desk(late[DEPOSITS:])
    until(lambda: len(books.notified(CONGRATS)) >= len(early + late), "everybody is notified")
    until(lambda: len(books.booked()) >= len(late), "all deposits are recorded")
    print(
        f"{len(late)} deposits: both observe them, and neither knows of the other"
        f" ({'a process' if killed else 'none'} of transactions was killed meanwhile)"
    )
    return early, late


def on_the_web(stage: Stage, books: Books) -> list[Deposit]:
    """Let the web server die between a commit and its event; return what was paid in."""
    first, second = deposits(4, "by web"), deposits(5, "by web")
    gift = Deposit("alice", Decimal("100.00"), "a gift")
    with stage.web() as web:
        for each in first:
            web.take(each)
        until(lambda: not books.unsent(), "all events have left")
        print(f"{len(first)} deposits on the web, each in one transaction with its event")
        web.take_and_die(gift)
    if books.taken()[-1] != gift or books.unsent() != 1:
        raise SystemExit("the web server should have died between the commit and its event")
    print("the web server is killed: a deposit is committed, and its event has not left")
    with stage.relay_of_finance(), stage.web() as web:
        until(lambda: not books.unsent(), "the event has left")
        print("the relay of its outbox sends it")
        for each in second:
            web.take(each)
        if stage.transactions.kill_one(Random()):
            print(f"{len(second)} more, and again a process of transactions is killed")
        until(lambda: not books.unsent(), "all events have left")
    return [*first, gift, *second]


def deposits(year: int, note: str = "") -> list[Deposit]:
    return [
        Deposit(USERS[number % len(USERS)], Decimal(f"{year}.{number:02}"), note)
        for number in range(DEPOSITS)
    ]


def check(books: Books, early: list[Deposit], late: list[Deposit]) -> None:
    """End the story where a service has anything else than what was paid in."""
    noted = [each for each in late if each.note]
    compare("finance", books.taken(), noted)
    compare(
        "notifications",
        by_user(books.notified(CONGRATS)),
        by_user((each.user, f"Congrats for your {each.amount} deposit") for each in early + late),
    )
    print(f"notifications: {len(early + late)}, for each user in the order of the deposits")

    compare(
        "transactions", by_user(books.booked()), by_user((d.user, d.cents, d.note) for d in late)
    )
    totals = {user: sum(d.cents for d in late if d.user == user) for user in USERS}
    compare("the accounts", books.balances(), totals)
    total = sum(each.amount for each in late)
    print(f"transactions: {len(late)}, each booked once; total {total}, as on the accounts")

    compare(
        "statements", by_user(books.lines()), by_user((d.user, str(d.amount), d.note) for d in late)
    )
    compare(
        "notifications",
        by_user(books.notified(RECORDED)),
        by_user((d.user, f"Your {d.amount} deposit is on your account") for d in late),
    )
    print(
        f"{len(late)} bookings downstream, each once: to statements by version 2 of bank_events,"
        " to notifications by version 1"
    )


def compare(who: str, found: object, expected: object) -> None:
    if found != expected:
        raise SystemExit(f"{who}: expected {expected}\nfound {found}")


def by_user(rows: Iterable[tuple[str, *tuple[object, ...]]]) -> dict[str, list[tuple[object, ...]]]:
    found = defaultdict(list)
    for user, *rest in rows:
        found[user].append(tuple(rest))
    return dict(found)


if __name__ == "__main__":
    main()

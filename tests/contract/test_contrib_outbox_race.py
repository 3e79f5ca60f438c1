"""The race of the talk: an event is out before its data is, and who hears of it asks too early.

A bank opens an account and publishes that, both in one transaction, as a view does that is wrapped
in one. A service downstream hears of it and asks the bank for the account at once.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import text

from outboxes import Deal, Desk
from worker import Event, RetryPolicy
from worker.testing import TestWorker


class AccountOpened(Event, name="account.opened", key="account"):
    account: str


Publish = Callable[[Deal, Event], object]


def answers(desk: Desk, publish: Publish) -> list[str]:
    """Open an account while the service downstream is as quick as it can be; return what it got."""
    got: list[str] = []
    with desk.engine.begin() as connection:
        connection.execute(text("CREATE TABLE account (id VARCHAR(50) PRIMARY KEY)"))

    @desk.app.on(AccountOpened, retry=RetryPolicy(attempts=1))
    def ask_back(event: AccountOpened) -> None:
        mine = {"id": event.account}
        with desk.engine.connect() as connection:
            found = connection.execute(text("SELECT 1 FROM account WHERE id = :id"), mine).all()
        got.append("200 ok" if found else "404 not found")

    with TestWorker(desk.app) as worker:
        with desk.begin() as deal:
            deal.execute("INSERT INTO account VALUES ('a1')")
            publish(deal, AccountOpened(account="a1"))
            desk.outbox.flush()
            worker.run()  # downstream handles all that is out, before the commit
        desk.outbox.flush()
        worker.run()
    return got


def test_published_before_the_commit_it_is_asked_for_too_early(desk: Desk) -> None:
    """Without an outbox: so the next test would notice the race."""
    assert answers(desk, lambda _, event: desk.app.publish(event)) == ["404 not found"]


def test_published_on_commit_it_is_there(desk: Desk) -> None:
    assert answers(desk, lambda deal, event: deal.publish(event)) == ["200 ok"]

"""A service whose handler writes a line for each order: what the tests of the inbox share."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Column, Integer, MetaData, String, Table, select
from worker.contrib.sqlalchemy.tables import inbox_table

from outboxes import Desk
from worker import App, Context, Event, RetryPolicy
from worker.testing import TestWorker, duplicate_everything

_MINE = MetaData()
#: The effects.
lines = Table(
    "line", _MINE, Column("number", Integer, primary_key=True), Column("text", String(255))
)
#: Writes one.
LINE = "INSERT INTO line (text) VALUES (:text)"
ONCE = RetryPolicy(attempts=1)


class Order(Event, name="order", key="text"):
    """What is booked."""

    text: str


class Shop:
    """The service; what a test changes is the block of its handler."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        _MINE.create_all(desk.engine)

    def lines(self) -> list[str]:
        """Return the effects."""
        with self.desk.engine.connect() as connection:
            return [*connection.scalars(select(lines.c.text).order_by(lines.c.number))]

    def remembered(self) -> list[str]:
        """Return the ids in the inbox."""
        with self.desk.engine.connect() as connection:
            return [*connection.scalars(select(inbox_table.c.message_id))]

    def handled(self, handle: Any, *orders: Order, twice: bool = False) -> list[str]:
        """Handle orders in a service that never heard of their ids; return why any is set aside."""
        app = App("shop")
        app.on(Order, name="book", retry=ONCE)(handle)
        if twice:
            app.use(duplicate_everything)
        with TestWorker(app) as worker:
            for order in orders:
                worker.publish(order)
            worker.run()
            return [letter.reason for letter in worker.dead_letters]

    def book(self, order: Order, context: Context) -> None:
        """Have the effect."""
        with self.desk.effect(context) as deal:
            deal.execute(LINE, text=order.text)

    async def book_async(self, order: Order, context: Context) -> None:
        """Have it in a coroutine."""
        await self.desk.effect_async(context, LINE, text=order.text)

"""The second observer, which came later. qworker start --app examples.bank.transactions

Money must not be booked twice, not even where the process dies between the booking and the
runtime's record of it. So one transaction of this service's database holds the booking, the id of
the deposit (the inbox), and the event that tells of the booking (the outbox).

python -m examples.bank.transactions makes the tables.
"""

import os

from bank_events import TransactionCreated, UserDeposited
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker
from worker.contrib.sqlalchemy import Inbox, Outbox, create_tables

from worker import App, Context

app = App("transactions")
engine = create_engine(os.environ.get("TRANSACTIONS_DATABASE", "sqlite:///transactions.db"))
inbox = Inbox(sessionmaker(engine))
outbox = Outbox(app, engine)


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"
    user_id: Mapped[str] = mapped_column(primary_key=True)
    cents: Mapped[int]


class Booking(Base):
    __tablename__ = "booking"
    id: Mapped[int] = mapped_column(primary_key=True)
    deposit_id: Mapped[str]
    user_id: Mapped[str]
    cents: Mapped[int]
    note: Mapped[str]


@app.on(UserDeposited)
def record_deposit(event: UserDeposited, context: Context) -> None:
    cents = int(event.amount * 100)
    with inbox.transaction(context) as session:
        account = session.get(Account, event.user_id, with_for_update=True)
        if account is None:
            account = Account(user_id=event.user_id, cents=0)
            session.add(account)
        account.cents += cents
        booking = Booking(
            deposit_id=event.event_id, user_id=event.user_id, cents=cents, note=event.note
        )
        session.add(booking)
        created = TransactionCreated(
            user_id=event.user_id,
            amount=event.amount,
            deposit_id=event.event_id,
            note=event.note,
        )
        outbox.publish_on_commit(session, created, context)


if __name__ == "__main__":
    Base.metadata.create_all(engine)
    create_tables(engine)

"""The events of a bank with an outbox, whichever integration its service has."""

from __future__ import annotations

from worker import Event


class Transfer(Event, name="books.transfer", key="source"):
    """The ``sequence``-th transfer from an account."""

    source: str
    target: str
    amount: int
    sequence: int

    def second_half(self) -> Deposit:
        """Return what the first half publishes."""
        return Deposit(
            source=self.source, target=self.target, amount=self.amount, sequence=self.sequence
        )


class Deposit(Event, name="books.deposit", key="source"):
    """Its second half."""

    source: str
    target: str
    amount: int
    sequence: int

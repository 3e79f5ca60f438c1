"""The cash desk: takes deposits and says so. python -m examples.bank.deposit USER AMOUNT

An old program, with version 1 of bank_events and no database.
"""

import sys
from decimal import Decimal

from bank_events import UserDeposited

from worker import App

app = App("desk")


def deposit(user_id: str, amount: Decimal) -> str:
    """Handle a deposit, then tell; whoever listens, or nobody, is not the desk's business."""
    return app.publish(UserDeposited(user_id=user_id, amount=amount))


if __name__ == "__main__":
    for user, text in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        print(deposit(user, Decimal(text)))

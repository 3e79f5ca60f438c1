"""The financial service: takes deposits and says so. python -m examples.bank.deposit USER AMOUNT"""

import sys
from decimal import Decimal

from examples.bank.events import UserDeposited
from worker import App

app = App("bank")


def deposit(user_id: str, amount: Decimal) -> str:
    """Handle a deposit, then tell; whoever listens, or nobody, is not this service's business."""
    return app.publish(UserDeposited(user_id=user_id, amount=amount))


if __name__ == "__main__":
    print(deposit(sys.argv[1], Decimal(sys.argv[2])))

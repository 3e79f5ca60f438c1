"""What happened, for whoever wants to know: a library that services share."""

from decimal import Decimal

from worker import Event


class UserDeposited(Event, name="user.deposited", key="user_id"):
    user_id: str
    amount: Decimal


class TransactionCreated(Event, name="transaction.created", key="user_id"):
    user_id: str
    amount: Decimal
    deposit_id: str

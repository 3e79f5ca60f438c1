"""What happens in the bank, for whoever wants to know. Version 1."""

from decimal import Decimal

from worker import Event


class UserDeposited(Event, name="user.deposited", key="user_id"):
    user_id: str
    amount: Decimal


class DepositRecorded(Event, name="deposit.recorded", key="user_id"):
    user_id: str
    amount: Decimal
    deposit_id: str

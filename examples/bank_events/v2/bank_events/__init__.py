"""What happens in the bank, for whoever wants to know. Version 2."""

from decimal import Decimal

from worker import Event


class UserDeposited(Event, name="user.deposited", key="user_id"):
    user_id: str
    amount: Decimal
    #: New in 2. It has a default, for what is published by version 1.
    note: str = ""


class TransactionCreated(Event, name="transaction.created", key="user_id"):
    """New in 2: what was a DepositRecorded. Deposits are not all that there is to record."""

    user_id: str
    amount: Decimal
    deposit_id: str
    note: str = ""


class DepositRecorded(Event, name="deposit.recorded", key="user_id"):
    """As in version 1, for those who have to talk to it. Goes with version 3."""

    user_id: str
    amount: Decimal
    deposit_id: str

"""For services that still have bank_events 1: what was renamed, by the name that they know.

qworker start --app examples.bank.bridge, for as long as one of them is left.
"""

from bank_events import DepositRecorded, TransactionCreated

from worker import App

app = App("bridge")


@app.relay(TransactionCreated, to=DepositRecorded)
def by_its_old_name(created: TransactionCreated) -> DepositRecorded:
    return DepositRecorded(
        user_id=created.user_id, amount=created.amount, deposit_id=created.deposit_id
    )

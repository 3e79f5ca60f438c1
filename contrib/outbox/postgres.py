"""PostgreSQL, for any of its clients: the safe horizon, and waiting no longer than need be.

Sequence numbers are given when rows are inserted, and rows become visible when their transactions
commit, which may be in another order. So each row has the number of its transaction (:data:`XID`),
and a row is sent only below the first transaction that is open and may have written rows
(:data:`HORIZON`).

A snapshot tells which transactions are open. One of them has *not* written rows where ``pg_locks``
shows it without a lock on the table, which INSERT takes before it draws a number and keeps to the
end. So a long transaction that has nothing to do with the outbox holds back nothing. One that ended
between the snapshot and the look at the locks counts as a writer, until the next look.

Whatever is neither visible in the snapshot nor open in it as a writer will draw higher sequence
numbers than all rows that are. For that, a transaction has its number before its first row has a
sequence number: the column of :data:`XID` comes first in the table, since PostgreSQL works out the
values of a row in the order of its columns.

A database that was dumped and restored, or came by logical replication, has rows with numbers of
another cluster. Where these are ahead of what this one has given, they would be held until it has
caught up; so rows are read with :data:`WRITER` in their place.
"""

from __future__ import annotations

#: The number of the transaction that a row is written in. (PostgreSQL 13 and newer.)
XID = "pg_current_xact_id()::text::bigint"

#: The number of the transaction that wrote a row, for ``Entry.transaction``: below the end of the
#: snapshot that sees the row, or else not of this cluster.
WRITER = """
CASE WHEN transaction_id < pg_snapshot_xmax(pg_current_snapshot())::text::bigint
THEN transaction_id ELSE 0 END
"""

#: One look at the locks, since each is at another moment.
HORIZON = """
WITH locks AS MATERIALIZED (SELECT * FROM pg_locks WHERE granted),
writers AS (
    SELECT virtualtransaction FROM locks
    WHERE locktype = 'relation' AND mode = 'RowExclusiveLock'
    AND relation = to_regclass('qworker_outbox')
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())),
bystanders AS (
    SELECT transactionid FROM locks
    WHERE locktype = 'transactionid' AND mode = 'ExclusiveLock'
    AND virtualtransaction NOT IN (SELECT virtualtransaction FROM writers))
SELECT coalesce(
    (SELECT min(open::text::bigint) FROM pg_snapshot_xip(pg_current_snapshot()) AS open
     WHERE open::xid NOT IN (SELECT transactionid FROM bystanders)),
    pg_snapshot_xmax(pg_current_snapshot())::text::bigint)
"""

#: What libpq is to be told where nobody has said otherwise: a server that vanished without a word
#: is given up after seconds, and not after minutes or never.
PARAMETERS = {
    "connect_timeout": 10,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 2,
}

#: Queries that tell who has a transaction open; they know the lower half of its number.
_WHOSE = (
    "SELECT * FROM pg_stat_activity WHERE backend_xid = '{0}', or where it was prepared,"
    " SELECT * FROM pg_prepared_xacts WHERE transaction = '{0}'"
)


def whose(transaction: int) -> str:
    """Return how to find out who has it open."""
    return _WHOSE.format(transaction % 2**32)

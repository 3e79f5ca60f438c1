"""The outbox: an event is a row of the database until the broker has confirmed it.

This package knows no database: ``worker.contrib.sqlalchemy`` and ``worker.contrib.django`` write
the rows and implement :class:`OutboxStore`. What is promised, and why it holds:

*No event without its data, no data without its event.* The row is written in the transaction that
it speaks of, and nothing is sent before that is committed. Whatever dies afterwards leaves the row,
and the relay finds it.

*At least once, under one id.* A row is removed after the broker confirmed its message, and in no
other way. The id was fixed when the row was written (in a handler it is derived from the message,
as that of ``context.publish`` is), so what is sent twice is done once by its consumers.

*In order per key.* The rows of a key, in the order of their sequence numbers, are its lane (a
message without a key is a lane of its own). Whoever sends obeys three rules, the process that wrote
the rows (:class:`Sender`) and the relay (:class:`Relay`) alike:

1. It begins at the oldest row of the lane that it sees, and leaves none out.
2. It sends the next one of a lane once the one before it is confirmed; one that is refused stops
   its lane.
3. It removes what is confirmed.

So whoever sends a row has had all older ones of its lane confirmed to itself, or they were gone,
which means confirmed to somebody else. The *first* copy of each message therefore reaches the
broker after the first copies of all before it, however many send at once; only second copies come
late, and consumers drop these by their ids. That is why there is no fence between two relays: the
lease is there so that one does the work and not two. A relay that was paused between its look at
the lease and its write sends second copies, and nothing else.

*The order is that of the commits*, as far as these depend on each other. Sequence numbers are given
before the commit, so it takes two more things:

- A transaction that must come after another one waits for it (it changes the same account, say).
  Its rows are written after that: they are written as the last thing before the commit. So its
  numbers are higher.
- A row is sent only where no transaction that may hold an older one is still open: the *safe
  horizon*. The database tells it (:meth:`OutboxStore.horizon`); a row beyond it stops its lane for
  now. Without it, two that overlap could be sent in either order, depending on who looks when.

======================  ===========================================================================
``OutboxStore``         what a database has to do
``encoded``             a message for an event; ``columns_of`` a row for it; ``entry_of`` reads it
``postgres``            SQL of the horizon
``Sender``              sends what this process committed, at once, in a thread of its own
``Relay``, ``run``      sends what is left; ``qworker outbox`` runs it
======================  ===========================================================================

Sent rows are removed, not marked: what is left to do is then all that there is, in a small table
that needs neither an index for what is not yet sent nor a clean-up. Who wants to keep what was
published archives it as a consumer. What stays is what the broker refuses: it is told in the log,
tried again, and kept until it is through or somebody removes it.
"""

from worker.contrib.outbox.encoding import encoded
from worker.contrib.outbox.relay import Pass, Relay
from worker.contrib.outbox.rows import (
    EVERYTHING,
    Bounds,
    Entry,
    OutboxStore,
    OutboxUnavailable,
    columns_of,
    entry_of,
)
from worker.contrib.outbox.running import run
from worker.contrib.outbox.sender import Sender

__all__ = [
    "EVERYTHING",
    "Bounds",
    "Entry",
    "OutboxStore",
    "OutboxUnavailable",
    "Pass",
    "Relay",
    "Sender",
    "columns_of",
    "encoded",
    "entry_of",
    "run",
]

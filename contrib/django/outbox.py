"""``publish_on_commit``: events become rows right before the commit, and leave right after it.

Why before the commit, and not when ``publish_on_commit`` is called? Rows are numbered as they are
written, and sent in that order for each key. One that is written at once has its number before the
transaction waits for others: it may then change an account after somebody whose event has a higher
number. To lock the key until the end, so that nobody else gets a number of it meanwhile, would keep
the order; but two transactions that publish for two keys, or that change a row after they have
published, would meet in a deadlock. Right before the commit all waiting is over, so the order is
right without a lock, and a row that is not to be seen yet keeps others waiting for no longer than a
commit takes.

Django has no hook before a commit. An ``atomic`` of our own, which would write as it ends, was
turned down: what is published within ATOMIC_REQUESTS, or by a function that is called in somebody
else's ``atomic``, would find none. So it is the connection that writes
(:mod:`worker.contrib.django.pending`), however its transaction was begun.

After the commit the :class:`~worker.contrib.outbox.Sender` is told which rows there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from django.db import connections
from django.db.transaction import TransactionManagementError
from worker.contrib.django.pending import Pending, Published
from worker.contrib.django.rows import OutboxRows
from worker.contrib.outbox import Sender, encoded

from worker import Reject

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker import App, Command, Context, Event, Outgoing, Relayed


class Outbox:
    """Publishes events of ``app`` with the transactions that they speak of. Any thread may use it.

    ``using`` is the alias of the database that they speak of. A thread sends what was committed, by
    a connection of its own; with ``sends=False`` all of it is left to the relay, which has to run
    anyway, for what a crash leaves. ::

        outbox = Outbox(app)

        with transaction.atomic():
            Account.objects.create(id=user_id)
            outbox.publish_on_commit(UserCreated(user_id=user_id))
    """

    def __init__(self, app: App, using: str = "default", *, sends: bool = True) -> None:
        self._app = app
        self._using = using
        self._sender = Sender(app, OutboxRows(using, app.name)) if sends else None

    def publish_on_commit(
        self,
        event: Event | Command | Relayed,
        context: Context | None = None,
        *,
        headers: Mapping[str, Any] | None = None,
        priority: int | None = None,
        correlation_id: str | None = None,
    ) -> str:
        """Let ``event`` leave once the transaction that is open is committed; return its id.

        In a handler, say its ``context``: the event is then a child of the message, as by
        ``context.publish``, with an id that a second run repeats; a ``Relayed`` says its headers,
        and the other arguments are not for it. Does no I/O. Raises TypeError or ValueError where
        the event cannot be encoded, and TransactionManagementError outside of a transaction; with a
        ``context`` that is a Reject: behind the block of ``inbox.transaction`` the next attempt
        would count as done, and nothing tell of the event that is lost.
        """
        outgoing: Outgoing = encoded(
            self._app,
            event,
            context,
            headers=headers,
            priority=priority,
            correlation_id=correlation_id,
        )
        published = Published(self._app, outgoing, self._sender)
        try:
            Pending.of(connections[self._using]).add(published)
        except TransactionManagementError as error:
            if context is None:
                raise
            raise Reject(f"{error}, or into the block of inbox.transaction") from error
        return outgoing.message_id

    def flush(self, timeout: float = 10.0) -> bool:
        """Wait until all that this process committed has left, or is left to the relay.

        For the end of a short program. Tells whether it came to that within ``timeout`` seconds.
        """
        return self._sender is None or self._sender.flush(timeout)

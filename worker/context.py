"""What a handler may know and do beside its event."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from worker.again import remembered_as
from worker.ids import derived_id
from worker.inbox import Effect

if TYPE_CHECKING:
    import logging
    import sqlite3
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from datetime import datetime

    from worker.message import Command, Event, Message, Outgoing, Relayed


@dataclass(slots=True, eq=False)
class Context:
    """What a handler may know and do beside its event. One a call; not shared between threads."""

    message: Message
    #: ``SERVICE.HANDLER``.
    handler: str
    #: 1 for the first.
    attempt: int
    #: Rises whenever a shard gets another owner, as far as the clocks of the machines agree: hand
    #: it to stores that refuse older writers.
    fence: int
    #: Monotonic seconds at which the handler's time is up; None without a limit.
    deadline: float | None
    #: What the app's lifespan yielded.
    state: Any
    logger: logging.LoggerAdapter[logging.Logger]
    _encode: Callable[[Any, Context, str], Outgoing] = field(repr=False)
    #: The event as the handler gets it; None until it was decoded.
    event: Any = None
    children: list[Outgoing] = field(default_factory=list)
    #: What the handler returns is published.
    is_relay: bool = False
    #: How many ids of children were derived.
    _derived: int = field(default=0, repr=False)
    _effect: Effect | None = field(default=None, repr=False)
    _has_ended: bool = field(default=False, repr=False)

    @property
    def message_id(self) -> str:
        """The event's id."""
        return self.message.id

    @property
    def name(self) -> str:
        """The event's name."""
        return self.message.name

    @property
    def key(self) -> str | None:
        """What orders the event."""
        return self.message.key

    @property
    def headers(self) -> Mapping[str, Any]:
        """The headers as received."""
        return self.message.headers

    @property
    def redelivered(self) -> bool:
        """Whether the broker delivered it before."""
        return self.message.redelivered

    @property
    def shard(self) -> int:
        """The shard that it came through."""
        return self.message.shard

    @property
    def timestamp(self) -> datetime | None:
        """When the event was published."""
        return self.message.timestamp

    @property
    def correlation_id(self) -> str:
        """The id that every message of one story carries: by default its first event's."""
        return str(self.message.properties.get("correlation_id") or self.message.id)

    @property
    def idempotency_key(self) -> str:
        """The same for every attempt at this id by this handler; ``replay --again`` has another."""
        return f"{self.handler}:{self.memory_id}"

    @property
    def memory_id(self) -> str:
        """What a database of the handler's own remembers the event by: its id, or that *again*."""
        return remembered_as(self.message.id, self.message.headers)

    def once(self, connection: sqlite3.Connection) -> None:
        """Make the effect that follows in ``connection``'s transaction happen once, whatever dies.

        The id is written into that transaction, which is begun where none is open. Where it is
        there already the effect is too: the transaction is rolled back, AlreadyDone ends the
        handler, and the message counts as done. What the handler publishes, it publishes before
        this call, so that a second run publishes it too. ::

            with sqlite3.connect("accounts.db") as db:
                context.once(db)
                db.execute("UPDATE account SET balance = balance + ? WHERE id = ?", ...)

        Once for a message, in one transaction: a second call that finds what the first one wrote,
        or that is for another database, cannot keep this promise, and rejects the message. After a
        rollback it may be called again, also on a new connection. Where the handler fails, what it
        did not commit is rolled back. Raises RuntimeError in a relay, and once the handler has
        ended.
        """
        self._only_effect().once(connection)

    def one_effect(self, what: str) -> AbstractContextManager[None]:
        """For integrations: the block is a transaction that holds the effect and its id.

        As with ``once``, which is for SQLite, there is one for a message: where one is open, or
        has ended without an error, the message is rejected. One that raised may be tried again, so
        the block has to raise where its transaction is rolled back. Whoever finds the id in the
        database already raises AlreadyDone. ``what`` is the integration's call, for errors.
        Raises RuntimeError in a relay, and once the handler has ended.
        """
        return self._only_effect().block(what)

    def _only_effect(self) -> Effect:
        if self._has_ended:
            raise RuntimeError(
                f"{self.handler} has ended, and its effect is remembered no more: let the handler"
                " wait for the threads and tasks that it starts"
            )
        if self._effect is None:
            self._effect = Effect(self.handler, self.memory_id, is_relay=self.is_relay)
        return self._effect

    def check_committed(self) -> None:
        """Raise RuntimeError where the transaction of ``once`` is still open; roll it back.

        Called when the handler has returned.
        """
        if self._effect is not None:
            self._effect.check_committed()

    def roll_back(self) -> None:
        """Roll back what ``once`` began and a handler that failed did not end. Never raises."""
        if self._effect is not None:
            self._effect.roll_back()

    def restart(self) -> list[Outgoing]:
        """Be as before the handler's first line, for another run; return what it published."""
        children, self.children = self.children, []
        self._derived, self._effect = 0, None
        return children

    def publish(self, event: Event | Command | Relayed) -> str:
        """Publish ``event`` as a child of the message, and return its id.

        A :class:`Relayed` says its key and headers too; with a plain payload it needs a name.

        It leaves when the handler has returned, and is confirmed before the message counts as
        done; a handler that fails publishes nothing. Its id is derived from the message's, so
        that a second execution publishes the same ids. Raises what encoding it raises,
        RuntimeError once the handler has ended, and Reject in and behind the transaction of
        ``once``, or of an inbox: a second run may end there.
        """
        if self._effect is not None:
            self._effect.check_publishing()
        child = self.encode(event)
        self.children.append(child)
        if self._has_ended:  # asked last: what is told to have been published was seen by end()
            raise RuntimeError(
                f"{self.handler} has ended: {type(event).__name__} comes too late to leave with it;"
                " let the handler wait for the threads and tasks that it starts"
            )
        return child.message_id

    def end(self) -> list[Outgoing]:
        """Tell it that the handler has ended; return what it published."""
        self._has_ended = True
        return self.children

    def encode(self, event: Event | Command | Relayed) -> Outgoing:
        """Return ``event`` as a child that the caller sends: for outboxes. Else as ``publish``.

        It may be called in the transaction of the effect, and leave with it, and not behind it.
        """
        if self._effect is not None:
            self._effect.check_leaving()
        child = self._encode(event, self, derived_id(self.message.id, self.handler, self._derived))
        self._derived += 1
        return child

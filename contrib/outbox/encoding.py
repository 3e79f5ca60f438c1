"""From an event to the message that an outbox keeps: a child of the message at hand, or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from worker import Context, Relayed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from worker import App, Command, Event, Outgoing


def encoded(  # noqa: PLR0913 - the facts of a message
    app: App,
    event: Event | Command | Relayed,
    context: Context | None,
    *,
    headers: Mapping[str, Any] | None = None,
    priority: int | None = None,
    correlation_id: str | None = None,
) -> Outgoing:
    """Return ``event`` as a child of the message of ``context``, or as ``app`` publishes it.

    Raises TypeError where the arguments do not go together, and what encoding it raises.
    """
    if context is not None:
        if not isinstance(context, Context):
            raise TypeError(
                "publish_on_commit: its context comes behind the event, and this is a"
                f" {type(context).__name__}"
            )
        if headers is not None or priority is not None or correlation_id is not None:
            raise TypeError("with a context, headers come by Relayed, and the rest by itself")
        return context.encode(event)
    if isinstance(event, Relayed):
        raise TypeError("a Relayed tells of a child: publish_on_commit needs its context")
    return app.encode(event, headers=headers, priority=priority, correlation_id=correlation_id)

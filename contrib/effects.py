"""The one effect of a message, as the inboxes of all libraries begin it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker import Context

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

#: How handlers write it, for errors.
CALL = "inbox.transaction"


def one_effect(context: Context) -> AbstractContextManager[None]:
    """Return ``context.one_effect`` of ``inbox.transaction``.

    Raises TypeError for what is no context: the event is at hand as well.
    """
    if not isinstance(context, Context):
        raise TypeError(
            f"{CALL} is given the context, which a handler takes as its second argument, and this"
            f" is a {type(context).__name__}"
        )
    return context.one_effect(CALL)

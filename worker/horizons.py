"""Times that must fit together: those of the handlers, and for how long things are remembered."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from worker.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from worker.config import Settings
    from worker.transport.capabilities import Capabilities

#: RabbitMQ closes the channel of a consumer that holds a message longer than this.
_DELIVERY_TIMEOUT = 30 * 60.0


class Times(NamedTuple):
    """The times of a handler: what it is called, and seconds."""

    name: str
    #: Its time limit; None: it has none.
    timeout: float | None
    #: The longest sum of the waits of its retries.
    waits: float
    #: How long a message can wait for an earlier revision; None: it does not judge by revisions.
    gap: float | None = None


def check_horizons(handlers: Iterable[Times], settings: Settings, able: Capabilities) -> None:
    """Refuse times that cannot work together. Raises ConfigurationError."""
    mistakes = []
    for name, timeout, waits, gap in handlers:
        if timeout is not None and _takes_back(timeout, able):
            mistakes.append(
                f"{name}: timeout={timeout} s is above RabbitMQ's delivery timeout of"
                f" {_DELIVERY_TIMEOUT:.0f} s, after which it takes the message back"
            )
        if waits >= settings.retention:
            mistakes.append(
                f"{name}: its retries can wait {waits:.0f} s, longer than ids are remembered"
                f" (retention {settings.retention:.0f} s)"
            )
        if gap is not None and settings.revision_retention < settings.retention:
            mistakes.append(
                f"{name}: its revisions are remembered no longer than ids (revision_retention"
                f" {settings.revision_retention:.0f} s, retention {settings.retention:.0f} s), and"
                " what comes later than that has nothing else to be known by"
            )
        if gap is not None and (gap >= settings.retention or _takes_back(gap, able)):
            mistakes.append(
                f"{name}: a message waits {gap:.0f} s for an earlier revision, longer than ids are"
                f" remembered (retention {settings.retention:.0f} s), or than RabbitMQ lets a"
                f" consumer keep it ({_DELIVERY_TIMEOUT:.0f} s)"
            )
    if mistakes:
        raise ConfigurationError("\n".join(mistakes))


def _takes_back(seconds: float, able: Capabilities) -> bool:
    """Tell whether the broker takes back what a consumer keeps for so long."""
    return not able.embedded and seconds > _DELIVERY_TIMEOUT

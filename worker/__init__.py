"""qworker: a runtime for idempotent, ordered consumers of events and commands.

The public names are imported at their first use: the supervisor, probes and help, which need none
of them, start in half of the time and memory.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.app import App
    from worker.context import Context
    from worker.errors import (
        AlreadyDone,
        BrokerUnreachable,
        ConfigurationError,
        ConfirmTimeout,
        DedupUnavailable,
        PublishError,
        PublishRefused,
        QworkerError,
        Reject,
        Retry,
        Unroutable,
    )
    from worker.message import Command, Event, Message, Outgoing, Relayed
    from worker.publisher import Publisher
    from worker.relays import chain, deduplicate, enrich, shard
    from worker.retry import RetryPolicy
    from worker.revisions import Revisions

__all__ = [
    "AlreadyDone",
    "App",
    "BrokerUnreachable",
    "Command",
    "ConfigurationError",
    "ConfirmTimeout",
    "Context",
    "DedupUnavailable",
    "Event",
    "Message",
    "Outgoing",
    "PublishError",
    "PublishRefused",
    "Publisher",
    "QworkerError",
    "Reject",
    "Relayed",
    "Retry",
    "RetryPolicy",
    "Revisions",
    "Unroutable",
    "chain",
    "deduplicate",
    "enrich",
    "shard",
]

#: The modules of the names that are no errors.
_HOMES = {
    "App": "app",
    "Command": "message",
    "Context": "context",
    "Event": "message",
    "Message": "message",
    "Outgoing": "message",
    "Publisher": "publisher",
    "Relayed": "message",
    "RetryPolicy": "retry",
    "Revisions": "revisions",
    "chain": "relays",
    "deduplicate": "relays",
    "enrich": "relays",
    "shard": "relays",
}


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'worker' has no attribute {name!r}")
    value: object = getattr(import_module(f"worker.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*globals(), *__all__]

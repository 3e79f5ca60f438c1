"""qworker: a runtime for idempotent, ordered consumers of events and commands."""

from worker.app import App
from worker.errors import (
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
from worker.message import Command, Context, Event, Message
from worker.publisher import Publisher
from worker.retry import RetryPolicy

__all__ = [
    "App",
    "BrokerUnreachable",
    "Command",
    "ConfigurationError",
    "ConfirmTimeout",
    "Context",
    "DedupUnavailable",
    "Event",
    "Message",
    "PublishError",
    "PublishRefused",
    "Publisher",
    "QworkerError",
    "Reject",
    "Retry",
    "RetryPolicy",
    "Unroutable",
]

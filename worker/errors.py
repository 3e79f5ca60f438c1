"""The exception tree.

::

    QworkerError
    ├── UsageError               the call or the command line is wrong           exit 2
    ├── ConfigurationError       the app or its settings are wrong               exit 3
    │   └── DeclarationMismatch  the broker has this queue, declared otherwise   exit 3
    ├── Unreachable              a server does not answer                        exit 4
    │   ├── BrokerUnreachable
    │   ├── ArchiveUnavailable
    │   ├── DedupUnavailable
    │   └── LeasesUnavailable
    ├── PublishError             a message was not confirmed
    │   ├── Unroutable           nobody would have received it
    │   ├── PublishRefused       the broker said no (nack, length limit)
    │   └── ConfirmTimeout       the broker did not say; it may have been stored
    └── StoreCorrupt             a store answers, or holds, what it never should

    HandlerSignal                raised by handlers to steer, never an error
    ├── Retry                    run me again later
    └── Reject                   dead-letter this message now
    AlreadyDone                  the handler's own database remembers this id
"""

from __future__ import annotations


class QworkerError(Exception):
    """Base of everything that this package raises as an error.

    The text of every instance tells what was wrong, where, and what to do: the command line
    prints it as it is.
    """

    #: The exit code that the command line ends with when this error ends the program.
    exit_code = 1


class UsageError(QworkerError):
    """A call that cannot be meant: a wrong argument, an unknown name."""

    exit_code = 2


class ConfigurationError(QworkerError):
    """The app or its settings are wrong. Lists every mistake, each with where it was set."""

    exit_code = 3


class DeclarationMismatch(ConfigurationError):
    """The broker has an exchange or a queue of this name with other properties."""


class Unreachable(QworkerError):
    """A server that is needed does not answer."""

    exit_code = 4


class BrokerUnreachable(Unreachable):
    """No broker of the URL list answers."""


class ArchiveUnavailable(Unreachable):
    """The archive did not answer: nothing is known of what it did with the call."""


class DedupUnavailable(Unreachable):
    """The dedup store did not answer: nothing is known of what it did with the batch."""


class LeasesUnavailable(Unreachable):
    """The lease store did not answer: nothing is known of what it did with the call."""


class PublishError(QworkerError):
    """Messages were not confirmed by the broker; ``message_ids`` says which."""

    def __init__(self, text: str, *message_ids: str) -> None:
        super().__init__(text)
        self.message_ids = message_ids


class Unroutable(PublishError):
    """A mandatory message (every command is one) matched no queue; nothing was stored."""


class PublishRefused(PublishError):
    """The broker refused the message; nothing was stored."""


class ConfirmTimeout(PublishError):
    """The broker did not confirm in time: the message may or may not be stored.

    Publish it again with the same id; the consumer's memory of ids makes that harmless.
    """


class StoreCorrupt(QworkerError):
    """A store answered, or holds, something that its protocol does not know.

    The dedup store or the lease store, or a document in it: the plan of shards, what is paused.
    """


class HandlerSignal(Exception):
    """Base of what a handler raises to steer the runtime."""


class Retry(HandlerSignal):
    """Run this handler again for this message, after ``delay`` seconds.

    Without a delay the handler's :class:`~worker.retry.RetryPolicy` decides. It counts as an
    attempt, so the policy's limit holds. It is no failure: however many ask for it, that is no
    outage, and none spares the last attempt. Let the error of a server that is away pass instead.
    """

    def __init__(self, reason: str = "", *, delay: float | None = None) -> None:
        super().__init__(reason or "the handler asked for a retry")
        if delay is not None and not 0 <= delay < float("inf"):
            raise ValueError(f"Retry(delay={delay!r}): seconds, zero or more")
        self.delay = delay


class Reject(HandlerSignal):
    """Dead-letter this message now, with ``reason``; no further attempt."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class AlreadyDone(BaseException):
    """The effect of this message is in the handler's own database: there is nothing to do.

    Raised by :meth:`worker.Context.once`; it ends the handler, and the message counts as done. It
    is no Exception, as nothing went wrong: a handler that catches every Exception and goes on would
    have its effect a second time.
    """

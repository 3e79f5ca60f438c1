"""What became of one message at one handler: a closed union, matched in one place.

The executor returns one of these, and ``fate.py`` acts on it. Nothing else in the runtime decides
what becomes of a message whose handler ran.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from worker.message import Outgoing


@dataclass(frozen=True, slots=True)
class Done:
    """The handler returned. ``children`` must be confirmed before the message counts as done."""

    children: tuple[Outgoing, ...] = ()


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Run it again after ``delay`` seconds; the lane of its key waits."""

    delay: float
    reason: str
    #: The handler asked for it (``raise Retry``): nothing failed.
    asked: bool = False


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Set the message aside with a reason in plain words.

    ``exhausted`` tells that the retry policy gave up, so that its ``exhausted`` setting
    (dead_letter, park_key or halt_shard) applies; a message that could never be handled
    goes to the dead-letter queue whatever that policy says.
    """

    reason: str
    exhausted: bool = False
    #: As for RetryLater.
    asked: bool = False
    #: The traceback of the last attempt, for the people who read the dead-letter queue.
    detail: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The handler never ran.

    An earlier message of its lane has to run again first, a drain began, its handler was paused, or
    the claim may have expired.
    """


@dataclass(frozen=True, slots=True)
class Superseded:
    """The handler did not run: revision ``last`` of its key was done, and this one is not above."""

    revision: int
    last: int


@dataclass(frozen=True, slots=True)
class Early:
    """The handler did not run: it waits for the revisions between ``last`` and this one."""

    revision: int
    last: int


Outcome = Done | RetryLater | DeadLetter | Abandoned | Superseded | Early
#: Those beside which a run goes on: nothing happened, and nothing has to wait for them.
PASSED_OVER = (Superseded, Early)

#: The common case, made once.
DONE = Done()
ABANDONED = Abandoned()

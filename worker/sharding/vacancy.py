"""When nothing can return to the queues of an old generation any more, so that they can go. Pure.

Whoever is to delete them looks at them now and then. A look tells what is ready in them and who
consumes them, and nothing of what is on its way back:

* What waits in a retry queue returns to the queue that it came from. Which that is cannot be seen;
  but once nobody consumes the old queues, none is of them after the longest wait.
* What has expired there is on its way until the other queue has confirmed it, and is counted by
  neither (RabbitMQ's documentation of quorum queues, "at-least-once dead lettering").
* What a reader took, and did not acknowledge, returns when its channel closes. A quorum queue
  counts the reader for as long; a classic one, and the embedded brokers, count it no more as soon
  as its consumer has ended (tried on RabbitMQ 3.10.8).

The first is waited for. The others take a moment where the broker is well, so two looks some
seconds apart, and all between them, must find nothing. Time in which nobody could look does not
count: while the broker is away it moves nothing, however much has expired.
"""

from __future__ import annotations

#: Seconds between the first and the last of the looks that must find nothing.
CALM = 5.0
#: Seconds beyond the longest wait of a retry in which it has returned; and between two looks, after
#: which the earlier ones do not count.
SLACK = 60.0


class Vacancy:
    """What the looks at the queues of one generation have come to.

    For looks that succeed and find no consumer. One that does not makes the earlier ones void: the
    next is the first of a new Vacancy. ``longest_wait`` is that of a retry, in seconds.
    """

    def __init__(self, generation: int, longest_wait: float) -> None:
        self.generation = generation
        self._longest_wait = longest_wait
        self._unconsumed_since: float | None = None
        self._empty_since: float | None = None
        self._looked_at = 0.0

    def look(self, began: float, ended: float, *, ready: bool, retries: bool) -> str:
        """Return why the queues have to stay; empty where they can go.

        A look from ``began`` to ``ended``, by a monotonic clock in seconds, found messages
        ``ready`` in the queues or not, and ``retries`` of the service, of whichever generation.
        """
        if self._unconsumed_since is None or began - self._looked_at > SLACK:
            self._unconsumed_since, self._empty_since = ended, None
        self._looked_at = ended
        if ready:
            self._empty_since = None
            return "there was something in them"
        if retries and began - self._unconsumed_since < self._longest_wait + SLACK:
            self._empty_since = None
            return "retries wait in the broker, which may return to the old queues"
        if self._empty_since is None:
            self._empty_since = ended
        if began - self._empty_since < CALM:
            return "something may be on its way back to them"
        return ""

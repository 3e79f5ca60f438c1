"""How a consumer ends: in order, with work left behind, or because it cannot go on.

A drain gives every shard, each as it is given at any other time (``tenure``): it is somebody else's
as soon as nothing of it is left here, however long the handlers of other shards still run. The
consumer takes none any more, and ends when nothing is under way. At the deadline it abandons what
still is, and so it does at once where it is stopped; that is given by the end of the process.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from enum import Enum
from typing import TYPE_CHECKING

from worker.dedup.base import Answer
from worker.errors import BrokerUnreachable, QworkerError
from worker.telemetry import HandlerAbandoned

if TYPE_CHECKING:
    from worker.assembly import Parts
    from worker.dialogue import Replies
    from worker.dispatch import Resolve
    from worker.telemetry import Counters, Telemetry

logger = logging.getLogger("worker")

#: Messages that are told of one by one, where they are abandoned.
_MOST_TOLD = 50


class Finish(Enum):
    """How a consumer ended."""

    #: Everything that was begun is finished, recorded and acknowledged.
    DRAINED = "drained"
    #: The drain deadline passed, or it was stopped, with work under way.
    ABANDONED = "abandoned"
    #: A handler ignored its time limit; all else has drained. The process must be replaced.
    STUCK = "stuck"
    #: It cannot go on; the log says why.
    FAILED = "failed"


class Ending:
    """The drain of one consumer. Used by its I/O thread only.

    ``patience``: the seconds for which the store is waited for, when it is asked.
    """

    def __init__(
        self, parts: Parts, counters: Counters, telemetry: Telemetry, patience: float
    ) -> None:
        self._parts = parts
        self._telemetry = telemetry
        self._patience = patience
        self._since: float | None = None
        self._counters = counters
        self._aim: Finish | None = None
        #: When work that is under way is abandoned; None while no drain has begun.
        self.deadline: float | None = None
        #: How it ended; None while it goes on.
        self.finish: Finish | None = None

    def begin(self, deadline: float, aim: Finish) -> None:
        """Begin nothing new, give every shard; what runs has until ``deadline``."""
        if self.deadline is None or deadline < self.deadline:
            self.deadline = deadline
        self._aim = self._aim or aim
        self._parts.executor.draining = True
        self._parts.gatherer.drain()
        self._parts.dispatcher.forget()
        self._parts.tenure.give([*self._parts.tenure.shards])

    def check(self, now: float, resolve: Resolve) -> None:
        """End once nothing is under way, or the deadline passed. ``resolve`` as in ``abandon``."""
        if self.deadline is None:
            return
        self._since = now if self._since is None else self._since
        dispatcher, dialogue = self._parts.dispatcher, self._parts.dialogue
        detour, link = self._parts.detour, self._parts.link
        if not detour.under_way:
            with suppress(BrokerUnreachable):  # then it is left already
                link.close_relay()
        stuck = dispatcher.limits.stuck
        running = dispatcher.out - stuck
        if not running and not dialogue.busy and not detour.under_way:
            with suppress(BrokerUnreachable):  # what is not acknowledged comes again, a duplicate
                self._counters.acked += link.settle(everything=True)
                self._parts.tenure.check(now)  # gives what ended last
            self.finish = Finish.STUCK if stuck else self._aim
        elif now >= self._latest(self.deadline, self._since):
            self.abandon(Finish.STUCK if stuck else Finish.ABANDONED, resolve)

    def _latest(self, deadline: float, since: float) -> float:
        """Return when to give up: while the store is away, with time for a last word to it."""
        if self._parts.dialogue.away_since is None:
            return deadline
        return deadline - min(self._patience, (deadline - since) / 4)

    def abandon(self, finish: Finish, resolve: Resolve) -> None:
        """End with work under way: record what is done, and say of the rest that it was left.

        As far as the store answers, which is asked once more. What it does not hear of is a suspect
        for the next owner. ``resolve`` decides the fate of what is done.
        """
        dispatcher, dialogue = self._parts.dispatcher, self._parts.dialogue
        self._parts.executor.draining = True
        dispatcher.recall()
        dispatcher.collect_early(resolve)
        self._tell()
        dispatcher.abandon()
        with suppress(QworkerError):
            while dialogue.busy:  # a batch that was not answered before goes first
                replies = dialogue.exchange(lambda: None, last=True)
                if replies is None:
                    break
                self._give_back(replies)
        self.finish = finish

    def _tell(self) -> None:
        """Say what runs on, and is left alone."""
        now = self._parts.executor.clock()
        tasks = [task for run in self._parts.dispatcher.out for task in run.tasks]
        begun = [(task, task.started) for task in tasks]  # which may end meanwhile
        left = [(task, now - started) for task, started in begun if started]
        left.sort(key=lambda each: -each[1])
        for task, seconds in left[:_MOST_TOLD]:
            message = task.message
            facts = task.handler_name, message.id, message.name, message.key, task.attempt
            self._telemetry.emit(HandlerAbandoned(*facts, round(seconds, 1)))
        if left[_MOST_TOLD:]:
            logger.warning("%d more handlers are abandoned while they run", len(left) - _MOST_TOLD)

    def _give_back(self, replies: Replies) -> None:
        """Give back what was claimed just now: nobody runs it here, and that is no crash."""
        for run, verdicts in replies.claimed:
            for task, verdict in zip(run.tasks, verdicts, strict=True):
                if verdict.answer is Answer.FRESH:
                    self._parts.dialogue.release(task, refund=True)

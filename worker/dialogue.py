"""What a tick says to the dedup store, and which tasks the answers are for.

Gathers completions, releases and claims from all over a tick and sends them, with the renewals that
are due, in one round trip. When the store is away the same batch is sent again until it answers:
stores make that harmless, and nothing is dispatched or acknowledged meanwhile.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from worker.dedup.base import (
    OWNER_BYTES,
    TOKEN_BYTES,
    Answer,
    Batch,
    Claim,
    Complete,
    Release,
    Renew,
    Verdict,
    begin,
)
from worker.errors import DedupUnavailable
from worker.telemetry import StoreAway, StoreBack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from worker.dedup.base import DedupStore
    from worker.sharding.lanes import Run
    from worker.task import Task
    from worker.telemetry import Telemetry

_COUNTER_BYTES = TOKEN_BYTES - OWNER_BYTES
_COUNTER_MASK = 2 ** (8 * _COUNTER_BYTES) - 1
_RENEW_SHARE = 3  # a claim is renewed after a third of its life
#: A claim is not trusted for the last part of its life: clocks drift, threads wait for a core.
_TRUST_SHARE = 0.9
_MOST_DEAD = 64
_SLACK = 0.05
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


class Replies(NamedTuple):
    """The answers to one batch, by what they are for."""

    completed: list[tuple[Task, Answer]]
    claimed: list[tuple[Run[Task], list[Verdict]]]
    #: The batch was sent before and its first answer got lost.
    repeated: bool


class Dialogue:
    """One consumer's side of the talk with its store. Used by the I/O thread only."""

    def __init__(
        self,
        store: DedupStore,
        owner: bytes,
        claim_ttl: float,
        telemetry: Telemetry,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._owner = owner
        self._ttl = claim_ttl
        self._telemetry = telemetry
        self._clock = clock
        self._counter = count(1)
        self._completing: list[Task] = []
        self._releases: list[Release] = []
        #: The tasks that they are for, until the store has answered.
        self._releasing: list[Task] = []
        self._runs: list[tuple[Run[Task], bool]] = []
        self._dead: dict[bytes, None] = {}
        self._unanswered: tuple[Batch, list[Task], list[Run[Task]]] | None = None
        self._renew_at = 0.0
        self._next_try = 0.0
        self._pause = _FIRST_PAUSE
        #: Since when the store has been away; None while it answers.
        self.away_since: float | None = None
        #: Tasks whose claim is ours: running, or waiting for their completion.
        self.owned: set[Task] = set()

    @property
    def busy(self) -> bool:
        """Whether anything was said that is not answered yet."""
        return bool(
            self._unanswered is not None or self._completing or self._releases or self._runs
        )

    @property
    def has_told(self) -> bool:
        """Whether the store knows of all that is done."""
        return self._unanswered is None and not self._completing

    @property
    def next_try(self) -> float:
        """When to ask again while the store is away; 0 while it answers."""
        return self._next_try if self.away_since is not None else 0.0

    def complete(self, task: Task) -> None:
        """Record that ``task`` is done: its effect happened, or it was set aside."""
        self._completing.append(task)

    def release(self, task: Task, *, refund: bool, wait: float = 0.0) -> None:
        """Give the claim of ``task`` back; nobody may have it for ``wait`` seconds.

        Or a moment less: the store begins to count later than whoever claims it again here.
        """
        self.owned.discard(task)
        self._releasing.append(task)
        self._releases.append(Release(task.record, task.token, refund, max(0.0, wait - _SLACK)))

    def is_over(self, task: Task) -> bool:
        """Tell whether the claim of ``task`` is over before the store is asked for another one.

        Then no crash of what is claimed from here on is charged to it.
        """
        return task not in self.owned or task in self._completing

    def shards(self) -> set[int]:
        """Return the shards of which the store has yet to hear something."""
        return {task.message.shard for task in (*self.owned, *self._releasing)}

    def claim(self, run: Run[Task], *, solo: bool = False) -> None:
        """Ask for every task of ``run``."""
        self._runs.append((run, solo))

    def bury(self, owners: Iterable[bytes]) -> None:
        """Treat the claims of these owners as left by the dead."""
        for owner in owners:
            self._dead[owner] = None
        while len(self._dead) > _MOST_DEAD:  # the oldest ones' claims have long expired
            del self._dead[next(iter(self._dead))]

    def exchange(self, meanwhile: Callable[[], None], *, last: bool = False) -> Replies | None:
        """Make one round trip; None where there is nothing to say, or no answer.

        Sends what an unanswered batch held first, unchanged. Calls ``meanwhile`` while the store
        works, where it has a server to work; it raises nothing, and asks nothing of the store.
        ``last``: there is no later time to ask at, so a store that was away is asked at once.
        """
        now = self._clock()
        repeated = self._unanswered is not None
        if repeated:
            if now < self._next_try and not last:
                return None
        else:
            batch, tasks, runs = self._build(now)
            if not batch:
                return None
            self._unanswered = batch, tasks, runs
        assert self._unanswered is not None  # noqa: S101 - both ways above set it
        batch, tasks, runs = self._unanswered
        try:
            answered = begin(self._store, batch)
            meanwhile()
            answers = answered()
        except DedupUnavailable as error:
            self._note_away(error)
            return None
        self._unanswered = None
        del self._releasing[: len(batch.releases)]
        self._note_back()
        trusted = now + self._ttl * _TRUST_SHARE
        self.owned.difference_update(tasks)
        self._note_renewals(batch, answers.renewals, trusted)
        verdicts = iter(answers.claims)
        claimed = []
        for run in runs:
            own = [next(verdicts) for _ in run.tasks]
            for task, verdict in zip(run.tasks, own, strict=True):
                if verdict.answer is Answer.FRESH:
                    task.attempt = verdict.attempts
                    task.trusted_until = trusted
                    self.owned.add(task)
            claimed.append((run, own))
        return Replies(list(zip(tasks, answers.completes, strict=True)), claimed, repeated)

    def _build(self, now: float) -> tuple[Batch, list[Task], list[Run[Task]]]:
        tasks, self._completing = self._completing, []
        releases, self._releases = self._releases, []
        runs, self._runs = self._runs, []
        completes = [Complete(t.record, t.token, t.fingerprint, t.effective) for t in tasks]
        claims = []
        owner, counter = self._owner, self._counter
        for run, solo in runs:
            for task in run.tasks:
                number = next(counter) & _COUNTER_MASK
                task.token = owner + number.to_bytes(_COUNTER_BYTES, "big")
                claims.append(Claim(task.record, task.token, task.fingerprint, solo))
        batch = Batch(completes, releases, self._renewals(now, tasks), claims, tuple(self._dead))
        return batch, tasks, [run for run, _ in runs]

    def _renewals(self, now: float, completing: list[Task]) -> list[Renew]:
        """Return the renewals that are due; looks at most twice in a third of a claim's life."""
        if now < self._renew_at:
            return []
        interval = self._ttl / _RENEW_SHARE
        self._renew_at = now + interval / 2
        soon = now + self._ttl * _TRUST_SHARE - interval
        leaving = set(completing)
        return [
            Renew(task.record, task.token)
            for task in self.owned
            if task.trusted_until < soon and task not in leaving
        ]

    def _note_renewals(self, batch: Batch, answers: list[Answer], trusted: float) -> None:
        if not batch.renewals:
            return
        by_token = {task.token: task for task in self.owned}
        for renewal, answer in zip(batch.renewals, answers, strict=True):
            task = by_token.get(renewal.token)
            if task is not None and answer is Answer.KEPT:
                task.trusted_until = trusted

    def _note_away(self, error: DedupUnavailable) -> None:
        now = self._clock()
        if self.away_since is None:
            self.away_since = now
            self._pause = _FIRST_PAUSE
            self._telemetry.emit(StoreAway(str(error)))
        self._next_try = now + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _note_back(self) -> None:
        if self.away_since is not None:
            self._telemetry.emit(StoreBack(round(self._clock() - self.away_since, 3)))
            self.away_since = None

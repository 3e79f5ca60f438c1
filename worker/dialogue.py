"""What a tick says to the dedup store, and which tasks the answers are for.

Gathers completions, releases and claims from all over a tick and sends them, with the renewals that
are due, in one round trip. When the store is away the same batch is sent again until it answers:
stores make that harmless, and nothing is dispatched or acknowledged meanwhile.
"""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, NamedTuple

from worker.dedup.base import (
    FINGERPRINT_BYTES,
    OWNER_BYTES,
    TOKEN_BYTES,
    Answer,
    Batch,
    Claim,
    Complete,
    Mark,
    Release,
    Renew,
    Verdict,
    begin,
)
from worker.errors import DedupUnavailable
from worker.revisions import Reached
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
#: Seconds after which a store that was away is worth a last try.
_SINCE_ASKED = 0.1


class Replies(NamedTuple):
    """The answers to one batch, by what they are for."""

    completed: list[tuple[Task, Answer]]
    claimed: list[tuple[Run[Task], list[Verdict]]]
    #: The batch was sent before and its first answer got lost.
    repeated: bool
    #: Those of the completed tasks that were judged by their revisions.
    judged: list[Task]


class Wait(NamedTuple):
    """A task that may wait for so many seconds in all, and who is told how many are left."""

    task: Task
    record: bytes
    seconds: float
    told: Callable[[float], None]


class Asked(NamedTuple):
    """A batch, and whom each of its answers is for."""

    batch: Batch
    tasks: list[Task]
    runs: list[Run[Task]]
    waits: list[tuple[Wait, bytes]]
    looking: list[Reached]


class Dialogue:
    """One consumer's side of the talk with its store. Used by the I/O thread only.

    ``has_revisions`` tells whether any handler judges by revisions.
    """

    def __init__(  # noqa: PLR0913 - the facts of a consumer
        self,
        store: DedupStore,
        owner: bytes,
        claim_ttl: float,
        telemetry: Telemetry,
        clock: Callable[[], float],
        *,
        has_revisions: bool = False,
    ) -> None:
        self._has_revisions = has_revisions
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
        self._waits: list[Wait] = []
        self._dead: dict[bytes, None] = {}
        self._unanswered: Asked | None = None
        self._renew_at = 0.0
        self._next_try = 0.0
        #: When it was found to be away the last time.
        self._asked_at = 0.0
        self._pause = _FIRST_PAUSE
        #: Since when the store has been away; None while it answers.
        self.away_since: float | None = None
        #: Tasks whose claim is ours: running, or waiting for their completion.
        self.owned: set[Task] = set()

    @property
    def busy(self) -> bool:
        """Whether anything was said that is not answered yet."""
        return bool(
            self._unanswered is not None
            or self._completing
            or self._releases
            or self._runs
            or self._waits
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

    def wait(self, wait: Wait) -> None:
        """Ask how many seconds are left of a wait, which begins with the first question.

        The wait is a record of its own that nobody completes: it is claimed, and given back with
        the wait. So the store counts the time, through restarts too; and a later claim of it that
        succeeds tells that the wait is over.
        """
        self._waits.append(wait)

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
        ``last``: there is no later time to ask at, so a store that was away is asked at once,
        unless it was a moment ago.
        """
        now = self._clock()
        repeated = self._unanswered is not None
        if repeated:
            due = min(self._asked_at + _SINCE_ASKED, self._next_try) if last else self._next_try
            if now < due:
                return None
        else:
            asked = self._build(now)
            if not asked.batch:
                return None
            self._unanswered = asked
        assert self._unanswered is not None  # noqa: S101 - both ways above set it
        batch, tasks, runs, waits, looking = self._unanswered
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
        for reached, revision in zip(looking, answers.revisions, strict=True):
            reached.last = revision
        for wait, token in waits:
            self._note_wait(wait, token, next(verdicts))
        judged = [t for t in tasks if t.progress is not None] if self._has_revisions else []
        completed = list(zip(tasks, answers.completes, strict=True))
        return Replies(completed, claimed, repeated, judged)

    def _build(self, now: float) -> Asked:
        tasks, self._completing = self._completing, []
        releases, self._releases = self._releases, []
        asked, self._runs = self._runs, []
        waits, self._waits = self._waits, []
        completes = [Complete(t.record, t.token, t.fingerprint, t.effective) for t in tasks]
        claims = []
        owner, counter = self._owner, self._counter
        for run, solo in asked:
            for task in run.tasks:
                number = next(counter) & _COUNTER_MASK
                task.token = owner + number.to_bytes(_COUNTER_BYTES, "big")
                claims.append(Claim(task.record, task.token, task.fingerprint, solo))
        tokens = []
        for wait in waits:
            token = owner + (next(counter) & _COUNTER_MASK).to_bytes(_COUNTER_BYTES, "big")
            tokens.append(token)
            claims.append(Claim(wait.record, token, bytes(FINGERPRINT_BYTES), solo=True))
        batch = Batch(completes, releases, self._renewals(now, tasks), claims, tuple(self._dead))
        runs = [run for run, _ in asked]
        looking = self._add_revisions(batch, tasks, runs) if self._has_revisions else []
        return Asked(batch, tasks, runs, list(zip(waits, tokens, strict=True)), looking)

    def _add_revisions(
        self, batch: Batch, done: list[Task], runs: list[Run[Task]]
    ) -> list[Reached]:
        """Mark the revisions of what is done, and look at those that ``runs`` are judged by."""
        for task in done:
            progress = task.progress
            if task.effective and progress is not None and progress.revision is not None:
                batch.marks.append(Mark(progress.place, progress.revision))
        looking: list[Reached] = []
        for run in runs:
            known: dict[bytes, Reached] = {}
            for task in run.tasks:
                progress = task.progress
                if progress is None or not progress.place:
                    continue
                if progress.place not in known:
                    known[progress.place] = Reached()
                progress.reached = known[progress.place]
            batch.looks.extend(known)
            looking.extend(known.values())
        return looking

    def _note_wait(self, wait: Wait, token: bytes, verdict: Verdict) -> None:
        """Tell how much is left of a wait."""
        left = wait.seconds
        if verdict.answer is Answer.LATER:
            left = verdict.wait
        elif verdict.answer is Answer.FRESH:
            # It was claimed before, and not by one that died before it could give it back.
            is_over = verdict.attempts - verdict.crashes > 1
            left = 0.0 if is_over else left
            self._releasing.append(wait.task)
            self._releases.append(Release(wait.record, token, refund=is_over, wait=left))
        # Else somebody who is gone was about to begin it.
        wait.told(left)

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
        self._asked_at = now
        self._next_try = now + self._pause
        self._pause = min(self._pause * 2, _LONGEST_PAUSE)

    def _note_back(self) -> None:
        if self.away_since is not None:
            self._telemetry.emit(StoreBack(round(self._clock() - self.away_since, 3)))
            self.away_since = None

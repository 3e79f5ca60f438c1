"""What handlers did, and what can be seen to be wrong at the moment in which it happens.

Most is judged at the end of a schedule (``judge``). Here is what only the moment knows: whether the
lease that a handler begins under, and the claim, are its process's in the stores by then, and
whether what is given or acknowledged may be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from simulation import revisions
from simulation.troubles import BROKER
from worker.context import Context
from worker.telemetry import DeadLettered, LeaseOutlived, RevisionMissing, RevisionSuperseded
from worker.topology import dead_letter_queue, parked_queue, shard_queue

if TYPE_CHECKING:
    from simulation.children import Child
    from simulation.troubles import Process
    from simulation.world import World
    from worker.leases.rules import LeaseRow
    from worker.task import Delivery, Task
    from worker.telemetry import RuntimeEvent

SERVICE = "bank"


class Finding(NamedTuple):
    """Something that is wrong."""

    #: The key that it is about; None: with none.
    key: str | None
    #: What is wrong, a colon, and where.
    text: str
    #: The messages that it is about.
    ids: tuple[str, ...] = ()


@dataclass(eq=False, slots=True)
class Attempt:
    """One call of a handler."""

    child: Child
    handler: str
    id: str
    key: str | None
    number: int
    shard: int
    fence: int
    begin: float
    #: The name of the lease that it begins under, and whose that is.
    lease: str
    member_id: str
    #: When it returned, or raised; None while it runs, or where its process died.
    end: float | None = None
    #: When its effect happened; None where it had none.
    effect: float | None = None
    #: The message whose child it is about, as its payload says.
    of: str = ""
    #: It ended when its lease was somebody's else, or nobody's.
    outlived: bool = False

    def __str__(self) -> str:
        return (
            f"{self.handler} {self.id} key {self.key} attempt {self.number} shard {self.shard}"
            f" fence {self.fence} in {self.child}"
        )

    def is_under(self, lease: LeaseRow | None) -> bool:
        """Tell whether this lease, as the lease store has it, is the one that it began under."""
        return lease is not None and (lease.owner, lease.epoch) == (self.member_id, self.fence)


class Ledger:
    """All attempts of a world, in the order of their beginning."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.attempts: list[Attempt] = []
        #: What is wrong already.
        self.wrong: list[Finding] = []
        self._expected: Attempt | None = None
        self._owners: dict[tuple[int, int], str] = {}
        #: Handler, message and fence of what was said to have outlived its lease.
        self._said: set[tuple[str, str, int]] = set()
        #: Why a message was set aside, as the process said.
        self.reasons: dict[str, str] = {}
        #: When a message was said to be too early, for the first time.
        self.early: dict[str, float] = {}

    def expect(self, child: Child, task: Task) -> Attempt:
        """Note who is about to begin what."""
        message = task.message
        self._task = task
        self._expected = Attempt(
            child,
            task.handler_name,
            message.id,
            message.key,
            0,
            message.shard,
            0,
            self._world.clock(),
            self._world.lease_of(child.generation, message.shard),
            child.member_id,
        )
        return self._expected

    def begin(self, context: Context, *, is_other: bool = False, of: str = "") -> None:
        """A handler was called; ``is_other``: with the payload of another message."""
        attempt = self._expected
        assert attempt is not None
        self._expected = None
        attempt.number, attempt.fence, attempt.of = context.attempt, context.fence, of
        self.attempts.append(attempt)
        self._world.note("begins", attempt)
        self._check_lease(attempt)
        self._check_claim(attempt, self._task)
        self._check_alone(attempt)
        for text in revisions.check_begin(self._world, attempt):
            self._complain_of(attempt, text)
        if is_other:
            self._complain_of(attempt, f"begins with another payload: {attempt}")

    def commit(self) -> None:
        """The transaction of the handler that was called last is committed: its effect."""
        attempt = self.attempts[-1]
        attempt.effect = self._world.clock()
        self._world.note("commits", attempt)

    def end(self, attempt: Attempt, *, done: bool) -> None:
        """A handler came to an end; its effect, if it has one, happens now or was committed."""
        attempt.end = self._world.clock()
        if done and not self._world.shape.once:
            attempt.effect = attempt.end
        what = "ends" if self._world.shape.once else "effect of"
        self._world.note(what if done else "fails", attempt)
        attempt.outlived = not attempt.is_under(self._lease(attempt))

    def hear(self, event: RuntimeEvent) -> None:
        """Note what a process says of itself."""
        if isinstance(event, LeaseOutlived):
            self._said.add((event.handler, event.message_id, event.fence))
        elif isinstance(event, RevisionMissing):
            self.early.setdefault(event.message_id, self._world.clock())
        elif isinstance(event, RevisionSuperseded):
            for text in revisions.check_superseded(self._world, event):
                self.complain(event.key, text, event.message_id)
        elif isinstance(event, DeadLettered) and event.message_id is not None:
            self.reasons[event.message_id] = event.reason

    def is_said(self, attempt: Attempt) -> bool:
        """Tell whether it was said of a handler that it outlived its lease."""
        return (attempt.handler, attempt.id, attempt.fence) in self._said

    def complain(self, key: str | None, text: str, *ids: str) -> None:
        self.wrong.append(Finding(key, text, ids))
        self._world.note("WRONG", text)

    def _complain_of(self, attempt: Attempt, text: str) -> None:
        self.complain(attempt.key, text, attempt.id)

    def _check_lease(self, attempt: Attempt) -> None:
        """It begins under a lease that is its supervisor's, as the lease store has it."""
        child, row = attempt.child, self._lease(attempt)
        if not attempt.is_under(row):
            has = "nobody" if row is None else f"{self._world.member_of(row.owner)}, {row.epoch}"
            self._complain_of(attempt, f"begins without its lease: {attempt}; it is of {has}")
        owner = self._owners.setdefault((attempt.shard, attempt.fence), child.member)
        if owner != child.member:
            self._complain_of(attempt, f"has the fence of another: {attempt}, which {owner} had")

    def _lease(self, attempt: Attempt) -> LeaseRow | None:
        """Return the lease that it began under, as the lease store has it."""
        book = self._world.leases._books.get(SERVICE)
        return None if book is None else book.leases.get(attempt.lease)

    def _check_claim(self, attempt: Attempt, task: Task) -> None:
        """It begins under a claim that is its own, as the dedup store has it."""
        records = self._world.memory.records
        held = records.held.get(task.record)
        if task.record in records.done:
            self._complain_of(attempt, f"begins and is recorded as done already: {attempt}")
        elif held is None or held.token != task.token:
            self._complain_of(attempt, f"begins without its claim: {attempt}")
        elif held.deadline <= attempt.begin:
            self._complain_of(attempt, f"begins when its claim is over: {attempt}")

    def _check_alone(self, attempt: Attempt) -> None:
        """Nobody else is at the same message, but who cannot know that its claim is over."""
        for process in self._world.processes.values():
            for other in process.attempts():
                if (other.handler, other.id) != (attempt.handler, attempt.id):
                    continue
                if not self._world.was_troubled(other.child, other.begin, attempt.begin):
                    self._complain_of(attempt, f"begins while it runs: {other} and {attempt}")

    def check_settled(self, delivery: Delivery) -> None:
        """A task of it needs nothing more: it is recorded, or the message set aside."""
        message = delivery.message
        if message is None or (delivery.parked and delivery.open_tasks > 1):
            return  # what is parked is so for all of its tasks, and the last of them waits for it
        done = self._world.memory.records.done
        handlers = self._world.app.route(message.name)
        missing = [each.name for each in handlers if each.record_id(message.id) not in done]
        if len(missing) >= delivery.open_tasks > 0 and not self._is_aside(message.body):
            names = " and ".join(missing)
            text = f"settled before it is recorded: {message.id} at {names}"
            self.complain(message.key, text, message.id)

    def check_drained(self, process: Process) -> None:
        """Who ends in order has ended everything that it began; nothing excuses the rest."""
        for each in process.attempts():
            self._complain_of(each, f"drained and runs still: {each}")

    def check_given(self, child: Child, shards: list[int]) -> None:
        """What is given is not consumed any more, and nothing of it runs."""
        self._world.note(
            child, "gives", *(self._world.lease_of(child.generation, shard) for shard in shards)
        )
        if BROKER not in child.cuts:
            consumed = self._world.broker.consumed_by(child.connection)
            for shard in shards:
                if shard_queue(SERVICE, child.generation, shard) in consumed:
                    self.complain(None, f"given before it is closed: {child}, shard {shard}")
        for each in child.attempts():
            if each.shard in shards:
                self._complain_of(each, f"gives its shard while it runs: {each}")

    def _is_aside(self, body: bytes) -> bool:
        """Tell whether it was set aside, or comes again: out of a retry queue, say."""
        kept = (dead_letter_queue(SERVICE), parked_queue(SERVICE))
        found = self._world.broker.queues_with(body)
        return len(found) > 1 or any(name in kept for name in found)

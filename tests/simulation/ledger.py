"""What handlers did, and what can be seen to be wrong at the moment in which it happens.

Most is judged at the end of a schedule (``judge``). Here is what only the moment knows: whether the
lease that a handler begins under, and the claim, are its process's in the stores by then, and
whether what is given or acknowledged may be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from simulation.troubles import BROKER
from worker.message import Context
from worker.sharding.generations import lease_of
from worker.topology import dead_letter_queue, parked_queue, shard_queue

if TYPE_CHECKING:
    from simulation.children import Child
    from simulation.world import World
    from worker.task import Delivery, Task

SERVICE = "bank"


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
    #: When it returned, or raised; None while it runs, or where its process died.
    end: float | None = None
    effect: bool = False

    def __str__(self) -> str:
        return (
            f"{self.handler} {self.id} key {self.key} attempt {self.number} shard {self.shard}"
            f" fence {self.fence} in {self.child}"
        )


class Ledger:
    """All attempts of a world, in the order of their beginning."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.attempts: list[Attempt] = []
        #: What is wrong already, in words, with the key that it is about.
        self.wrong: list[tuple[str | None, str]] = []
        self._expected: Attempt | None = None
        self._owners: dict[tuple[int, int], str] = {}
        self._ended: set[tuple[str, str]] = set()

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
        )
        return self._expected

    def begin(self, context: Context) -> None:
        """A handler was called."""
        attempt = self._expected
        assert attempt is not None
        self._expected = None
        attempt.number, attempt.fence = context.attempt, context.fence
        self.attempts.append(attempt)
        self._world.note("begins", attempt)
        self._check_lease(attempt)
        self._check_claim(attempt, self._task)
        self._check_alone(attempt)

    def end(self, attempt: Attempt, *, effect: bool) -> None:
        """A handler came to an end; its effect, if it has one, happens now."""
        attempt.end, attempt.effect = self._world.clock(), effect
        if effect:
            self._ended.add((attempt.handler, attempt.id))
        self._world.note("effect of" if effect else "fails", attempt)

    def has_effect(self, handler: str, id_: str) -> bool:
        return (handler, id_) in self._ended

    def complain(self, key: str | None, text: str) -> None:
        self.wrong.append((key, text))
        self._world.note("WRONG", text)

    def _check_lease(self, attempt: Attempt) -> None:
        """It begins under a lease that is its supervisor's, as the lease store has it."""
        child = attempt.child
        name = lease_of(child.generation, attempt.shard)
        book = self._world.leases._books.get(SERVICE)
        row = book.leases.get(name) if book is not None else None
        if row is None or (row.owner, row.epoch) != (child.member_id, attempt.fence):
            self.complain(attempt.key, f"begins without its lease, which is {row}: {attempt}")
        owner = self._owners.setdefault((attempt.shard, attempt.fence), child.member)
        if owner != child.member:
            self.complain(attempt.key, f"has the fence that {owner} had: {attempt}")

    def _check_claim(self, attempt: Attempt, task: Task) -> None:
        """It begins under a claim that is its own, as the dedup store has it."""
        records = self._world.memory.records
        held = records.held.get(task.record)
        if task.record in records.done:
            self.complain(attempt.key, f"begins and is recorded as done already: {attempt}")
        elif held is None or held.token != task.token:
            self.complain(attempt.key, f"begins without its claim: {attempt}")
        elif held.deadline <= attempt.begin:
            self.complain(attempt.key, f"begins when its claim is over: {attempt}")

    def _check_alone(self, attempt: Attempt) -> None:
        """Nobody else is at the same message, but who cannot know that its claim is over."""
        for process in self._world.processes.values():
            for other in process.attempts():
                if (other.handler, other.id) != (attempt.handler, attempt.id):
                    continue
                if not self._world.was_troubled(other.child, other.begin, attempt.begin):
                    self.complain(attempt.key, f"begins while it runs: {other} and {attempt}")

    def check_settled(self, delivery: Delivery) -> None:
        """A task of it needs nothing more: it is recorded, or the message set aside."""
        message = delivery.message
        if message is None:
            return
        done = self._world.memory.records.done
        handlers = self._world.app.route(message.name)
        missing = [each.name for each in handlers if each.record_id(message.id) not in done]
        if len(missing) >= delivery.open_tasks > 0 and not self._is_aside(message.body):
            names = " and ".join(missing)
            self.complain(message.key, f"{message.id} is settled before {names} is recorded")

    def check_given(self, child: Child, shards: list[int]) -> None:
        """What is given is not consumed any more, and nothing of it runs."""
        if BROKER not in child.cuts:
            consumed = self._world.broker.consumed_by(child.connection)
            for shard in shards:
                if shard_queue(SERVICE, child.generation, shard) in consumed:
                    self.complain(None, f"{child} gives shard {shard} and consumes it")
        for each in child.attempts():
            if each.shard in shards:
                self.complain(each.key, f"gives its shard while it runs: {each}")

    def _is_aside(self, body: bytes) -> bool:
        """Tell whether it was set aside, or comes again: out of a retry queue, say."""
        kept = (dead_letter_queue(SERVICE), parked_queue(SERVICE))
        found = self._world.broker.queues_with(body)
        return len(found) > 1 or any(name in kept for name in found)

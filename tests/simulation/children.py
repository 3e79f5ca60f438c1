"""A child process of a world: the real ``Child`` and ``Consumer``, driven turn by turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from random import Random
from typing import TYPE_CHECKING, Any

from simulation.pools import Pool, nowhere
from simulation.troubles import Process
from simulation.wires import End, Signals
from worker.consumer import Consumer
from worker.errors import QworkerError
from worker.resharding import Resharding
from worker.sharding.generations import Plan
from worker.supervisor import child as real
from worker.supervisor.control import EXIT_CODES, Boot, Fatal, Followed, Open, Stepped
from worker.supervisor.pipe import ControlClosed
from worker.supervisor.stepper import Stepper
from worker.task import Delivery

if TYPE_CHECKING:
    from simulation.ledger import Attempt
    from simulation.members import Member
    from simulation.world import World


class Stage(Enum):
    BOOTING = "boots"
    WAITING = "waits for the plan"
    RUNNING = "consumes"


class Watched(Consumer):
    """A consumer of which it is seen what it takes for settled."""

    child: Child

    def _settled(self, delivery: Delivery) -> None:
        self.child.world.ledger.check_settled(delivery)
        super()._settled(delivery)


class Steps(Stepper):
    """Takes its steps when the schedule says so, in no thread."""

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.waiting: deque[Callable[[], Followed | Stepped]] = deque()

    def _ask(self, step: Callable[[], Followed | Stepped]) -> None:
        self.waiting.append(step)

    def step(self, *args: Any) -> None:
        super().step(*args)

    def take_one(self) -> None:
        self._take(self.waiting.popleft())


class Child(Process):
    """A process that was spawned by a member's supervisor."""

    def __init__(self, world: World, parent: Member, pid: int, end: End) -> None:
        super().__init__(f"{parent.name}.{pid}", parent.name, pid)
        self.world = world
        self.parent = parent
        self.end = end
        self.stage = Stage.BOOTING
        self.pool: Pool | None = None
        self.consumer: Watched | None = None
        #: When the interpreter ends it, whatever it is at.
        self.hard_exit = float("inf")
        self.ran_at = world.clock()
        #: The last tick had something to do; and what of the broker it has seen.
        self._goes_on = True
        self._seen = 0, 0

    # -- what may happen next

    def turns(self) -> list[Callable[[], None]]:
        """Return what can be done of this process now."""
        found = [self.turn] if self._is_due() else []
        pool = self.pool
        if pool is not None:
            if pool.may_begin:
                found.append(pool.begin)
            found += [self._ending(each) for each in pool.ended(self.world.clock())]
        steps = getattr(self._real, "_stepper", None) if self.stage is Stage.RUNNING else None
        if steps is not None and steps.waiting:
            found.append(steps.take_one)
        return found

    def _is_due(self) -> bool:
        """Whether its main thread would wake up."""
        world, consumer = self.world, self.consumer
        now = world.clock()
        if self.end.readable or now >= self.hard_exit:
            return True
        if self.stage is not Stage.RUNNING or consumer is None:
            return False
        return (
            self._goes_on
            or consumer._again
            or bool(consumer._dispatcher.finished)
            or self.signals.readable
            or self._seen != world.broker.version()
            or now >= min(consumer._next_watch, consumer._next_beat)
            or now >= min(consumer.next_due, consumer._tenure.next_due)
            or now >= (consumer._ending.deadline or now + 1)
        )

    def turn(self) -> None:
        """Go on with its main thread."""
        self.ran_at = self.world.clock()
        if self.ran_at >= self.hard_exit:
            self.world.kill(self, "the interpreter's own end")
            return
        try:
            self._go_on()
        except (ControlClosed, real._EndedEarly):
            self.world.exit(self, 0)
        except QworkerError as error:
            self.end.send(Fatal(error.exit_code, str(error)))
            self.world.exit(self, error.exit_code)

    def _go_on(self) -> None:
        if self.stage is Stage.BOOTING:
            if isinstance(self.end.next(), Boot):
                self._real = real.Child(self.end)  # type: ignore[arg-type]  # the pipe's stand-in
                self._service = self.world.service(self)
                self._real._greet(self._service.terms)
                self.stage = Stage.WAITING
        elif self.stage is Stage.WAITING:
            told = self._real._next(self._service.look)
            if isinstance(told, Open):
                self._real._open(self._service, told)
                self.stage = Stage.RUNNING
        else:
            consumer = self.consumer
            assert consumer is not None
            self._goes_on = consumer.tick(0.5)
            self._seen = self.world.broker.version()
            if consumer.ended is not None:
                consumer.close()
                self._real._end(consumer.ended.name)
                self.world.exit(self, EXIT_CODES[consumer.ended.name])

    # -- what it is made of

    def make_consumer(self, plan: Plan, owner: bytes) -> Watched:
        world = self.world
        self.owner = owner
        self.consumer = consumer = Watched(
            self.parent.app,
            world.settings,
            plan=plan,
            owner=owner,
            store=world.store(),
            clock=world.clock,
            random=Random(self.pid),
            pools=(self._make_pool, nowhere),  # type: ignore[arg-type]
        )
        consumer.child = self
        tell = self._real._tell_given

        def given(shards: Iterable[int]) -> None:
            world.ledger.check_given(self, [*shards])
            tell([*shards])

        self._real._tell_given = given  # type: ignore[method-assign]
        return consumer

    def make_steps(self) -> Resharding:
        return Resharding(self.parent.app, self.world.settings, self.world.clock)

    def _make_pool(self, executor: Any, size: int, finished: Any, wake: Any) -> Pool:
        self.pool = Pool(self, executor, size, finished)
        return self.pool

    def _ending(self, each: Any) -> Callable[[], None]:
        pool = self.pool
        assert pool is not None
        return lambda: pool.end(each)

    # -- what can be seen of it

    @property
    def member_id(self) -> str:
        """The name of its supervisor in the lease store."""
        return self.parent.id

    @property
    def is_running(self) -> bool:
        return self.stage is Stage.RUNNING

    @property
    def signals(self) -> Signals:
        signals: Any = self._real._signals
        assert isinstance(signals, Signals)
        return signals

    @property
    def generation(self) -> int:
        """The generation that it consumes."""
        assert self.consumer is not None
        return self.consumer._link.topology.generation

    @property
    def connection(self) -> int:
        """The number that the broker gave to the connection by which it consumes; 0 for none."""
        inbound: Any = None if self.consumer is None else self.consumer._link._inbound
        return 0 if inbound is None else int(inbound.connection.connection.broker.presence.id)

    def attempts(self) -> list[Attempt]:
        """Return what runs in it."""
        return [] if self.pool is None else [each.attempt for each in self.pool.running]

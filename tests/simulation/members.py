"""A member of a world: the real ``Supervisor`` with its ``Keeper``, driven turn by turn."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from simulation.troubles import Process
from simulation.wires import End, Signals
from worker.errors import QworkerError
from worker.supervisor.course import Refused
from worker.supervisor.keeper import Keeper, News
from worker.supervisor.supervisor import Supervisor

if TYPE_CHECKING:
    from simulation.children import Child
    from simulation.world import World
    from worker import App

_KILLED = signal.SIGKILL
#: Seconds that its loop sleeps at most.
_INTERVAL = 0.25


class Rounds(Keeper):
    """A keeper without a thread: its rounds are made when the schedule says so."""

    member_of: Callable[[], Member]

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.next_at = float("inf")
        self._store: Any = None
        self.member_of().keeper = self

    def start(self) -> None:
        self.next_at = 0.0

    def close(self, timeout: float = 1.0) -> None:
        self._closed = True

    def is_due(self, now: float) -> bool:
        return not self._closed and (now >= self.next_at or self._poke.is_set())

    def turn(self, now: float) -> None:
        """Do what the thread does between two waits."""
        try:
            if self._store is None:
                self._store = self._open()
            self.next_at = now + self._turn(self._store)
        except QworkerError as error:
            self._closed = True
            self._report(News(refused=Refused(error.exit_code, str(error))))


class Member(Process):
    """A supervisor, as one machine has it."""

    def __init__(self, world: World, name: str, pid: int, app: App) -> None:
        super().__init__(name, name, pid)
        self.world = world
        #: The release that it runs.
        self.app = app
        self.keeper: Rounds | None = None
        #: The children that live, and those that ended and were not reaped, with their statuses.
        self.children: dict[int, Child] = {}
        self.zombies: deque[tuple[int, int]] = deque()
        self.ran_at = world.clock()
        self._supervisor = Supervisor({}, ())
        self._supervisor._tell = self._tell  # type: ignore[method-assign]  # it is asked too often
        #: How its program ended; None while it runs.
        self.exit_code: int | None = None

    @property
    def id(self) -> str:
        """Its name in the lease store."""
        return "" if self.keeper is None else self.keeper.member

    def turns(self) -> list[Callable[[], None]]:
        """Return what can be done of this process now."""
        keeper, now = self.keeper, self.world.clock()
        found = [self.turn] if self._is_due(now) else []
        if keeper is not None and keeper.is_due(now):
            found.append(self.round)
        return found

    def _is_due(self, now: float) -> bool:
        """Whether its loop would wake up."""
        supervisor = self._supervisor
        return (
            bool(self.zombies)
            or self._signals.readable
            or now >= self.ran_at + _INTERVAL
            or bool(self.keeper is not None and self.keeper._news)
            or any(child.end.peer.readable for child in self.children.values() if child.end.peer)
            or now >= supervisor._fleet.next_deadline()
        )

    @property
    def _signals(self) -> Signals:
        signals: Any = self._supervisor._signals
        assert isinstance(signals, Signals)
        return signals

    def _tell(self, now: float) -> None:
        """Publish the state, where somebody would hear of it: that it is the same costs much."""
        supervisor = self._supervisor
        told = supervisor._state.value, supervisor._pausing.carried_out()
        if now >= supervisor._facts_at or told != supervisor._told:
            Supervisor._tell(supervisor, now)

    def turn(self) -> None:
        """Go round in the supervisor's loop."""
        self.ran_at = self.world.clock()
        supervisor = self._supervisor
        if supervisor._over(self.ran_at):
            self.exit_code = supervisor._exit_code()
            supervisor.close()
            self.world.exit(self, self.exit_code)
        else:
            supervisor._turn(supervisor._wait())

    def round(self) -> None:
        """Talk to the lease store once."""
        assert self.keeper is not None
        self.keeper.turn(self.world.clock())

    def signal(self, number: int) -> None:
        """Send its supervisor a signal."""
        self._signals.send(number)

    def propose_shards(self, shards: int) -> bool:
        """Do what ``qworker reshard`` does, if that is possible now."""
        plan = self._supervisor._fleet.dealer.plan
        keeper = self.keeper
        if plan is None or plan.target is not None or keeper is None:
            return False
        keeper.write("plan", self._supervisor._fleet.dealer.version, plan.reshard(shards).dump())
        return True

    # -- the operating system, as its supervisor knows it

    def spawn(self, end: End) -> Child:
        child = self.world.spawn(self, end)
        self.children[child.pid] = child
        return child

    def ended(self, child: Child, status: int) -> None:
        """Its child ended: it is there to be reaped."""
        del self.children[child.pid]
        self.zombies.append((child.pid, status))

    def wait(self) -> tuple[int, int]:
        """Do what ``waitpid(-1, WNOHANG)`` does."""
        if self.zombies:
            return self.zombies.popleft()
        if not self.children:
            raise ChildProcessError
        return 0, 0

    def kill(self, pid: int, number: int) -> None:
        """Do what ``kill`` does."""
        child = self.children.get(pid)
        if child is not None and number == _KILLED:
            self.world.kill(child, f"by {self.name}")

"""What can befall the processes of a world, and for how long."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from simulation.children import Child
from simulation.members import Member
from simulation.seams import CLOCK
from simulation.troubles import BROKER, LEASES, STORE, Cut, Process
from simulation.world import Trouble, World
from worker.sharding.generations import Phase

#: Calls after which a doomed process dies, at most.
_LONGEST_DOOM = 25


@dataclass(frozen=True, slots=True)
class Menu:
    """Which incidents there are, the likely ones more often, and their measures."""

    names: Sequence[str] = ("doom", "doom", "doom", "kill", "connections")
    #: Seconds that a process may be paused, and cut off.
    pauses: Sequence[float] = (0.4, 1.0, 2.5, 5.0)
    cuts: Sequence[float] = (0.1, 0.5, 1.5, 4.0)
    #: How many shards there shall be, one after the other.
    reshards: Sequence[int] = ()
    #: How many members there may be at once.
    most_members: int = 1


class Incidents:
    """Makes the trouble of a menu."""

    def __init__(self, world: World, random: Random, menu: Menu) -> None:
        self._world = world
        self._random = random
        self._menu = menu
        self._reshards = [*menu.reshards]
        #: When what is under way ends, the earliest first, and how.
        self._ends: list[tuple[float, Callable[[], None]]] = []
        self._of_children: dict[str, Callable[[Child], None]] = {
            "doom": self._doom,
            "kill": lambda child: world.kill(child, "from outside"),
            "connections": world.lose_connections,
            "pause": lambda child: self._pause([child]),
            "cut": lambda child: self._cut(child, random.choice((STORE, BROKER))),
            "cut store": lambda child: self._cut(child, STORE),
            "term": self._end_in_order,
        }
        self._of_members: dict[str, Callable[[Member], None]] = {
            "doom member": self._doom,
            "kill member": self._kill_member,
            "pause member": self._pause_member,
            "cut member": lambda member: self._cut(member, LEASES),
            "join": self._join,
            "flicker": self._flicker,
            "leave": lambda member: self._signal(member, signal.SIGTERM),
            "reload": lambda member: self._signal(member, signal.SIGHUP),
            "reshard": self._reshard,
        }

    def happen(self) -> None:
        """Let something happen to somebody, if there is anybody."""
        world, name = self._world, self._random.choice(self._menu.names)
        if name in self._of_children:
            children = [p for p in world.processes.values() if isinstance(p, Child)]
            if children:
                self._of_children[name](self._random.choice(children))
        elif world.members:
            self._of_members[name](self._random.choice(world.members))

    @property
    def under_way(self) -> bool:
        """Whether there is a trouble that has not ended."""
        return bool(self._ends)

    def pass_on(self, now: float) -> None:
        """End what is to be over by now."""
        while self._ends and self._ends[0][0] <= now:
            self._ends.pop(0)[1]()

    def _doom(self, process: Process) -> None:
        process.doom = self._random.randint(1, _LONGEST_DOOM)
        process.dies_after = self._random.random() < 0.5
        self._world.note(process, "is doomed", process.doom, process.dies_after)

    def _kill_member(self, member: Member) -> None:
        """Kill a supervisor, with its children or without: those are orphans then."""
        if self._random.random() < 0.5:
            for child in [*member.children.values()]:
                self._world.kill(child, "with its machine")
        self._world.kill(member, "from outside")

    def _pause_member(self, member: Member) -> None:
        """Pause a supervisor, with its children or without."""
        all_of_it = self._random.random() < 0.5
        self._pause([member, *(member.children.values() if all_of_it else ())])

    def _pause(self, processes: Sequence[Process]) -> None:
        until = CLOCK.now + self._random.choice(self._menu.pauses)
        for process in processes:
            if not process.paused:
                self._end_at(until, self._waker(process, self._world.pause(process)))

    def _waker(self, process: Process, trouble: Trouble) -> Callable[[], None]:
        return lambda: self._world.wake(process, trouble)

    def _cut(self, process: Process, server: str, length: float | None = None) -> None:
        """Cut a process off from a server, for so long or for a while."""
        world = self._world
        if server in process.cuts:
            return
        process.cuts[server] = self._random.choice([*Cut])
        world.note(process, "is cut off from:", server, process.cuts[server].value)
        # Who does not reach the broker can tell the store of its effects all the same.
        trouble = world.blame("CUT", process) if server != BROKER else None
        since = CLOCK.now

        def mend() -> None:
            del process.cuts[server]
            world.note(process, "reaches again:", server)
            if server == BROKER:
                world.breaks.append((since, CLOCK.now))
            if trouble is not None and not process.dead:
                trouble.until = CLOCK.now

        if length is None:
            length = self._random.choice(self._menu.cuts)
        self._end_at(CLOCK.now + length, mend)

    def _flicker(self, member: Member) -> None:
        """Cut a supervisor off from the lease store; its processes lose the broker, but shorter.

        While a change of the number of shards comes to its end.
        """
        if self._world.plan().phase not in (Phase.DRAIN, Phase.REMOVE):
            return
        length = self._random.choice(self._menu.cuts)
        self._cut(member, LEASES, length)
        lost_at = CLOCK.now + length * self._random.uniform(0.5, 1.0)

        def lose() -> None:
            for child in member.children.values():
                self._world.lose_connections(child)

        self._end_at(lost_at, lose)

    def _join(self, _: Member) -> None:
        if len(self._world.members) < self._menu.most_members:
            self._world.join()

    def _signal(self, member: Member, number: int) -> None:
        self._world.note(member, "gets", signal.Signals(number).name)
        member.signal(number)

    def _end_in_order(self, child: Child) -> None:
        if child.is_running:
            self._world.note(child, "gets SIGTERM")
            child.signals.send(signal.SIGTERM)

    def _reshard(self, member: Member) -> None:
        if self._reshards and member.propose_shards(self._reshards[0]):
            self._world.note("reshard to", self._reshards.pop(0))

    def _end_at(self, when: float, end: Callable[[], None]) -> None:
        self._ends.append((when, end))
        self._ends.sort(key=lambda each: each[0])

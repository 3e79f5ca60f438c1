"""Lanes: one FIFO a key of a shard, run one at a time. Pure.

A task is a message at one handler. The lane of a key holds its tasks in the order of arrival; a
keyless message is a lane of its own. ``take`` hands out *runs*: consecutive tasks of one lane, to
be run one after the other by one thread. Until the run comes back by ``finish``, nothing else of
that lane is handed out. So no two handlers of one key of a shard ever run at the same time in this
process, and the tasks of one (shard, key, handler) run in the order of arrival.

A lane is of one shard, because shards come and go: what waits of one that is given up is forgotten,
and nothing else. A key that has messages in two shards has two lanes, which know nothing of each
other, as they would in two processes.

A task that must run again *holds* its handler in its lane: it goes back to the front, and the
lane's tasks of that handler wait until ``resume``; those of other handlers go on. One that has to
wait for what comes behind it holds itself alone. A handler that
is paused, or has an outage, is *blocked* everywhere; here too other handlers go on. In an outage it
gets one probe at a time. A lane that is *stopped* hands out nothing at all, and what must not run
any more is *withdrawn* from it.

Lanes that are ready take turns, shard by shard, so that a busy shard or key never starves the
others.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence


class Work(Protocol):
    """What a task must tell."""

    @property
    def handler_name(self) -> str:
        """The name of its handler."""

    @property
    def is_async(self) -> bool:
        """Whether it runs in the event loop; a run is of one kind."""


T = TypeVar("T", bound=Work)


class Lane(Generic[T]):
    """The tasks of one key of a shard that wait. Changed by :class:`Lanes` alone."""

    __slots__ = (
        "held", "left", "place", "queued", "running", "settling", "shard", "stopped", "tasks",
    )  # fmt: skip

    def __init__(self, shard: int, place: tuple[int, Hashable] | None) -> None:
        self.shard = shard
        #: The shard and the key; None where there is no key.
        self.place = place
        self.tasks: deque[T] = deque()
        #: A run of it is out.
        self.running = False
        #: It stands in a ready queue.
        self.queued = False
        #: Handlers whose next task must not run yet, and tasks that must not, with the number of
        #: reasons.
        self.held: dict[object, int] = {}
        #: How many of its tasks have come back and are not settled yet: something of them, a child
        #: say, is on its way.
        self.settling = 0
        #: It hands out nothing.
        self.stopped = False
        #: What goes back undone while its run is out, or was forgotten meanwhile.
        self.left: list[T] = []


class Run(Generic[T]):
    """Consecutive tasks of one lane, to be run in order by one thread or coroutine."""

    __slots__ = ("kept", "lane", "outcomes", "passed", "seconds", "taken", "tasks")

    def __init__(self, lane: Lane[T], tasks: list[T]) -> None:
        self.lane = lane
        self.tasks = tasks
        #: One outcome a task, filled in by the pool.
        self.outcomes: list[object] = []
        #: How long the pool was at it.
        self.seconds = 0.0
        #: How many outcomes were looked at before the run was finished: acted on, but for those of
        #: tasks that did not run and go back with it.
        self.taken = 0
        self.passed: list[tuple[T, object]] = []
        #: Later tasks of the lane that were claimed for, but must wait for these.
        self.kept: list[T] = []


class Lanes(Generic[T]):
    """All lanes of one consumer. Used by its I/O thread only."""

    def __init__(self) -> None:
        self._lanes: dict[tuple[int, Hashable], Lane[T]] = {}  # by place
        self._ready: dict[int, deque[Lane[T]]] = {}
        self._turns: deque[int] = deque()  # shards with ready lanes, in turn
        self._blocked: dict[str, dict[Lane[T], None]] = {}  # handler -> lanes that wait for it
        self._reasons: dict[str, set[str]] = {}  # handler -> why it is blocked
        self._out: set[Lane[T]] = set()  # lanes whose run is out
        self._held: set[Lane[T]] = set()  # lanes with a hold
        self.waiting = 0  # tasks in lanes, not handed out

    def __len__(self) -> int:
        """Return how many keyed lanes hold tasks or have a run out."""
        return len(self._lanes)

    @property
    def held(self) -> Collection[Lane[T]]:
        """The lanes of which a handler waits for something, a retry say."""
        return self._held

    @property
    def has_ready(self) -> bool:
        """Whether ``take`` may have something to hand out."""
        return bool(self._turns)

    def is_idle(self, key: Hashable, shard: int) -> bool:
        """Tell whether nothing of ``key`` in ``shard`` runs, or waits but for what comes behind."""
        lane = self._lanes.get((shard, key))
        return lane is None or (not lane.running and lane.held.keys() == {*lane.tasks})

    def find(self, key: Hashable, shard: int) -> Lane[T] | None:
        """Return the lane of ``key`` in ``shard``; None where nothing of it waits or runs."""
        return self._lanes.get((shard, key))

    def add(self, task: T, key: Hashable | None, shard: int) -> None:
        """Append ``task`` to the lane of ``key`` in ``shard``; None is a lane of its own."""
        if key is None:
            lane: Lane[T] = Lane(shard, None)
        else:
            place = shard, key
            lane = self._lanes.get(place) or self._lanes.setdefault(place, Lane(shard, place))
        lane.tasks.append(task)
        self.waiting += 1
        if not lane.running and not lane.queued:
            self._queue(lane)

    def add_together(self, tasks: Sequence[T], key: Hashable | None, shard: int) -> None:
        """Append several tasks (one message at several handlers) to one lane."""
        if key is not None or len(tasks) == 1:
            for task in tasks:
                self.add(task, key, shard)
            return
        lane: Lane[T] = Lane(shard, None)
        lane.tasks.extend(tasks)
        self.waiting += len(tasks)
        self._queue(lane)

    def take(self, room: int, longest: int) -> list[Run[T]]:
        """Hand out runs of together at most ``room`` tasks, none longer than ``longest``."""
        runs: list[Run[T]] = []
        turns, ready = self._turns, self._ready
        while room > 0 and turns:
            shard = turns[0]
            lanes = ready[shard]
            lane = lanes.popleft()
            lane.queued = False
            if lanes:
                turns.rotate(-1)
            else:
                turns.popleft()
                del ready[shard]
            if lane.running or lane.stopped:
                continue  # one task of it was taken out of turn; finish or go_on brings it back
            tasks = self._pick(lane, min(room, longest))
            if not tasks:
                continue  # all of it is held or blocked; resume or unblock brings it back
            lane.running = True
            self._out.add(lane)
            room -= len(tasks)
            self.waiting -= len(tasks)
            runs.append(Run(lane, tasks))
        return runs

    def is_next(self, task: T, lane: Lane[T]) -> bool:
        """Tell whether ``task`` is the one of its handler that may go next in ``lane``."""
        name = task.handler_name
        held = lane.held
        first = next((t for t in lane.tasks if t.handler_name == name and t not in held), None)
        return first is task and name not in held

    def take_one(self, task: T, lane: Lane[T]) -> Run[T] | None:
        """Hand out just ``task`` of ``lane``, held or not; None where a run of it is out."""
        if lane.running or lane.stopped or task not in lane.tasks:
            return None
        lane.tasks.remove(task)
        lane.running = True
        self._out.add(lane)
        self.waiting -= 1
        return Run(lane, [task])

    def finish(self, lane: Lane[T], unfinished: Iterable[T] = ()) -> None:
        """Take a run back. ``unfinished`` tasks return to the front, in their order."""
        rest = list(unfinished)
        lane.tasks.extendleft(reversed(rest))
        self.waiting += len(rest)
        lane.running = False
        lane.left.clear()
        self._out.discard(lane)
        if lane.tasks:
            if not lane.queued:
                self._queue(lane)
        elif not lane.held:
            self._drop(lane)

    def hold(self, lane: Lane[T], what: str | T) -> None:
        """Let the lane's tasks of a handler, or one task, wait for as many ``resume`` as holds."""
        lane.held[what] = lane.held.get(what, 0) + 1
        self._held.add(lane)

    def resume(self, lane: Lane[T], what: str | T) -> None:
        """End one hold."""
        holds = lane.held.pop(what, 0) - 1
        if holds > 0:
            lane.held[what] = holds
            return
        if not lane.held:
            self._held.discard(lane)
        if lane.tasks and not lane.running and not lane.queued:
            self._queue(lane)
        elif not (lane.tasks or lane.running or lane.held):
            self._drop(lane)

    def stop(self, lane: Lane[T]) -> None:
        """Hand out nothing of ``lane`` until ``go_on``."""
        lane.stopped = True

    def go_on(self, lane: Lane[T]) -> None:
        """Hand out what may run of ``lane`` again."""
        lane.stopped = False
        if lane.tasks and not lane.running and not lane.queued:
            self._queue(lane)

    def withdraw(self, lane: Lane[T], is_unwanted: Callable[[T], bool]) -> list[T]:
        """Take what is unwanted out of a lane of which no run is out, held or not; return it.

        A lane of which nothing is left is forgotten with its holds: whatever ends them later finds
        nothing, since what arrives anew has another lane.
        """
        unwanted = [task for task in lane.tasks if is_unwanted(task)]
        if not unwanted:
            return []
        wanted = [task for task in lane.tasks if not is_unwanted(task)]
        self.waiting -= len(unwanted)
        lane.tasks.clear()
        lane.tasks.extend(wanted)
        for task in unwanted:
            lane.held.pop(task, None)
        if not lane.held:
            self._held.discard(lane)
        if not wanted:
            self._forget(lane)
            self._drop(lane)
        return unwanted

    def block(self, handler: str, reason: str = "outage") -> None:
        """Hand out nothing for ``handler`` but probes."""
        self._reasons.setdefault(handler, set()).add(reason)
        self._blocked.setdefault(handler, {})

    def unblock(self, handler: str, reason: str = "outage") -> None:
        """End a reason; without any, everything for ``handler`` is handed out again."""
        reasons = self._reasons.get(handler, set())
        reasons.discard(reason)
        if reasons:
            return
        self._reasons.pop(handler, None)
        for lane in self._blocked.pop(handler, ()):
            if lane.tasks and not lane.running and not lane.queued:
                self._queue(lane)

    def take_probe(self, handler: str, rank: Callable[[T], int] = lambda _: 0) -> Run[T] | None:
        """Hand out one task of a blocked handler; None where none waits.

        It is the one that ranks highest of those that are first in their lanes, and of equals the
        one that waits longest.
        """
        waiting = self._blocked.get(handler, {})
        best: tuple[T, Lane[T]] | None = None
        for lane in [*waiting]:
            of_it = (task for task in lane.tasks if task.handler_name == handler)
            task = next((task for task in of_it if task not in lane.held), None)
            if task is None or lane.running or lane.stopped or handler in lane.held:
                del waiting[lane]  # it comes back by finish, go_on or resume
            elif best is None or rank(task) > rank(best[0]):
                best = task, lane
        if best is None:
            return None
        del waiting[best[1]]
        return self.take_one(*best)

    def waiting_for(self, handler: str) -> Iterator[tuple[Lane[T], list[T]]]:
        """Yield each lane with its tasks of ``handler`` that are not handed out, if it has any."""
        lanes = {*self._lanes.values(), *self._out, *self._held}
        lanes.update(*self._ready.values(), *self._blocked.values())  # keyless ones too
        for lane in lanes:
            tasks = [task for task in lane.tasks if task.handler_name == handler]
            if tasks:
                yield lane, tasks

    def clear(self) -> int:
        """Forget every task that is not handed out (their deliveries died); return how many.

        Lanes whose run is still out stay, so that what arrives anew waits for it.
        """
        dropped = self.waiting
        self._ready.clear()
        self._turns.clear()
        for waiting in self._blocked.values():
            waiting.clear()
        self._held.clear()
        for lane in {*self._lanes.values(), *self._out}:  # keyless ones are known while they run
            self._forget(lane)
            lane.queued = False
        self._lanes = {place: lane for place, lane in self._lanes.items() if lane.running}
        self.waiting = 0
        return dropped

    def clear_shard(self, shard: int) -> None:
        """Forget the tasks of one shard that are not handed out, as ``clear`` does with all."""
        lanes = {*self._lanes.values(), *self._out, *self._held}
        lanes.update(*self._blocked.values())
        if ready := self._ready.pop(shard, None):
            self._turns.remove(shard)
            lanes.update(ready)
        for lane in lanes:
            if lane.shard != shard:
                continue
            self.waiting -= len(lane.tasks)
            self._forget(lane)
            lane.queued = False
            if not lane.running:
                self._drop(lane)

    def _forget(self, lane: Lane[T]) -> None:
        """Forget the tasks of ``lane`` that are not handed out, and all that they wait for."""
        if lane.running:
            lane.left.extend(lane.tasks)
        lane.tasks.clear()
        lane.held.clear()
        lane.stopped = False
        self._held.discard(lane)
        for waiting in self._blocked.values():
            waiting.pop(lane, None)

    def _drop(self, lane: Lane[T]) -> None:
        """Forget a lane with nothing in it, unless its place is another's by now."""
        place = lane.place
        if place is not None and self._lanes.get(place) is lane:
            del self._lanes[place]

    def _queue(self, lane: Lane[T]) -> None:
        lane.queued = True
        lanes = self._ready.get(lane.shard)
        if lanes is None:
            self._ready[lane.shard] = deque((lane,))
            self._turns.append(lane.shard)
        else:
            lanes.append(lane)

    def _pick(self, lane: Lane[T], limit: int) -> list[T]:
        """Remove from ``lane`` the tasks of its next run.

        Costs a step for each of them, and for each before the last of them that must not run yet:
        what waits behind is left as it is.
        """
        tasks = lane.tasks
        if not tasks:
            return []
        if not lane.held and not self._blocked:
            first = tasks.popleft()
            picked = [first]
            is_async = first.is_async
            while len(picked) < limit and tasks and tasks[0].is_async is is_async:
                picked.append(tasks.popleft())
            return picked
        picked = []
        kept: list[T] = []
        while tasks and len(picked) < limit:
            task = tasks.popleft()
            name = task.handler_name
            if name in lane.held or task in lane.held:
                kept.append(task)
            elif name in self._blocked:
                self._blocked[name][lane] = None
                kept.append(task)
            elif picked and picked[0].is_async is not task.is_async:
                kept.append(task)
                break
            else:
                picked.append(task)
        kept.reverse()
        tasks.extendleft(kept)
        return picked

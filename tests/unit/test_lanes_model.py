"""Whatever happens to lanes, in any order: nothing is lost, nothing overtakes, nothing overlaps.

A state machine drives real lanes through arrivals, failures, outages, suspects and lost
connections, and a model of a few lists says what may be handed out. A second one gives shards up
and takes them again. A key may have messages in several shards: its order is that within each.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.sharding.lanes import Lane, Lanes, Run

#: Each handler is of one kind, as in an app.
HANDLERS = {"plain": False, "other": False, "coroutine": True}
KEYS = ("a", "b", "c")
ALL = 10_000

#: A key of a shard, and a handler.
Line = tuple[tuple[int, Hashable], str]

handlers = st.sampled_from(sorted(HANDLERS))


@dataclass(eq=False)
class Job:
    """A message at a handler. ``place`` runs one at a time, ``line`` must stay in order."""

    number: int
    handler_name: str
    place: tuple[int, Hashable]
    is_async: bool = field(init=False)

    def __post_init__(self) -> None:
        self.is_async = HANDLERS[self.handler_name]

    @property
    def line(self) -> Line:
        return self.place, self.handler_name

    def __repr__(self) -> str:
        return f"{self.number}@{self.handler_name}/{self.place}"


class LanesMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.lanes: Lanes[Job] = Lanes()
        self.numbers = iter(range(ALL))
        #: What waits, in the order in which it must be handed out, by line.
        self.waiting: dict[Line, list[Job]] = {}
        self.out: list[Run[Job]] = []
        self.dead: set[Job] = set()
        #: Lanes by line, as often as these are held, suspects' own holds apart.
        self.holds: list[tuple[Line, Lane[Job]]] = []
        self.suspects: list[tuple[Job, Lane[Job]]] = []
        self.blocked: set[str] = set()

    # -- what happens ------------------------------------------------------------------------------

    @rule(
        key=st.sampled_from((*KEYS, None)),
        names=st.lists(handlers, min_size=1, max_size=3, unique=True),
        shard=st.integers(0, 2),
    )
    def a_message_arrives(self, key: str | None, names: list[str], shard: int) -> None:
        self.add(key, names, shard)

    def add(self, key: str | None, names: list[str], shard: int) -> None:
        number = next(self.numbers)
        place = shard, f"only {number}" if key is None else key
        jobs = [Job(number, name, place) for name in names]
        for job in jobs:
            self.waiting.setdefault(job.line, []).append(job)
        self.lanes.add_together(jobs, key, shard)

    @rule(room=st.integers(1, 8), longest=st.integers(1, 4))
    def runs_are_taken(self, room: int, longest: int) -> None:
        runs = self.lanes.take(room, longest)
        assert sum(len(run.tasks) for run in runs) <= room
        for run in runs:
            assert 1 <= len(run.tasks) <= longest
            assert all(job.handler_name not in self.blocked for job in run.tasks)
            assert all(job.line not in self.held for job in run.tasks)
            self.check_handed_out(run)

    @precondition(lambda self: self.blocked)
    @rule(data=st.data())
    def a_blocked_handler_is_probed(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.blocked)))
        sign = data.draw(st.sampled_from((-1, 0, 1)))
        probe = self.lanes.take_probe(name, lambda job: sign * job.number)
        if probe is not None:
            (job,) = probe.tasks
            assert job.handler_name == name
            assert job.line not in self.held
            self.check_handed_out(probe)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def a_run_comes_back(self, data: st.DataObject) -> None:
        """All of it is done, or one failed: it and what is behind it must run (again)."""
        run = self.out.pop(data.draw(st.integers(0, len(self.out) - 1)))
        done = data.draw(st.integers(0, len(run.tasks)))
        rest = [job for job in run.tasks[done:] if job not in self.dead]
        failed = rest[0] if rest else None
        if failed is not None and data.draw(st.booleans()):
            self.lanes.hold(run.lane, failed.handler_name)
            if data.draw(st.booleans()):
                self.suspects.append((failed, run.lane))
            else:
                self.holds.append((failed.line, run.lane))
        for job in reversed(rest):
            self.waiting.setdefault(job.line, []).insert(0, job)
        self.lanes.finish(run.lane, rest)

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def a_line_of_a_run_is_held_for_another_reason(self, data: st.DataObject) -> None:
        run = data.draw(st.sampled_from(self.out))
        job = data.draw(st.sampled_from(run.tasks))
        if job not in self.dead:
            self.lanes.hold(run.lane, job.handler_name)
            self.holds.append((job.line, run.lane))

    @precondition(lambda self: self.holds)
    @rule(data=st.data())
    def a_hold_ends(self, data: st.DataObject) -> None:
        line, lane = self.holds.pop(data.draw(st.integers(0, len(self.holds) - 1)))
        self.lanes.resume(lane, line[1])

    @precondition(lambda self: self.suspects)
    @rule()
    def a_suspect_runs_alone(self) -> None:
        job, lane = self.suspects.pop(0)
        self.lanes.resume(lane, job.handler_name)
        waiting = self.waiting.get(job.line, [])
        is_next = bool(waiting) and waiting[0] is job and job.line not in self.held
        assert self.lanes.is_next(job, lane) is is_next
        run = self.lanes.take_one(job, lane) if is_next else None
        if run is not None:
            assert run.tasks == [job]
            self.check_handed_out(run)

    @rule(name=handlers)
    def an_outage_begins(self, name: str) -> None:
        self.blocked.add(name)
        self.lanes.block(name)

    @rule(name=handlers)
    def an_outage_ends(self, name: str) -> None:
        self.blocked.discard(name)
        self.lanes.unblock(name)

    @rule()
    def the_connection_is_lost(self) -> None:
        assert self.lanes.clear() == self.count_waiting()
        self.waiting.clear()
        self.dead.update(job for run in self.out for job in run.tasks)
        self.holds.clear()
        self.suspects.clear()

    # -- what must hold ----------------------------------------------------------------------------

    def check_handed_out(self, run: Run[Job]) -> None:
        assert len({job.is_async for job in run.tasks}) == 1, "a run goes to one pool"
        assert {job.place for job in run.tasks} == {run.tasks[0].place}, "a run is of one lane"
        assert run.lane.shard == run.tasks[0].place[0]
        busy = {job.place for other in self.out for job in other.tasks}
        assert run.tasks[0].place not in busy, "two runs of one key at a time"
        for job in run.tasks:
            assert self.waiting[job.line].pop(0) is job, f"{job} overtook another of its line"
        self.out.append(run)

    @property
    def held(self) -> set[Line]:
        """What must not be handed out: each for as long as one of its reasons lasts."""
        return {line for line, _ in self.holds} | {job.line for job, _ in self.suspects}

    def count_waiting(self) -> int:
        return sum(len(jobs) for jobs in self.waiting.values())

    @invariant()
    def the_count_of_what_waits_is_right(self) -> None:
        assert self.lanes.waiting == self.count_waiting()

    @invariant()
    def all_that_waits_for_a_handler_is_found(self) -> None:
        for name in HANDLERS:
            found = {job for _, jobs in self.lanes.waiting_for(name) for job in jobs}
            waiting = [
                job for line, jobs in self.waiting.items() if line[1] == name for job in jobs
            ]
            assert found == set(waiting)

    def teardown(self) -> None:
        """Once every fault ends, everything that waits is handed out: nothing was lost."""
        for line, lane in (*self.holds, *((job.line, lane) for job, lane in self.suspects)):
            self.lanes.resume(lane, line[1])
        self.holds.clear()
        self.suspects.clear()
        for name in sorted(self.blocked):
            self.an_outage_ends(name)
        while True:
            for run in self.out:
                self.lanes.finish(run.lane)
            self.out.clear()
            runs = self.lanes.take(ALL, ALL)
            if not runs:
                break
            for run in runs:
                self.check_handed_out(run)
        assert self.count_waiting() == 0
        assert len(self.lanes) == 0, "an idle key leaves nothing behind"


class SharedLanesMachine(LanesMachine):
    """Shards are given up, and taken again when nothing of them is out."""

    def __init__(self) -> None:
        super().__init__()
        self.given: set[int] = set()
        #: Ends of holds that come when their lane is long forgotten.
        self.late: list[tuple[str, Lane[Job]]] = []

    @rule(
        key=st.sampled_from((*KEYS, None)),
        names=st.lists(handlers, min_size=1, max_size=3, unique=True),
        shard=st.integers(0, 2),
    )
    def a_message_arrives(self, key: str | None, names: list[str], shard: int) -> None:
        if any(run.lane.shard == shard for run in self.out) and shard in self.given:
            return  # it is not taken again before that
        self.given.discard(shard)
        self.add(key, names, shard)

    @rule(shard=st.integers(0, 2))
    def a_shard_is_given_up(self, shard: int) -> None:
        self.given.add(shard)
        self.lanes.clear_shard(shard)
        for line in [line for line in self.waiting if line[0][0] == shard]:
            del self.waiting[line]
        gone = [run for run in self.out if run.lane.shard == shard]
        self.dead.update(job for run in gone for job in run.tasks)
        self.late += [(line[1], lane) for line, lane in self.holds if lane.shard == shard]
        self.late += [(j.handler_name, lane) for j, lane in self.suspects if lane.shard == shard]
        self.holds = [hold for hold in self.holds if hold[1].shard != shard]
        self.suspects = [each for each in self.suspects if each[1].shard != shard]

    @precondition(lambda self: self.late)
    @rule(data=st.data())
    def a_hold_ends_late(self, data: st.DataObject) -> None:
        name, lane = self.late.pop(data.draw(st.integers(0, len(self.late) - 1)))
        self.lanes.resume(lane, name)


for machine in (LanesMachine, SharedLanesMachine):
    machine.TestCase.settings = settings(
        max_examples=150, stateful_step_count=60, deadline=None, derandomize=True
    )
TestLanes = LanesMachine.TestCase
TestSharedLanes = SharedLanesMachine.TestCase

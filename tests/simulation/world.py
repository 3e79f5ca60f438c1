"""A world: members with their children, the servers, a publisher, and what happens to them."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

from simulation.children import Child
from simulation.crashes import Crashes
from simulation.ledger import SERVICE, Attempt, Ledger
from simulation.members import Member
from simulation.moments import TTL
from simulation.seams import CLOCK, Here
from simulation.servers import NAME, Leases, Lives, Store
from simulation.service import (
    EVENT,
    FALLIBLE,
    FOLLOWER,
    KILLER,
    Post,
    message_of,
    service_of,
)
from simulation.shapes import Shape
from simulation.troubles import Killed, Process, Seams
from simulation.wires import End
from worker import App
from worker.dedup.base import StoreOptions
from worker.dedup.memory import Memory
from worker.handler import Handler
from worker.leases.base import LeaseOptions
from worker.parking import ALL_KNOWN
from worker.sharding.generations import PLAN, Generation, Plan, lease_of
from worker.supervisor.child import Service
from worker.supervisor.control import EXIT_CODES, Terms
from worker.supervisor.service import _look
from worker.topology import parked_queue, shard_queue
from worker.transport import memory, sqlite
from worker.transport.capabilities import connect


@dataclass(slots=True)
class Trouble:
    """What was done to a process of a member; to its supervisor where ``pids`` is None."""

    kind: str
    member: str
    pids: frozenset[int] | None
    since: float
    until: float = math.inf

    def struck(self, child: Child, since: float, until: float) -> bool:
        """Tell whether it befell this very process in that time."""
        theirs = self.pids is not None and child.pid in self.pids
        return theirs and self.since <= until and since <= self.until


class World:
    """Made anew for each schedule, inside of ``seams.in_place()``."""

    def __init__(self, random: Random, shape: Shape) -> None:
        CLOCK.reset()
        Here.world = self
        self.clock = CLOCK.monotonic
        self.random = random
        self.shape = shape
        self.trace: list[str] = []
        self.seams = Seams(random, self.kill)
        self.seams.trace = self.trace
        Lives.seams = self.seams
        made = service_of(shape)
        self.apps = made.apps
        self.settings = replace(
            made.settings,
            concurrency=random.choice(shape.concurrency),
            prefetch=shape.prefetch,
            crash_limit=shape.crash_limit,
        )
        #: The seconds that claims live, and connections that the broker does not hear.
        self.claim_ttl = random.choice((TTL, TTL, 5.0))
        sqlite._LEASE = random.choice((TTL, 6.0))
        self.settings = replace(self.settings, claim_ttl=self.claim_ttl)
        self.broker = made.broker.copy(self.seams)
        memory._databases[NAME] = self.broker  # type: ignore[assignment]  # what it takes for its own
        self.memory = Memory()
        self.memory.parked[SERVICE] = {ALL_KNOWN: 1}
        self.leases = Leases(self, LeaseOptions(shape.lease_ttl, 1.0))
        plan = Plan(Generation(1, shape.shards), single_active=shape.single_active)
        self.leases.write(SERVICE, PLAN, 0, plan.dump())
        self.ledger = Ledger(self)
        self.crashes = Crashes(self)
        #: What handlers write to, where their effects are transactions.
        self.database = sqlite3.connect(":memory:")
        self._hearing = ExitStack()
        for app in self.apps:
            self._hearing.enter_context(app.telemetry.subscribe(self.ledger.hear))
        self.members: list[Member] = []
        #: Everything that runs, in the order of its start.
        self.processes: dict[int, Process] = {}
        self.troubles: list[Trouble] = []
        self.offered: Any = None
        #: All that there is to publish, and that handlers will, by id.
        self.posts: dict[str, Post] = {}
        #: What was published and confirmed; and what of it has children: these.
        self.confirmed: list[Post] = []
        self.children: list[Post] = []
        #: What was published more than once, or may come twice since a connection was lost.
        self.published_again: set[str] = set()
        self.published_before: set[str] = set()
        self.breaks: list[tuple[float, float]] = []
        self._parents: dict[bytes, Post] = {}
        self._known: dict[str, list[tuple[str, bytes]]] = {}
        self._numbers = 0
        #: The members that run the newest release.
        self._newer: set[int] = set()
        if shape.releases > 1:
            self._newer.add(random.randint(1, shape.members))
        self._channel: Any = connect(self.settings.broker, heartbeat=0, timeout=1, name="publisher")
        self._publisher: Any = self._channel.channel()

    def close(self) -> None:
        self._hearing.close()
        del memory._databases[NAME]
        self.broker.forget()
        self.database.close()

    def note(self, *words: object) -> None:
        self.trace.append(f"{CLOCK.now:.3f} " + " ".join(map(str, words)))

    def unique(self) -> int:
        """Return a number that no process had before: for owners, members and pids."""
        self._numbers += 1
        return self._numbers

    # -- processes

    def join(self) -> Member:
        """Start a supervisor on a machine of its own."""
        number = self.unique()
        member = Member(self, f"m{number}", number, self.apps[number in self._newer])
        self.members.append(member)
        self.processes[member.pid] = member
        self.note(member, "joins")
        return member

    def spawn(self, parent: Member, end: End) -> Child:
        child = Child(self, parent, self.unique(), end)
        self.processes[child.pid] = child
        self.note(child, "is spawned")
        return child

    def act(self, process: Process, turn: Callable[[], None]) -> None:
        """Let a process do something; it may die of it."""
        self.seams.running = process
        try:
            turn()
        except Killed:
            pass
        finally:
            self.seams.running = None

    def kill(self, process: Process, how: str, culprit: str = "") -> None:
        """End a process as kill -9 does; ``culprit`` is the message that did it, if one did."""
        self.note(process, "is killed", how)
        self.blame("KILL", process)
        self._gone(process, 9, culprit)

    def kills(self, attempt: Attempt) -> bool:
        """Tell whether a handler that comes to its end ends its process."""
        return attempt.handler == FALLIBLE and KILLER in self.posts[attempt.id].plan

    def exit(self, process: Process, code: int) -> None:
        """A process ended by itself."""
        self.note(process, "exits", code)
        if code == EXIT_CODES["DRAINED"]:
            self.ledger.check_drained(process)
        elif process.attempts():
            self.blame("KILL", process)  # it abandoned what runs, as it was told to
        self._gone(process, code << 8)

    def _gone(self, process: Process, status: int, culprit: str = "") -> None:
        process.dead = True
        if isinstance(process, Child):
            self.crashes.note(process, culprit)
        del self.processes[process.pid]
        self.broker.end_connections(process.pid)
        if isinstance(process, Child):
            process.end.close()
            if not process.parent.dead:
                process.parent.ended(process, status)
        elif isinstance(process, Member):
            self.members.remove(process)
            for child in process.children.values():
                if child.end.peer is not None:
                    child.end.peer.close()

    def blame(self, kind: str, process: Process) -> Trouble:
        pids = None if isinstance(process, Member) else frozenset({process.pid})
        trouble = Trouble(kind, process.member, pids, CLOCK.now)
        self.troubles.append(trouble)
        return trouble

    def was_troubled(self, child: Child, since: float, until: float) -> bool:
        """Tell whether something kept a process in that time from telling what it did."""
        return any(trouble.struck(child, since, until) for trouble in self.troubles)

    def was_held_up(self, child: Child, since: float) -> bool:
        """Tell whether a process, or its supervisor, could not go on all the while since then."""
        return any(
            trouble.until >= since and trouble.pids in (None, frozenset({child.pid}))
            for trouble in self.troubles
            if trouble.member == child.member
        )

    def was_killed(self, child: Child, since: float) -> bool:
        """Tell whether a process died then or later, of what it is not to blame for."""
        kills = (trouble for trouble in self.troubles if trouble.kind == "KILL")
        return any(trouble.struck(child, since, math.inf) for trouble in kills)

    def pause(self, process: Process) -> Trouble:
        """Stop a process, until ``Trouble.until`` is set by :meth:`wake`."""
        self.note(process, "is paused")
        process.paused = True
        return self.blame("PAUSE", process)

    def wake(self, process: Process, trouble: Trouble) -> None:
        """Let it go on. What begins from here on was not paused."""
        self.note(process, "goes on")
        process.paused = False
        if not process.dead:
            trouble.until = math.nextafter(CLOCK.now, 0.0)

    def lose_connections(self, process: Process) -> None:
        """The broker's connections of a process end; it finds out."""
        self.note(process, "loses its connections")
        self.breaks.append((CLOCK.now, CLOCK.now))
        self.broker.end_connections(process.pid)

    # -- the service

    @property
    def app(self) -> App:
        """The handlers, which all releases have."""
        return self.apps[0]

    def store(self) -> Store:
        options = StoreOptions(self.claim_ttl, 3600.0)
        return Store(self, options, self.memory)

    def service(self, child: Child) -> Service:
        """Return what a child makes of the app."""
        terms = Terms(
            service=SERVICE,
            queues=SERVICE,
            shards=0,
            processes=self.shape.processes,
            most_processes=8,
            drain_timeout=3.0,
            watchdog=4.0,
            connect_timeout=0.1,
            lease_ttl=self.shape.lease_ttl,
            lease_timeout=0.5,
            single_active=self.shape.single_active,
        )
        look = partial(_look, child.parent.app, self.settings)
        return Service(terms, child.make_consumer, child.make_steps(), look)

    def duration(self) -> float:
        return self.random.choice(self.shape.durations)

    def member_of(self, id_: str) -> str:
        """Return which supervisor has this name in the lease store; the name itself of none."""
        return next((m.name for m in self.members if m.id == id_), id_ or "nobody")

    def named(self, record: bytes) -> tuple[str, str]:
        """Return the message and the handler of a record."""
        for name, handler in self.app.handlers.items():
            for id_, known in self._records(handler):
                if known == record:
                    return id_, name
        return record.hex(), "an unknown handler"

    def lease_of(self, generation: int, shard: int) -> str:
        """Return the name of the lease on a shard: that of all of them, where there is one."""
        if self.shape.single_active:
            return Generation(generation, self.shape.shards).lease
        return lease_of(generation, shard)

    @property
    def all_known(self) -> bool:
        """Whether the service knows of every supervisor."""
        known = self.leases.look(SERVICE).members
        return all(member.id in known for member in self.members)

    def plan(self) -> Plan:
        """Return the plan of the service, as the lease store has it."""
        return Plan.load(self.leases.look(SERVICE).documents[PLAN].text)

    # -- the publisher

    def know(self, posts: Sequence[Post]) -> None:
        """Hear of all that will be published."""
        record_id = self.app.handlers[FALLIBLE].record_id
        for post in posts:
            if not post.is_other:
                self.posts[post.id] = post
            if (child := post.child) is not None:
                self.posts[child.id] = child
                self._parents[record_id(post.id)] = child

    def check_children(self, record: bytes) -> None:
        """See whether the child of what is about to be recorded is at the broker, or done."""
        child = self._parents.get(record)
        if child is None or self.broker.queues_with(child.body):
            return
        if self.app.handlers[FOLLOWER].record_id(child.id) not in self.memory.records.done:
            text = f"recorded before its child is there: {child.parent}, of which it is {child.id}"
            self.ledger.complain(child.key, text, child.parent, child.id)

    def publish(self, posts: Sequence[Post], times: int = 1) -> None:
        """Publish, in order; every post once more for each further time."""
        ids = [post.id for post in posts]
        self.published_again.update(ids if times > 1 else self.published_before & {*ids})
        self.published_before.update(ids)
        for _ in range(times):
            self._publisher.publish_many(
                [(message_of(post), post.exchange, EVENT, False) for post in posts]
            )

    def confirm(self, posts: Sequence[Post]) -> None:
        self.note("published", *(post.id for post in posts))
        self.confirmed += posts
        self.children += [child for post in posts if (child := post.child) is not None]

    def due(self, handler: str) -> Sequence[Post]:
        """Return what a handler has to do: what was confirmed, or the children of that."""
        return self.children if handler == FOLLOWER else self.confirmed

    def backlog(self) -> list[str]:
        """Return what is left to be done, in words."""
        handlers = self.app.handlers
        done = self.memory.records.done
        parked = self.parked()
        left = [
            f"{id_} at {name}"
            for name, handler in handlers.items()
            for id_, record in self._records(handler)
            if record not in done and id_ not in parked
        ]
        if not left and self.broker.depth([*self._queues()]):
            left = ["something in the queues"]
        running = [p for p in self.processes.values() if p.attempts()]
        plan = self.plan()
        if plan.target is not None:
            left.append(f"the change of shards is at {plan.phase}")
        return left or [f"{p} still runs a handler" for p in running]

    def _records(self, handler: Handler) -> Sequence[tuple[str, bytes]]:
        """Return the record of each confirmed message at a handler."""
        known = self._known.setdefault(handler.name, [])
        due = self.due(handler.name)
        known += [(p.id, handler.record_id(p.id)) for p in due[len(known) :]]
        return known

    def parked(self) -> list[str]:
        """Return the ids of what lies in the parked queue, in its order."""
        if not self.shape.parks:
            return []
        ids = {post.body: post.id for post in self.confirmed}
        return [ids[body] for body in self.broker.bodies_in(parked_queue(SERVICE))]

    def _queues(self) -> Sequence[str]:

        consumed = self.plan().consumed
        return [shard_queue(SERVICE, consumed.number, n) for n in range(consumed.shards)]

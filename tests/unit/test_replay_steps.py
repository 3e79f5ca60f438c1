"""The seam, step by step: whoever sends the past dies between any two of its calls.

The broker is in memory, the archive and the leases are files, and there is one thread: the sender
takes its turns, and between them events are published and the archive's service goes on, or lags.
What is promised is looked for in the queues: of each key the first copies in the past generation,
and then those in the live one, are the stream.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

import pytest

from worker import App, Event
from worker.archive import service
from worker.archive.base import Archive, Page
from worker.archive.entry import Entry
from worker.archive.horizon import Horizon
from worker.archive.journal import Journal, Replay, State, Stint, Stopped
from worker.archive.open import open_archive
from worker.archive.replayer import Overtaken, Replayer
from worker.archive.seam import Lost, Seam
from worker.archive.selection import Selection
from worker.archive.sender import Sender
from worker.archive.sqlite import SqliteArchive
from worker.barrier import BARRIER, barrier
from worker.cli.output import Interrupted
from worker.cli.replaying import wait_until_live
from worker.codec import Codec
from worker.config import Settings
from worker.consumer import Consumer
from worker.declaring import declare
from worker.dedup.base import StoreOptions
from worker.dedup.memory import MemoryStore
from worker.errors import ArchiveUnavailable, LeasesUnavailable, UsageError
from worker.leases.base import LeaseOptions, Sync
from worker.leases.open import open_leases
from worker.leases.sqlite import SqliteLeases
from worker.resharding import Resharding
from worker.sharding.generations import PLAN, Generation, Phase, Plan
from worker.testing import FakeClock
from worker.testing.pools import INLINE
from worker.transport import memory
from worker.transport.capabilities import connect
from worker.transport.inbound import Inbound
from worker.transport.outbound import Outbound

KEYS, SHARDS = 3, 2
_numbers = count()
reports = App("reports")


class Step(Event, name="test.step", key="key"):
    key: str
    number: int


@reports.on(Step)
def note(event: Step) -> None: ...


class Died(BaseException):
    """The sender was killed."""


class World:
    """A broker, an archive whose service is ticked, publishers, and one sender at a time."""

    def __init__(self, folder: Path, stack: ExitStack, seed: int = 0) -> None:
        self._name = f"replay-steps-{next(_numbers)}"
        stack.callback(memory.forget, self._name)
        broker = f"memory://{self._name}"
        self.url = f"sqlite:///{folder}/archive.db"
        self.leases_url = f"sqlite:///{folder}/leases.db"
        options = {"broker": broker, "archive": self.url, "leases": self.leases_url, "shards": 2}
        self.settings: Settings = stack.enter_context(reports.configured(options, {}))
        mine: Settings = stack.enter_context(service.app.configured(options, {}))
        self._stack = stack
        self.clock = FakeClock()
        self.random = Random(seed)
        self.published: dict[str, list[str]] = defaultdict(list)
        store = MemoryStore(StoreOptions(), self.clock)
        self._archiving = Consumer(
            service.app, mine, shards=range(SHARDS), store=store, clock=self.clock,
            random=Random(0), pools=INLINE,
        )  # fmt: skip
        self._archiving.open()
        stack.callback(self._archiving.close)
        self._web = App("web", broker=broker)
        stack.callback(self._web.close)
        self.archive: Archive = open_archive(self.url)
        stack.callback(self.archive.close)
        self.deaths = 0
        #: What is done now is done by the sender.
        self.mortal = False

    def publish(self, number: int) -> None:
        with self._web.publisher() as out:
            for _ in range(number):
                key = f"k{self.random.randrange(KEYS)}"
                step = Step(key=key, number=len(self.published[key]))
                self.published[key].append(out.publish(step))

    def archive_some(self, ticks: int = 3) -> None:
        for _ in range(ticks):
            self._archiving.tick(0)

    def go_on(self, seconds: float = 0.1) -> None:
        """Let the world go on for a while: something is published, the archive lags."""
        self.clock.advance(seconds)
        self.mortal, before = False, self.mortal
        if self.random.random() < 0.5:
            self.publish(self.random.randrange(3))
        if self.random.random() < 0.5:
            self.archive_some(self.random.randrange(4))
        self.mortal = before

    def begin(self) -> None:
        """Note the replay as begun."""
        with Seam(reports, self.settings, self.clock) as seam:
            seam.check_new()
        journal = Journal(self.archive, self.clock)
        journal.begin(Replay(id="r1", service="reports", holds=True, owner="nobody"))

    def sender(self) -> Sending:
        """Return one that goes on with the replay, whoever is at it."""
        self.clock.advance(60)  # nobody is thought to be at it
        return Sending(self, Journal(self.archive, self.clock).resume("r1"))

    def send(self) -> None:
        """Do the replay from where it is to its end."""
        sender = self.sender()
        try:
            sender.to_its_end()
        finally:
            sender.close()

    def write_plan(self, plan: Plan) -> None:
        store = open_leases(self.leases_url, LeaseOptions())
        document = store.look("reports").documents.get(PLAN)
        version = 0 if document is None else document.version
        assert store.write("reports", PLAN, version, plan.dump())
        store.close()

    def forget_leases(self) -> None:
        with closing(sqlite3.connect(self.leases_url.removeprefix("sqlite:///"))) as db, db:
            db.execute("DELETE FROM lease_books")

    def plan(self) -> Plan | None:
        store = open_leases(self.leases_url, LeaseOptions())
        document = store.look("reports").documents.get(PLAN)
        store.close()
        return None if document is None else Plan.load(document.text)

    def queued(self, generation: int) -> dict[str, list[str]]:
        """Return the ids in the queues of a generation, by key, in order."""
        connection = connect(self.settings.broker, heartbeat=0, timeout=5, name="test")
        inbound = Inbound(connection, self.settings.broker, 65_535)
        queues = {shard: f"reports.g{generation}.{shard}" for shard in range(SHARDS)}
        inbound.consume(queues)
        found: dict[str, list[str]] = defaultdict(list)
        while some := inbound.fetch(1000):
            for _, arrival in some:
                headers = arrival.properties["application_headers"]
                found[headers["qw-key"]].append(arrival.properties["message_id"])
        inbound.close()
        return found

    def check(self) -> None:
        """Of each key: the past and then what is live, without second copies, is the stream."""
        past, live = self.queued(1), self.queued(2)
        for key, published in self.published.items():
            assert [*dict.fromkeys([*past[key], *live[key]])] == published, key
        assert sum(map(len, live.values())) > 0, "something was held"


class Sending:
    """Somebody at the replay of a world."""

    def __init__(self, world: World, stint: Stint) -> None:
        self._world = world
        self._seam = Seam(reports, world.settings, world.clock)
        self._replayer = Replayer(
            world.archive, stint, world.settings, reports, seam=self._seam,
            clock=world.clock, sleep=world.go_on, tell=lambda _: world.go_on(),
        )  # fmt: skip

    def turn(self) -> bool:
        self._replayer._batch = 4  # so that there are many
        return self._replayer._turn()

    def to_its_end(self) -> None:
        while not self.turn():
            self._world.go_on()

    def tell_only(self, told: list[str]) -> None:
        """Note what it waits for; the world stands still meanwhile, but for the clock."""
        self._replayer._tell = lambda now: told.append(now.waits)
        self._replayer._sleep = self._world.clock.advance

    def run(self) -> None:
        self._replayer.run()

    def close(self) -> None:
        self._replayer._disconnect()
        self._seam.__exit__()


class Deaths:
    """Kills the sender at its n-th call to a server: before it is made, or before its answer."""

    CALLS = (
        (SqliteArchive, "write"), (SqliteArchive, "read"), (SqliteLeases, "write"),
        (Outbound, "pump"), (Sender, "settle"), (Resharding, "declare"), (Seam, "end"),
    )  # fmt: skip

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
        self.calls = 0
        self._world = world
        self._at = at
        for owner, name in self.CALLS:
            monkeypatch.setattr(owner, name, self._wrapped(getattr(owner, name)))

    def _wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **named: Any) -> Any:
            if not self._world.mortal or threading.current_thread() is not threading.main_thread():
                return call(*args, **named)
            self._count()
            answer = call(*args, **named)
            self._count()
            return answer

        return wrapped

    def _count(self) -> None:
        self.calls += 1
        if self.calls == self._at:
            raise Died


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with ExitStack() as stack:
        yield World(tmp_path, stack)


def carry_out(world: World) -> None:
    """Do all of it, with whatever deaths there are."""
    world.publish(12)
    world.archive_some(2)
    world.begin()
    journal = Journal(world.archive, world.clock)
    while journal.find("r1")[1].state is not State.DONE:
        world.mortal = True
        try:
            world.send()
        except Died:
            world.deaths += 1
        world.mortal = False
        world.go_on()
    world.publish(10)


def test_the_past_and_what_is_live_are_the_stream(world: World) -> None:
    died = "barrier/00000000-0000-7000-8000-000000000000/qw.archive.g1.0"
    world.archive.write(died, 0, "of somebody who died")
    carry_out(world)

    world.check()
    plan = world.plan()
    assert plan is not None
    assert plan.phase is Phase.BIND
    (_, replay) = Journal(world.archive, world.clock).find("r1")
    assert replay.state is State.DONE
    assert world.archive.documents("barrier/") == {}


def test_whoever_dies_between_any_two_calls_is_replaced_without_a_trace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = 0
    for at in count(1):
        folder = tmp_path / str(at)
        folder.mkdir()
        with ExitStack() as stack, monkeypatch.context() as patch:
            world = World(folder, stack, seed=at)
            Deaths(world, patch, at=at)
            carry_out(world)
            world.check()
        died += world.deaths
        if not world.deaths:
            break
    assert died > 30, "there are so many calls to die in"


def test_without_barriers_there_would_be_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above would see it: the archive lags behind what was published."""

    def at_once(self: Horizon) -> int:
        return self._archive.span(Selection())[1]

    monkeypatch.setattr(Horizon, "reached", at_once)
    gaps = 0
    for seed in range(5):
        folder = tmp_path / str(seed)
        folder.mkdir()
        with ExitStack() as stack:
            world = World(folder, stack, seed)
            carry_out(world)
            try:
                world.check()
            except AssertionError:
                gaps += 1
    assert gaps


def test_two_at_one_replay_do_no_harm(world: World) -> None:
    world.publish(20)
    world.archive_some(5)
    world.begin()
    sleeper = world.sender()
    for _ in range(4):
        assert not sleeper.turn()

    world.send()

    with pytest.raises(Stopped, match="done"):
        sleeper.to_its_end()
    sleeper.close()
    world.publish(5)
    world.check()


def test_one_that_was_paused_goes_on_where_it_was(world: World) -> None:
    world.publish(20)
    world.archive_some(5)
    world.begin()
    sender = world.sender()
    for _ in range(4):
        assert not sender.turn()
    journal = Journal(world.archive, world.clock)

    journal.ask("r1", State.PAUSED)
    with pytest.raises(Stopped, match="is paused"):
        sender.to_its_end()
    sender.close()

    assert journal.find("r1")[1].sent > 0
    assert journal.find("r1")[1].owner == ""
    world.send()
    world.publish(5)
    world.check()


def test_who_died_with_a_clock_that_was_ahead_is_replaced(world: World) -> None:
    ahead = Journal(world.archive, lambda: world.clock() + 3600)
    ahead.begin(Replay(id="r1", service="reports"))
    journal = Journal(world.archive, world.clock)

    assert not journal.is_alive(journal.find("r1")[1])
    journal.resume("r1")
    assert journal.is_alive(journal.find("r1")[1])


def test_pages_become_as_small_as_the_line_to_the_archive_needs(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, limits = SqliteArchive.read, []

    def slow(self: SqliteArchive, selection: Selection, after: int, upto: int, limit: int) -> Page:
        world.clock.advance(min(limit, 100) / 10)
        limits.append(limit)
        assert len(limits) < 100, "it does not come through"
        if limit > 100:
            raise ArchiveUnavailable("timeout")
        return read(self, selection, after, upto, limit)

    monkeypatch.setattr(SqliteArchive, "read", slow)
    world.publish(200)
    world.archive_some(20)
    world.begin()
    sender = world.sender()

    sender.run()
    sender.close()

    assert Journal(world.archive, world.clock).find("r1")[1].state is State.DONE


@pytest.mark.parametrize("upto", [12, 10**6])
def test_what_is_removed_before_it_was_sent_is_told(world: World, upto: int) -> None:
    world.publish(40)
    world.archive_some(20)
    world.begin()
    sender = world.sender()
    for _ in range(4):
        assert not sender.turn()
    assert world.archive.trim(2**62, upto) > 0

    with pytest.raises(Overtaken, match=r"has a hole there.*another name"):
        sender.to_its_end()
    sender.close()
    with pytest.raises(Overtaken):
        world.send()


def test_what_is_removed_after_it_was_sent_or_before_it_began_is_no_matter(world: World) -> None:
    world.publish(40)
    world.archive_some(20)
    world.archive.trim(2**62, 5)
    world.begin()
    sender = world.sender()
    for _ in range(4):
        assert not sender.turn()
    world.archive.trim(2**62, 2)

    sender.to_its_end()
    sender.close()

    assert Journal(world.archive, world.clock).find("r1")[1].state is State.DONE


def from_a_clock_that_was_ahead(world: World, event_id: str) -> None:
    """Have an event stay in front of others that are removed, and some behind these."""
    now = int(time.time() * 1_000_000)
    body = b'{"key": "k0", "number": 0}'
    event = Entry(event_id, "test.step", "k0", now, "{}", "{}", body, at=2 * now)
    world.archive.add([event])
    world.publish(40)
    world.archive_some(20)
    assert world.archive.trim(now + 60_000_000, 1000) >= 40
    world.publish(10)
    world.archive_some(20)


def test_what_is_removed_late_before_it_was_sent_is_told(world: World) -> None:
    from_a_clock_that_was_ahead(world, "a")
    world.begin()
    sender = world.sender()
    for _ in range(2):
        assert not sender.turn()
    sender.close()
    assert world.archive.trim(2**62, 1) == 1
    assert world.archive.find("a") is None

    with pytest.raises(Overtaken, match="to place 1 since it began"):
        world.send()


def test_what_is_removed_late_after_it_was_sent_or_before_it_began_is_no_matter(
    world: World,
) -> None:
    from_a_clock_that_was_ahead(world, "a")
    from_a_clock_that_was_ahead(world, "b")
    assert world.archive.trim(2**62, 1) == 1
    world.begin()
    sender = world.sender()
    for _ in range(4):
        assert not sender.turn()
    assert world.archive.trim(2**62, 1) == 1
    assert world.archive.find("b") is None

    sender.to_its_end()
    sender.close()

    assert Journal(world.archive, world.clock).find("r1")[1].state is State.DONE


def test_a_replay_that_knows_nothing_of_late_removals_goes_on(world: World) -> None:
    world.publish(10)
    world.archive_some(5)
    world.begin()
    written = world.archive.documents("replay/")["replay/r1"]
    of_before = json.loads(written.text)
    del of_before["removed_below"]
    assert world.archive.write("replay/r1", written.version, json.dumps(of_before))

    world.send()

    assert Journal(world.archive, world.clock).find("r1")[1].state is State.DONE


def test_that_nobody_runs_the_archive_is_told(world: World) -> None:
    world.publish(20)
    world.begin()
    sender = world.sender()
    told: list[str] = []
    sender.tell_only(told)

    def tells_of_nobody() -> bool:
        told.clear()
        while not told:
            assert not sender.turn()
        return "nobody runs it ('qworker archive start')" in told[-1]

    while not told or "the archive" not in told[-1]:
        assert not tells_of_nobody(), "its leases may be elsewhere"
    with closing(open_leases(world.leases_url, LeaseOptions())) as leases:
        leases.write(service.ARCHIVE, PLAN, 0, Plan(Generation(1, SHARDS)).dump())
        assert tells_of_nobody()
        leases.sync(service.ARCHIVE, Sync("member", "{}"))
        assert not tells_of_nobody()
    world.archive_some(20)
    sender.to_its_end()
    sender.close()


@pytest.mark.parametrize("forgotten", [True, False])
def test_where_the_hold_is_lost_that_is_told(world: World, forgotten: bool) -> None:
    world.publish(20)
    world.archive_some(5)
    world.begin()
    sender = world.sender()
    for _ in range(4):
        assert not sender.turn()
    plan = world.plan()
    assert plan is not None

    if forgotten:
        world.forget_leases()
    else:
        world.write_plan(plan.advanced().advanced())

    with pytest.raises(Lost, match="hole"):
        sender.run()
    sender.close()
    with pytest.raises(Lost, match="hole"):
        world.send()


def test_somebody_s_event_that_looks_like_a_barrier_is_archived(world: World) -> None:
    codec = Codec.of("web", world.settings)
    message = barrier(codec, "mine", "")
    message.exchange, message.routing_key = codec.events_exchange, BARRIER
    connection = connect(world.settings.broker, heartbeat=0, timeout=5, name="test")
    with closing(Outbound(connection, world.settings.broker)) as outbound:
        assert outbound.deliver([message], 5) == [None]

    world.archive_some(10)

    assert world.archive.find(message.message_id) is not None
    assert world.archive.documents(service.MARKS) == {}


def test_a_service_begins_with_one_replay(world: World) -> None:
    world.publish(20)
    world.archive_some(5)
    world.begin()
    Journal(world.archive, world.clock).begin(Replay(id="r2", service="reports", holds=True))
    first = world.sender()
    assert not first.turn()
    late = Sending(world, Journal(world.archive, world.clock).resume("r2"))

    with pytest.raises(Lost, match=r"at the same time: nothing was sent"):
        late.run()
    late.close()
    with Seam(reports, world.settings, world.clock) as seam:
        with pytest.raises(Lost):
            seam.end("r2")
        with pytest.raises(UsageError, match=r"--resume r1"):
            seam.check_new()

    first.to_its_end()
    first.close()
    world.publish(5)
    world.check()


def test_who_waits_no_longer_is_told_that_all_goes_on(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: Seam) -> Phase:
        raise KeyboardInterrupt

    monkeypatch.setattr(Seam, "phase", interrupted)
    with (
        Seam(reports, world.settings, world.clock) as seam,
        pytest.raises(Interrupted, match=r"all is sent; reports goes over .* by itself"),
    ):
        wait_until_live(seam, "reports", 5, quiet=True)


def test_who_waits_does_so_while_the_lease_store_is_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[Phase | None] = [Phase.REPLAY, None]
    away = [True, False, True, False]

    def phase(_: Seam) -> Phase | None:
        if away.pop(0):
            raise LeasesUnavailable("it restarts")
        return answers.pop(0)

    monkeypatch.setattr(Seam, "phase", phase)
    with Seam(reports, world.settings, world.clock) as seam:
        wait_until_live(seam, "reports", 30, quiet=True)
        assert not answers

        away[:] = [True]
        with pytest.raises(LeasesUnavailable, match=r"(?s)it restarts.*all is sent"):
            wait_until_live(seam, "reports", 0, quiet=True)


def test_a_service_that_ran_cannot_begin_with_the_past(world: World) -> None:
    world.write_plan(Plan(Generation(1, SHARDS)))

    with pytest.raises(UsageError, match="has run already"):
        world.begin()


def test_nor_can_one_whose_plan_was_forgotten(world: World) -> None:
    connection = connect(world.settings.broker, heartbeat=0, timeout=5, name="test")
    declare(connection.channel(), reports.topology(world.settings))
    connection.release()

    with pytest.raises(UsageError, match="has run already"):
        world.begin()

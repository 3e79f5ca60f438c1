"""A lease store that forgot everything: the queues of the broker tell what there was."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import amqp
import pytest
import redis

from acceptance.commands import depth
from acceptance.conftest import Place, long_on
from acceptance.desk import PATIENCE, Desk, step
from waiting import until
from worker import App, Event
from worker.config import load_settings
from worker.found import find_generations
from worker.inspector import Inspector
from worker.leases.base import LeaseOptions
from worker.leases.open import open_leases
from worker.resharding import Resharding, topology_of
from worker.sharding.generations import PLAN, Generation, Phase, Plan
from worker.topology import RETRY_SECONDS, retry_queue

CHANGE = Plan(Generation(1, 2)).reshard(3)


class Step(Event, name="test.step", key="key"):
    """What the desk's service observes."""

    key: str


class Forgetful(Desk):
    """A desk whose lease store can be made to forget, beside a service that does one step."""

    @property
    def leases(self) -> str:
        """The URL of the lease store."""
        return self.environ["QWORKER_DEDUP_URL"] or self.broker

    @contextmanager
    def waiting_retry(self) -> Iterator[None]:
        """Have a message wait for a retry while the block runs."""
        queue = retry_queue("once", RETRY_SECONDS[-1])
        with Inspector("once", load_settings({"broker": self.broker}, {})) as inspector:
            inspector.ask(lambda channel: channel.queue_declare(queue, durable=True))
            message = amqp.Message(b"{}", delivery_mode=2)
            inspector.ask(lambda channel: channel.basic_publish(message, "", queue))
            until(lambda: inspector.depth(queue) == (1, 0), PATIENCE, "it waits")
            yield
            inspector.ask(lambda channel: channel.queue_delete(queue))

    def forget(self) -> None:
        """Forget leases, members and plans; what was done is remembered."""
        if self.leases.startswith("redis"):
            with closing(redis.Redis.from_url(self.leases)) as server:
                server.delete(*server.scan_iter("qw:leases:*"))
            return
        with closing(sqlite3.connect(self.folder / "qworker.db")) as database, database:
            database.execute("DELETE FROM lease_books")

    def steps(self) -> tuple[Resharding, list[Generation]]:
        """The steps of a change, and the generations that the broker has."""
        app = App("once")
        app.on(Step)(lambda event: None)
        settings = load_settings({"broker": self.broker, "shards": "2"}, {})
        with Inspector("once", settings) as inspector:
            found = find_generations(inspector, partial(topology_of, app, settings), 2)
        return Resharding(app, settings), found

    def go(self, phase: Phase) -> None:
        """Take the steps of the change up to this one, with it, as members would."""
        steps, _ = self.steps()
        plan = CHANGE
        while True:
            if plan.phase is Phase.BIND:
                steps.declare(plan)
            else:
                assert steps.take(plan)
            if plan.phase is phase:
                return
            plan = plan.advanced()


@pytest.fixture
def desk(tmp_path: Path, place: Place) -> Iterator[Forgetful]:
    """On RabbitMQ and Redis, and on SQLite: a service of two shards that has run and stopped."""
    with closing(Forgetful(tmp_path, place)) as desk:
        desk.serve()
        desk.publish(step("k", 0))
        until(lambda: desk.of_k() == ["k-0"], PATIENCE, "it consumes")
        desk.stop()
        yield desk


@long_on("servers")
def test_the_generation_that_is_there_is_gone_on_with(desk: Forgetful) -> None:
    desk.serve()
    desk.reshard(3)
    desk.stop()
    desk.publish(*(step("k", number) for number in range(1, 5)))
    desk.forget()

    refused = desk.run("start", "--shards", "2", code=3).err
    assert "once has 3 shards, and 2 are asked for: start with --shards 3" in refused
    assert "qworker reshard --to 2" in refused
    assert desk.run("topology", "--shards", "3", "--json").json["generation"] == 2
    desk.run("check", "--shards", "3")
    assert "once has 3 shards" in desk.run("check", "--shards", "2", code=3).out

    desk.serve(3)
    until(lambda: len(desk.of_k()) == 5, PATIENCE, "what waited is done")
    desk.publish(step("k", 5))
    until(lambda: len(desk.of_k()) == 6, PATIENCE, "what comes is done")
    assert desk.of_k() == [f"k-{number}" for number in range(6)]
    assert desk.steps()[1] == [Generation(2, 3)]


@pytest.mark.parametrize(
    "phase",
    [
        pytest.param(Phase.DECLARE, marks=pytest.mark.long),
        Phase.BIND,
        pytest.param(Phase.SEAL, marks=pytest.mark.long),
    ],
)
def test_a_change_that_was_under_way_is_ended(desk: Forgetful, phase: Phase) -> None:
    desk.publish(*(step("k", number) for number in range(1, 4)))
    desk.go(phase)
    desk.publish(*(step("k", number) for number in range(4, 7)))
    desk.forget()
    assert desk.steps()[1] == [Generation(1, 2), Generation(2, 3)]

    desk.serve(3)
    desk.publish(step("k", 7))

    until(lambda: desk.steps()[1] == [Generation(2, 3)], PATIENCE, "the old queues are removed")
    desk.publish(step("k", 8))
    until(lambda: "k-8" in desk.of_k(), PATIENCE, "all are done")
    assert desk.of_k() == [f"k-{number}" for number in range(9)]


@long_on("servers")
def test_a_change_whose_new_queues_are_consumed_already_is_ended(desk: Forgetful) -> None:
    """The old queues have a marker and nothing before it, and are consumed up to that again."""
    desk.go(Phase.SEAL)
    consumed = replace(CHANGE, phase=Phase.REMOVE)
    with closing(open_leases(desk.leases, LeaseOptions())) as store:
        version = store.look("once").documents[PLAN].version
        assert store.write("once", PLAN, version, consumed.dump())
    with desk.waiting_retry():  # so that the old queues are not removed yet
        desk.serve(3)
        desk.publish(*(step("k", number) for number in range(1, 4)))
        until(lambda: len(desk.of_k()) == 4, PATIENCE, "the new queues are consumed")
        desk.stop()
        desk.publish(step("k", 4))
        desk.forget()

        desk.serve(3)
        until(lambda: "k-4" in desk.of_k(), PATIENCE, "the new queues are consumed again")
        assert desk.steps()[1] == [Generation(1, 2), Generation(2, 3)]

    until(lambda: desk.steps()[1] == [Generation(2, 3)], PATIENCE, "the old queues are removed")
    desk.publish(step("k", 5))
    until(lambda: "k-5" in desk.of_k(), PATIENCE, "all are done")
    assert desk.of_k() == [f"k-{number}" for number in range(6)]


@long_on("embedded")
def test_a_service_that_runs_when_the_store_forgets_goes_on(desk: Forgetful) -> None:
    desk.serve()
    desk.reshard(3)
    desk.forget()
    desk.publish(*(step("k", number) for number in range(1, 4)))
    until(lambda: len(desk.of_k()) == 4, PATIENCE, "it goes on")

    until(lambda: desk.run("reshard", "--to", "4", code=None).code == 0, PATIENCE, "it knows")
    desk.publish(*(step("k", number) for number in range(4, 7)))
    until(lambda: len(desk.of_k()) == 7, PATIENCE, "it is changed as before")
    assert desk.of_k() == [f"k-{number}" for number in range(7)]
    assert desk.steps()[1] == [Generation(3, 4)]


def test_a_part_of_a_generation_is_told(desk: Forgetful) -> None:
    steps, _ = desk.steps()
    plan = replace(CHANGE, target=Generation(2, 5))
    assert steps.take(plan)
    with Inspector("once", load_settings({"broker": desk.broker}, {})) as inspector:
        inspector.ask(lambda channel: channel.queue_delete("once.g2.3"))
    desk.forget()

    refused = desk.run("start", "--shards", "2", code=3).err

    assert "some of the shard queues of 'once.g2' and not all" in refused
    assert depth(desk.broker, "once.g2.4") == 0, "nothing was removed"

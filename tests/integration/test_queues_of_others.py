"""Queues of somebody else that a service takes over, on a real RabbitMQ."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import amqp
import pytest

from integration.site import Serve, Site, depth
from worker.declaring import declare_source

QUEUES: Sequence[tuple[str, Mapping[str, Any]]] = [
    ("durable", {"durable": True}),
    ("transient", {"durable": False}),
    ("quorum", {"durable": True, "arguments": {"x-queue-type": "quorum"}}),
    ("limited", {"durable": True, "arguments": {"x-max-priority": 5, "x-message-ttl": 60000}}),
    ("single", {"durable": True, "arguments": {"x-single-active-consumer": True}}),
    (
        "single-quorum",
        {
            "durable": True,
            "arguments": {"x-queue-type": "quorum", "x-single-active-consumer": True},
        },
    ),
]


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize(("name", "facts"), QUEUES, ids=[name for name, _ in QUEUES])
def test_a_queue_that_is_there_is_taken_over_in_order(
    site: Site, serve: Serve, name: str, facts: Mapping[str, Any], shards: int
) -> None:
    site.channel.queue_declare(name, exclusive=False, auto_delete=False, **facts)
    site.publish("", name, *range(20))
    app = site.app()
    app.source(name)
    running = serve(app, shards=shards)

    site.publish("", name, *range(20, 30))

    running.until(lambda: len(site.seen) == 30, "all is handled")
    for key in (0, 1):
        assert [n for k, n in site.seen if k == f"key-{key}"] == [*range(key, 30, 2)]
    running.until(lambda: depth(site, name) == 0, "nothing is left")
    running.drain()
    assert depth(site, name) == 0


@pytest.mark.parametrize("declare", ["durable", "transient", "exclusive"])
def test_a_queue_is_declared_and_bound_as_the_app_says(
    site: Site, serve: Serve, declare: Any
) -> None:
    site.channel.exchange_declare("partner", "topic", durable=True, auto_delete=False)
    app = site.app()
    app.source("mine", declare=declare, exchange="partner", routing_key="order.*")
    running = serve(app)
    running.until(lambda: running.consumer._link.channels[-1].queue == "mine", "it is consumed")

    site.publish("partner", "order.new", 1, 2)
    site.publish("partner", "bill.new", 3)

    running.until(lambda: len(site.seen) == 2, "all is handled")
    running.drain()
    with site._connection.channel() as channel:
        if declare == "exclusive":
            with pytest.raises(amqp.exceptions.NotFound):
                channel.queue_declare("mine", passive=True)
        else:
            channel.queue_declare("mine", passive=True)


@pytest.mark.parametrize("declare", ["durable", "transient"])
def test_a_queue_is_there_as_soon_as_any_process_of_the_service_is(
    site: Site, serve: Serve, declare: Any
) -> None:
    site.channel.exchange_declare("partner", "fanout", durable=True, auto_delete=False)
    app = site.app()
    app.source("mine", declare=declare, exchange="partner")
    running = serve(app)
    # It has connected, and has done nothing yet: neither has whoever gets shard 0.
    site.publish("partner", "", 1)
    assert depth(site, "mine") == 1
    running.until(lambda: site.numbers == [1], "it is handled")
    running.drain()


def test_a_queue_that_is_there_otherwise_is_told_and_all_else_goes_on(
    site: Site, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    site.channel.queue_declare("mine", durable=False, exclusive=False, auto_delete=False)
    app = site.app()
    app.source("mine", declare="durable")
    running = serve(app)
    site.publish("qw.events", "test.event", 1)
    running.until(lambda: site.numbers == [1], "all else goes on")
    assert "the source 'mine' is not consumed until" in caplog.text
    running.drain()


def test_a_source_that_ends_the_connection_leaves_longer_and_longer_turns_to_all_else(
    site: Site, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    unit = 0.1
    asked: list[float] = []

    def end_the_connection(*_: Any) -> int:  # as RabbitMQ does where it denies transient queues
        asked.append(time.monotonic())
        raise amqp.exceptions.InternalError("INTERNAL_ERROR - denied")

    monkeypatch.setattr("worker.sourcing._AGAIN", unit)
    monkeypatch.setattr("worker.sourcing.declare_source", end_the_connection)
    app = site.app()
    app.source("mine", declare="transient")
    running = serve(app)
    site.publish("qw.events", "test.event", 1)
    running.until(lambda: len(asked) == 5, "it was asked for")
    running.until(lambda: site.numbers == [1], "all else goes on")
    running.drain()

    turns = [later - earlier for earlier, later in pairwise(asked[1:])]
    # They are counted from the beginning of a tick, which itself takes some time.
    assert all(turn >= unit * 2**n / 2 for n, turn in enumerate(turns, start=2)), turns
    assert "the source 'mine' is not consumed until this is mended: INTERNAL_ERROR" in caplog.text


def test_an_exclusive_queue_follows_shard_0_to_another_process(site: Site, serve: Serve) -> None:
    site.channel.exchange_declare("partner", "fanout", durable=True, auto_delete=False)
    app = site.app()
    app.source("mine", declare="exclusive", exchange="partner")
    first, second = serve(app, shards=2), serve(app, shards=2)
    first.until(lambda: first.takes("mine"), "it is consumed")
    given: list[int] = []
    first.consumer.on_given = given.extend

    first.consumer.give([0])
    first.until(lambda: given == [0], "it is given")
    second.until(lambda: second.takes("mine"), "the other one consumes it", first)
    site.publish("partner", "", 1)

    second.until(lambda: site.numbers == [1], "it is handled", first)


def test_a_source_that_is_not_there_is_told_and_taken_as_soon_as_it_is(
    site: Site, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    app = site.app()
    app.source("late")
    running = serve(app)
    running.until(lambda: "the source 'late' is not consumed until" in caplog.text, "it is told")
    site.publish("qw.events", "test.event", 1)
    running.until(lambda: site.numbers == [1], "all else goes on")

    site.channel.queue_declare("late", durable=True, auto_delete=False)
    site.publish("", "late", 2)
    running.until(lambda: sorted(site.numbers) == [1, 2], "it is consumed")
    running.drain()


def test_a_source_that_is_removed_is_told_and_all_else_goes_on(
    site: Site, serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "worker")
    site.channel.queue_declare("short", durable=True, auto_delete=False)
    app = site.app()
    app.source("short")
    running = serve(app)
    site.publish("", "short", 1)
    running.until(lambda: site.numbers == [1], "it is consumed")

    site.channel.queue_delete("short")
    site.publish("qw.events", "test.event", 2)
    running.until(lambda: sorted(site.numbers) == [1, 2], "all else goes on")
    running.until(lambda: "the source 'short' is not consumed until" in caplog.text, "it is told")

    site.channel.queue_declare("short", durable=True, auto_delete=False)
    site.publish("", "short", 3)
    running.until(lambda: sorted(site.numbers) == [1, 2, 3], "it is consumed again")
    assert "the source 'short' is consumed" in caplog.text
    running.drain()


ONE_AT_A_TIME = [(name, facts) for name, facts in QUEUES if name != "limited"]


@pytest.mark.parametrize("queue", ONE_AT_A_TIME, ids=[name for name, _ in ONE_AT_A_TIME])
def test_one_process_at_a_time_takes_from_a_queue(
    site: Site,
    serve: Serve,
    caplog: pytest.LogCaptureFixture,
    queue: tuple[str, Mapping[str, Any]],
) -> None:
    name, facts = queue
    site.channel.queue_declare(name, exclusive=False, auto_delete=False, **facts)
    app = site.app()
    app.source(name)
    first = serve(app, shards=2)
    site.publish("", name, 1)
    first.until(lambda: site.numbers == [1], "the first one takes it")
    second = serve(app, shards=2)
    told = f"the source {name!r} is not consumed until"
    second.until(lambda: told in caplog.text or second.takes(name), "it has asked", first)
    assert not second.takes(name)

    first.drain()
    site.publish("", name, 2)
    second.until(lambda: sorted(site.numbers) == [1, 2], "the next one takes it")
    second.drain()


@pytest.mark.parametrize("queue", ONE_AT_A_TIME, ids=[name for name, _ in ONE_AT_A_TIME])
def test_what_a_stopped_process_holds_comes_before_what_the_next_one_gets(
    site: Site,
    serve: Serve,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    queue: tuple[str, Mapping[str, Any]],
) -> None:
    name, facts = queue
    site.channel.queue_declare(name, exclusive=False, auto_delete=False, **facts)
    site.publish("", name, *range(10), key="k")
    app = site.app()
    app.source(name)
    first = serve(app)
    with monkeypatch.context() as patched:  # it is stopped before it passes them on
        patched.setattr("worker.relay.Relay.pass_on", lambda *_: None)
        first.until(lambda: first.consumer.counters.relayed == 10, "it has them")

    second = serve(app)  # which got the lease meanwhile
    told = f"the source {name!r} is not consumed until"
    second.until(lambda: told in caplog.text or second.takes(name), "it has asked")
    site.publish("", name, *range(10, 15), key="k")
    # Nothing that is to be waited for: none of these may come as long as the first one is there.
    second.until(second.consumer.is_idle, "it has nothing to do")
    first.kill()

    second.until(lambda: len(site.seen) == 15, "all is handled")
    assert site.numbers == [*range(15)]
    second.drain()


def test_who_loses_the_lease_while_it_asks_consumes_nothing(
    site: Site, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.channel.queue_declare("theirs", durable=True, auto_delete=False)
    app = site.app()
    app.source("theirs")
    running = serve(app)
    given: list[int] = []
    running.consumer.on_given = given.extend

    def answer_late(*arguments: Any) -> int:
        running.consumer.trust(0.0)
        return declare_source(*arguments)

    monkeypatch.setattr("worker.sourcing.declare_source", answer_late)
    has_taken = []

    def is_given() -> bool:
        has_taken.append(running.takes("theirs"))
        return given == [0]

    running.until(is_given, "it gives the shard up")
    assert not any(has_taken)

"""Streams of somebody else that a service reads, on a real RabbitMQ."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import amqp
import pytest

from integration.site import Running, Serve, Site, depth, make_stream
from worker.dedup.base import Batch, Mark


@pytest.mark.parametrize("shards", [1, 4])
def test_a_stream_is_read_from_its_first_message_in_order(
    site: Site, serve: Serve, shards: int
) -> None:
    make_stream(site, *range(40))
    app = site.app()
    app.source("log", offset="first")
    running = serve(app, shards=shards)
    site.publish("", "log", *range(40, 50))
    running.until(lambda: len(site.seen) == 50, "all is handled")
    for key in (0, 1):
        assert [n for k, n in site.seen if k == f"key-{key}"] == [*range(key, 50, 2)]
    running.drain()


@pytest.mark.parametrize(
    ("offset", "first"), [("first", 0), (7, 7), ("next", 20), ("last", None), ("1h", 0)]
)
def test_a_stream_is_read_from_where_the_app_says(
    site: Site, serve: Serve, offset: Any, first: int | None
) -> None:
    make_stream(site, *range(20))
    app = site.app()
    app.source("log", offset=offset)
    running = serve(app)
    running.until(lambda: len(running.consumer._link.channels) == 2, "it is consumed")
    site.publish("", "log", 20)

    def has_all() -> bool:
        # The last chunk has one message or some.
        begun = min(site.numbers, default=0) if first is None else first
        return sorted(site.numbers) == [*range(begun, 21)]

    running.until(has_all, "all is handled")
    running.drain()


def test_a_stream_is_read_from_a_time(site: Site, serve: Serve) -> None:
    make_stream(site, 1, 2)
    time.sleep(2.1)  # the broker's own times have seconds
    moment = datetime.now(UTC)
    site.publish("", "log", 3, 4)
    app = site.app()
    app.source("log", offset=moment)
    running = serve(app)
    running.until(lambda: 4 in site.numbers, "all is handled")
    assert sorted(site.numbers) == [3, 4]
    running.drain()


def test_a_restart_goes_on_where_the_stream_was_left(site: Site, serve: Serve) -> None:
    make_stream(site, *range(10))
    app = site.app()
    app.source("log", offset="first")
    first = serve(app)
    first.until(lambda: len(site.seen) == 10, "all is handled")
    first.drain()

    site.publish("", "log", *range(10, 15))
    second = serve(app)
    second.until(lambda: len(site.seen) == 15, "what came meanwhile is handled")
    assert second.consumer.counters.relayed == 5
    second.drain()
    assert sorted(site.numbers) == [*range(15)]


@pytest.mark.parametrize("offset", ["next", "last", "1s"])
def test_what_comes_while_a_stream_is_not_read_is_not_passed_over_because_nothing_came_before(
    site: Site, serve: Serve, offset: str
) -> None:
    make_stream(site)
    app = site.app()
    app.source("log", offset=offset)
    running = serve(app)
    running.until(lambda: running.takes("log"), "it is consumed")
    running.drain()

    site.publish("", "log", 1, 2)
    time.sleep(2.1)  # longer ago than the offset says
    site.publish("", "log", 3)
    running = serve(app)
    running.until(lambda: sorted(site.numbers) == [1, 2, 3], "all is handled")
    running.drain()


def test_what_was_under_way_of_a_stream_comes_again_though_nothing_was_remembered(
    site: Site, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_stream(site, 0, 1)
    time.sleep(2.1)  # the broker's own times have seconds
    app = site.app()
    app.source("log", offset="next")
    running = serve(app)
    running.until(lambda: running.takes("log"), "it is consumed")
    with monkeypatch.context() as patched:  # the link is lost before these are confirmed
        patched.setattr("worker.relay.Relay.pass_on", lambda *_: None)
        site.publish("", "log", 2, 3)
        running.until(lambda: running.consumer.counters.relayed == 2, "they are delivered")
    running.consumer._link.renew("as after a loss")
    running.until(lambda: site.numbers == [2, 3], "they are handled")
    running.drain()


def test_another_offset_counts_as_long_as_nothing_was_passed_on(site: Site, serve: Serve) -> None:
    make_stream(site, 1, 2)
    time.sleep(2.1)  # the broker's own times have seconds
    app = site.app()
    app.source("log", offset="next")
    running = serve(app)
    running.until(lambda: running.takes("log"), "it is consumed")
    running.drain()

    other = site.app()
    other.source("log", offset="first")
    running = serve(other)
    running.until(lambda: sorted(site.numbers) == [1, 2], "all is handled")
    running.drain()


def test_a_crash_passes_on_again_what_was_not_remembered_and_nothing_runs_twice(
    site: Site, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_stream(site, *range(10))
    app = site.app()
    app.source("log", offset="first")
    first = serve(app)
    monkeypatch.setattr("worker.sourcing.Sourcing.save", lambda _: None)
    first.until(lambda: len(site.seen) == 10, "all is handled")
    first.until(lambda: first.consumer._dialogue.busy is False, "all is recorded")
    first.kill()
    monkeypatch.undo()

    site.publish("", "log", 10)
    second = serve(app)
    second.until(lambda: second.consumer.counters.duplicates == 10, "it is dropped")
    second.until(lambda: len(site.seen) == 11, "what came meanwhile is handled")
    assert sorted(site.numbers) == [*range(11)]
    second.drain()


def test_what_was_passed_on_last_runs_once_though_its_id_was_forgotten(
    site: Site, serve: Serve
) -> None:
    make_stream(site, *range(5))
    app = site.app()
    app.source("log", offset="first")
    first = serve(app)
    first.until(lambda: len(site.seen) == 5, "all is handled")
    first.drain()

    second = serve(app)
    site.publish("", "log", 5)
    second.until(lambda: 5 in site.numbers, "what came meanwhile is handled")
    assert second.consumer.counters.relayed == 1
    assert second.consumer.counters.duplicates == 0
    second.drain()


@pytest.mark.parametrize("offset", ["first", "next"])
def test_how_far_a_stream_was_read_is_remembered_as_long_as_it_is_read(
    site: Site, serve: Serve, monkeypatch: pytest.MonkeyPatch, offset: str
) -> None:
    monkeypatch.setattr("worker.sourcing._RENEWALS", 1e9)
    monkeypatch.setattr("worker.sourcing._REMEMBERED", 0.0)
    make_stream(site, 1, 2)
    app = site.app()
    app.source("log", offset=offset)
    running = serve(app)
    running.until(lambda: running.takes("log"), "it is consumed")
    running.until(lambda: len(site.seen) == (2 if offset == "first" else 0), "all is handled")
    sourcing: Any = running.consumer._link.sourcing
    marks: list[Mark] = []
    apply = sourcing._store.apply

    def note(batch: Batch) -> object:
        marks.extend(batch.marks)
        return apply(batch)

    sourcing._store = SimpleNamespace(apply=note)
    running.until(lambda: len(marks) > 10, "the store is told again and again")
    assert len(set(marks[5:])) == 1, "of the same"
    running.drain()


def test_a_stream_that_was_made_anew_is_told(
    site: Site, serve: Serve, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.sourcing._SILENT", 0.5)
    make_stream(site, *range(10))
    app = site.app()
    app.source("log", offset="first")
    running = serve(app)
    running.until(lambda: len(site.seen) == 10, "all is handled")
    running.drain()
    told = "the stream 'log' brings nothing from number 9 on"

    running = serve(app)
    running.until(lambda: running.takes("log"), "it is consumed")
    running.until(lambda: running.consumer.counters.received, "it knows where it was left")
    assert told not in caplog.text
    running.drain()

    site.channel.queue_delete("log")
    make_stream(site, 20, 21)
    running = serve(app)
    running.until(lambda: told in caplog.text, "it is told")
    running.drain()

    again = site.app()
    again.source("log", offset="first", name="the other log")
    running = serve(again)
    running.until(lambda: sorted(site.numbers) == [*range(10), 20, 21], "it is read anew")
    running.drain()


def test_another_name_reads_the_stream_again_for_those_who_have_not_seen_it(
    site: Site, serve: Serve
) -> None:
    make_stream(site, *range(5))
    app = site.app()
    app.source("log", offset="first")
    running = serve(app)
    running.until(lambda: len(site.seen) == 5, "all is handled")
    running.drain()

    again = site.app()
    again.source("log", offset="first", name="log again")
    late: list[int] = []
    again.on("test.*", name="late")(lambda event: late.append(event["n"]))
    running = serve(again)
    running.until(lambda: len(late) == 5, "the new handler has seen all")
    assert sorted(late) == [*range(5)]
    assert sorted(site.numbers) == [*range(5)]
    running.drain()


@pytest.mark.parametrize("name_from", ["property:type", "body:kind"])
def test_what_nobody_observes_stays_in_the_stream_and_becomes_no_dead_letter(
    site: Site, serve: Serve, name_from: str
) -> None:
    make_stream(site)
    site.publish("", "log", 1, type="bill.new", id="bill")
    for facts in (
        {"body": b"text", "content_type": "text/plain", "type": "bill.new"},
        {"body": b'{"kind": "bill.new"}', "type": "bill.new"},  # without an id
        {"body": b'{"kind": "test.event", "n": 2}', "type": "test.event", "message_id": "2"},
    ):
        site.channel.basic_publish(amqp.Message(**facts), "", "log")
        site.channel.wait(amqp.spec.Basic.Ack)
    app = site.app(name_from=name_from)
    app.source("log", offset="first")
    running = serve(app)
    running.until(lambda: site.numbers == [2], "all is handled")
    running.drain()
    # Where the name should lie in a body that is no JSON, or has none, nothing is known of it.
    assert depth(site, "joins.dlq") == (0 if name_from == "property:type" else 2)


def test_what_cannot_be_read_is_a_dead_letter_that_does_not_go_back_to_the_stream(
    site: Site, serve: Serve
) -> None:
    make_stream(site)
    site.channel.basic_publish(amqp.Message(b"{}", type="test.event"), "", "log")
    site.channel.wait(amqp.spec.Basic.Ack)
    app = site.app()
    app.source("log", offset="first")
    running = serve(app)
    running.until(lambda: depth(site, "joins.dlq") == 1, "it is set aside")
    letter = site.channel.basic_get("joins.dlq", no_ack=True)
    assert letter.headers["qw-dead-queue"] == "joins.g1.0"
    running.drain()


def test_a_stream_is_declared_and_bound_as_the_app_says(site: Site, serve: Serve) -> None:
    site.channel.exchange_declare("partner", "fanout", durable=True, auto_delete=False)
    app = site.app()
    app.source("log", offset="first", declare="stream", exchange="partner")
    running = serve(app)
    running.until(lambda: len(running.consumer._link.channels) == 2, "it is consumed")
    site.publish("partner", "", 1, 2)
    running.until(lambda: sorted(site.numbers) == [1, 2], "all is handled")
    running.drain()


def test_a_burst_ends_when_the_stream_was_read(site: Site) -> None:
    make_stream(site, *range(10))
    app = site.app()
    app.source("log", offset="first")
    running = Running(app, burst=True)
    running.until(running.consumer.is_idle, "it has nothing left to do")
    assert sorted(site.numbers) == [*range(10)]
    running.drain()

"""The steps of relays: shard, deduplicate, enrich, and chains of these."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from worker import (
    App,
    Context,
    Event,
    Reject,
    Relayed,
    RetryPolicy,
    chain,
    deduplicate,
    enrich,
    shard,
)
from worker.codec import Codec
from worker.config import Settings
from worker.deadletters import Box
from worker.errors import ConfigurationError
from worker.intake import Intake, ToShard
from worker.replay import Replay
from worker.task import Delivery
from worker.testing import TestWorker
from worker.topology import dead_letter_queue
from worker.transport.arrival import Arrival


class Placed(Event, name="order.placed", key="shop"):
    shop: str
    order: str | None = None
    paid: bool = True


def app_with(step: Any, source: Any = "order.placed", **facts: Any) -> App:
    app = App("shop")
    app.relay(source, **{"to": "relayed.{name}", "name": "relay", **facts})(step)
    return app


def payloads(worker: TestWorker) -> list[Any]:
    return [seen.payload for seen in worker.published]


def keys(worker: TestWorker) -> list[str | None]:
    return [seen.key for seen in worker.published]


class TestShard:
    @pytest.mark.parametrize("by", ["order", lambda payload: payload["order"]])
    def test_the_key_is_what_it_finds(self, by: Any) -> None:
        with TestWorker(app_with(shard(by=by))) as worker:
            worker.publish(Placed(shop="s1", order="o1"))
            worker.run()
            assert keys(worker) == ["o1"]
            assert payloads(worker) == [{"shop": "s1", "order": "o1", "paid": True}]

    def test_it_looks_into_classes_and_into_what_lies_deeper(self) -> None:
        app = app_with(shard(by="customer.id"), "deep")
        app.relay(Placed, to="typed", name="typed")(shard(by="order"))
        with TestWorker(app) as worker:
            worker.publish_raw('{"customer": {"id": 7}}', name="deep", id="m1")
            worker.publish(Placed(shop="s1", order="o1"))
            worker.run()
            assert sorted(map(str, keys(worker))) == ["7", "o1"]

    @pytest.mark.parametrize("by", ["order", lambda p: p["order"], lambda p: p["none"], "order.id"])
    def test_a_payload_without_it_is_a_clear_dead_letter(self, by: Any) -> None:
        with TestWorker(app_with(shard(by=by))) as worker:
            worker.publish(Placed(shop="s1"))
            worker.run()
            assert payloads(worker) == []
            assert [(letter.attempts, letter.handler) for letter in worker.dead_letters] == [
                (1, "relay")
            ]

    def test_it_orders_what_came_without_a_key(self) -> None:
        """So a stream whose publisher knows of no keys has order from the relay on, and in it."""
        keys: list[str | None] = []

        def look(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
            keys.append(ctx.key)
            return payload

        with TestWorker(app_with(chain(shard(by="user"), look), "click")) as worker:
            worker.publish_raw('{"user": "u1"}', name="click", id="m1")
            worker.publish_raw('{"user": "u2"}', name="click", id="m2", key="theirs")
            worker.run()
            assert keys == ["u1", "theirs"]
            assert sorted(seen.key or "" for seen in worker.published) == ["u1", "u2"]


class TestEnrich:
    def test_what_it_returns_is_merged_and_wins(self) -> None:
        def more(payload: Mapping[str, Any], ctx: Context) -> dict[str, Any]:
            return {"paid": False, "id": ctx.message_id, "was": payload["paid"]}

        with TestWorker(app_with(enrich(more))) as worker:
            event = Placed(shop="s1", order="o1")
            worker.publish(event)
            worker.run()
            assert payloads(worker) == [
                {"shop": "s1", "order": "o1", "paid": False, "id": event.event_id, "was": True}
            ]
            assert keys(worker) == ["s1"]

    def test_a_class_is_enriched_by_its_fields(self) -> None:
        with TestWorker(app_with(enrich(lambda placed: {"of": placed.shop}), Placed)) as worker:
            worker.publish(Placed(shop="s1"))
            worker.run()
            assert payloads(worker) == [{"shop": "s1", "order": None, "paid": True, "of": "s1"}]

    def test_it_may_be_a_coroutine(self) -> None:
        async def more(payload: object) -> dict[str, Any]:
            await asyncio.sleep(0)
            return {"more": 1}

        with TestWorker(app_with(chain(shard(by="order"), enrich(more)))) as worker:
            worker.publish(Placed(shop="s1", order="o1"))
            worker.run()
            assert payloads(worker)[0]["more"] == 1
            assert keys(worker) == ["o1"]

    def test_anything_but_a_mapping_is_a_failure(self) -> None:
        app = app_with(enrich(lambda payload: None), retry=RetryPolicy(attempts=1))
        with TestWorker(app) as worker:
            worker.publish(Placed(shop="s1"))
            worker.run()
            assert "it returned NoneType, not a mapping" in worker.dead_letters[0].reason


class TestDeduplicate:
    @pytest.mark.parametrize("source", [Placed, "order.placed"], ids=["class", "plain"])
    def test_a_value_passes_once_whatever_the_ids_and_keys(self, source: Any) -> None:
        with TestWorker(app_with(deduplicate(by="order"), source)) as worker:
            for shop, order in ("ax", "bx", "ay", "ax", "by"):
                worker.publish(Placed(shop=shop, order=order))
            worker.run()
            assert [each["order"] for each in payloads(worker)] == ["x", "y"]
            assert len(worker.executed) == 2
            assert worker.dead_letters == []

    def test_it_is_remembered_by_the_store_and_by_no_process(self) -> None:
        with TestWorker(app_with(deduplicate(by="order"))) as worker:
            worker.publish(Placed(shop="a", order="x"))
            worker.run()
            worker.drain()
            worker.publish(Placed(shop="b", order="x"))
            worker.run()
            assert len(payloads(worker)) == 1

    def test_a_whole_payload_is_a_value_in_whatever_order_its_fields_are(self) -> None:
        with TestWorker(app_with(deduplicate(by=lambda payload: payload))) as worker:
            for number, body in enumerate(['{"a": 1, "b": 2}', '{"b": 2, "a": 1}', '{"a": 1}']):
                worker.publish_raw(body, name="order.placed", id=f"m{number}")
            worker.run()
            assert payloads(worker) == [{"a": 1, "b": 2}, {"a": 1}]

    def test_what_failed_at_first_passes_when_it_is_tried_again(self) -> None:
        def relay(payload: dict[str, Any], ctx: Context) -> dict[str, Any]:
            if ctx.attempt == 1:
                raise TimeoutError("not yet")
            return payload

        with TestWorker(app_with(chain(deduplicate(by="order"), relay))) as worker:
            worker.publish(Placed(shop="a", order="x"))
            worker.publish(Placed(shop="b", order="x"))
            worker.run()
            assert [each["order"] for each in payloads(worker)] == ["x"]
            assert [each.attempt for each in worker.executed] == [1, 2]
            assert worker.dead_letters == []

    def test_the_first_one_stands_for_its_value_also_where_it_is_filtered(self) -> None:
        def paid(payload: dict[str, Any]) -> dict[str, Any] | None:
            return payload if payload["paid"] else None

        with TestWorker(app_with(chain(deduplicate(by="order"), paid))) as worker:
            worker.publish(Placed(shop="a", order="x", paid=False))
            worker.publish(Placed(shop="a", order="x", paid=True))
            worker.run()
            assert payloads(worker) == []

    @pytest.mark.parametrize(
        ("by", "says"),
        [
            ("order", "the payload has no 'order'"),
            (lambda payload: payload["number"], "finds nothing in the payload: KeyError"),
            (lambda payload: payload["order"], "deduplicated by None"),
        ],
    )
    def test_a_payload_without_it_is_a_clear_dead_letter(self, by: Any, says: str) -> None:
        with TestWorker(app_with(deduplicate(by=by))) as worker:
            worker.publish(Placed(shop="a"))
            worker.publish(Placed(shop="b"))
            worker.run()
            assert [letter.attempts for letter in worker.dead_letters] == [1, 1]
            assert all(says in letter.reason for letter in worker.dead_letters)
            assert payloads(worker) == []

    def test_what_does_not_fit_is_a_dead_letter_of_this_handler_alone(self) -> None:
        app = app_with(deduplicate(by="order"), Placed)
        app.on("order.*", name="audit")(lambda payload: None)
        with TestWorker(app) as worker:
            worker.publish_raw('{"order": []}', name="order.placed", id="m1")
            worker.run()
            assert [name for name, *_ in worker.executed] == ["audit"]
            assert [letter.handler for letter in worker.dead_letters] == ["relay"]

    def test_other_handlers_of_the_message_remember_its_id(self) -> None:
        app = app_with(deduplicate(by="order"))
        seen: list[str] = []
        app.on(Placed, name="audit")(lambda placed: seen.append(placed.shop))
        with TestWorker(app) as worker:
            for shop in "ab":
                worker.publish(Placed(shop=shop, order="x"))
            worker.run()
            assert sorted(seen) == ["a", "b"]
            assert len(payloads(worker)) == 1

    def test_a_replayed_dead_letter_passes(self) -> None:
        """What is made forgotten is its value: it was remembered by that, and not by its id."""
        mended: list[bool] = []

        def relay(payload: dict[str, Any]) -> dict[str, Any]:
            if not mended:
                raise Reject("not yet")
            return payload

        with TestWorker(app_with(chain(deduplicate(by="order"), relay))) as worker:
            worker.publish(Placed(shop="a", order="x"))
            worker.run()
            mended.append(True)
            replay_all(worker)
            worker.run()
            assert [each["order"] for each in payloads(worker)] == ["x"]
            assert worker.dead_letters == []


def replay_all(worker: TestWorker) -> None:
    """Do what ``qworker dlq replay --all`` does."""
    codec = Codec.of("shop", worker.settings)
    with (
        Box(dead_letter_queue("shop"), codec, worker.settings) as box,
        Replay("shop", worker.settings, worker.store) as replay,
    ):
        replay.letters(box, list(box.read()))


class TestChain:
    def test_each_part_gets_what_the_one_before_it_made(self) -> None:
        def each_line(payload: dict[str, Any]) -> Iterator[Any]:
            for number in range(3):
                yield Relayed({**payload, "line": number}, headers={"x-line": number})

        def odd(payload: dict[str, Any]) -> dict[str, Any] | None:
            return payload if payload["line"] != 1 else None

        whole = chain(deduplicate(by="order"), each_line, odd, shard(by="line"))
        with TestWorker(app_with(whole)) as worker:
            for _ in range(2):
                worker.publish(Placed(shop="s1", order="o1"))
            worker.run()
            assert [each["line"] for each in payloads(worker)] == [0, 2]
            assert keys(worker) == ["0", "2"]
            assert [seen.headers["x-line"] for seen in worker.published] == [0, 2]

    def test_chains_are_parts_of_chains(self) -> None:
        inner = chain(deduplicate(by="order"), enrich(lambda payload: {"a": 1}))
        with TestWorker(app_with(chain(inner, enrich(lambda payload: {"b": 2})))) as worker:
            for _ in range(2):
                worker.publish(Placed(shop="s1", order="o1"))
            worker.run()
            (only,) = payloads(worker)
            assert (only["a"], only["b"]) == (1, 2)

    def test_what_cannot_be_meant_is_told(self) -> None:
        parts: Any = 7
        on: Any = App("shop").on(Placed)
        mistakes: list[tuple[Callable[[], object], str]] = [
            (chain, "at least one step"),
            (lambda: chain(shard(by="a"), deduplicate(by="b")), "deduplicate comes first"),
            (lambda: chain(parts), "a function of the payload"),
            (lambda: enrich(parts), "a function of the payload"),
            (lambda: shard(by=parts), "a field of the payload"),
            (lambda: shard(by="a..b"), "a field of the payload"),
            (lambda: on(shard(by="a")), "a step of relays"),
        ]
        for make, says in mistakes:
            with pytest.raises(ConfigurationError, match=says):
                make()

    def test_what_has_no_name_is_named_after_what_it_is(self) -> None:
        app = App("shop")
        app.relay("a", to="b")(shard(by="x"))
        app.relay("a", to="c")(chain(shard(by="x")))
        assert list(app.handlers) == ["shard", "chain"]


def read(app: App, *, headers: dict[str, Any], relays: bool = False) -> object:
    """Return what becomes of an order of the shop s1."""
    properties = {"message_id": "m1", "type": "order.placed", "application_headers": headers}
    body = b'{"shop": "s1"}'
    arrival = Arrival(None, 1, False, "qw.events", "order.placed", properties, body)
    shard = -1 if relays else 0
    channel = SimpleNamespace(shard=shard, queue="q", closed=False, relays=relays, feed=None)
    intake = Intake(app, Codec.of("shop", Settings()))
    return intake.read(Delivery(channel, 1, arrival), arrival)


@pytest.mark.parametrize(
    ("step", "key"),
    [
        (shard(by="shop"), "s1"),
        (chain(deduplicate(by="shop"), shard(by="shop")), "s1"),
        (shard(by="none"), "m1"),
        (chain(enrich(lambda payload: {"shop": "s2"}), shard(by="shop")), "m1"),
    ],
    ids=["shard", "behind deduplicate", "nothing there", "behind what may change it"],
)
def test_what_has_no_slot_goes_to_the_shard_of_the_key_that_the_relay_finds(
    step: Any, key: str
) -> None:
    assert read(app_with(step), headers={}, relays=True) == ToShard(key)


def test_a_body_is_not_decoded_for_handlers_that_do_not_ask() -> None:
    decoded: list[bytes] = []
    app = app_with(shard(by="order"))
    app.on(Placed, name="it")(lambda placed: None)
    app.on("order.#", name="audit")(lambda payload: None)
    for handler in app.handlers.values():
        spying = dataclasses.replace(handler, decode=lambda message: decoded.append(message.body))
        app.handlers[handler.name] = spying

    tasks = read(app, headers={"qw-key": "k"})

    assert isinstance(tasks, list)
    assert len(tasks) == 3
    assert decoded == []

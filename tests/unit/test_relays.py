"""Relays: what a function returns for a message is published, in order, under ids of its own."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from worker import App, Command, Context, Event, Relayed, RetryPolicy
from worker.dedup.base import record_ids
from worker.errors import ConfigurationError
from worker.ids import derived_id
from worker.testing import TestWorker, duplicate_everything

ONCE = RetryPolicy(attempts=1)


class Paid(Event, name="user.paid", key="user"):
    user: str
    amount: int = 1


class Booked(Event, name="booking.made", key="account"):
    account: str
    amount: int = 1


class Noted(Event, name="note.made"):
    amount: int


class Send(Command, name="mailer.send", to="mailer", key="user"):
    user: str


def relayed(relay: Any, *events: Event, source: Any = Paid, **facts: Any) -> Seen:
    """Return what ``relay`` made of ``events``."""
    app = App("bank")
    app.relay(source, **{"to": "copied.{name}", "name": "relay", "retry": ONCE, **facts})(relay)
    with TestWorker(app) as worker:
        for event in events or (Paid(user="u1"),):
            worker.publish(event)
        worker.run()
        return Seen(worker)


class Seen:
    """What is left of a worker when it is closed."""

    def __init__(self, worker: TestWorker) -> None:
        self.published = worker.published
        self.dead_letters = worker.dead_letters
        self.executed = worker.executed


def payloads(worker: Seen) -> list[Any]:
    return [seen.payload for seen in worker.published]


class TestWhatARelayMayReturn:
    def test_nothing_and_the_message_is_filtered(self) -> None:
        worker = relayed(
            lambda paid: {"amount": paid.amount} if paid.amount > 1 else None,
            Paid(user="u1", amount=1),
            Paid(user="u1", amount=2),
        )
        assert payloads(worker) == [{"amount": 2}]
        assert len(worker.executed) == 2
        assert worker.dead_letters == []

    @pytest.mark.parametrize(
        "several",
        [list, tuple, iter, lambda these: (this for this in these)],
        ids=["list", "tuple", "iterator", "generator"],
    )
    def test_several_in_order(self, several: Callable[[Any], Any]) -> None:
        worker = relayed(lambda paid: several([{"n": n} for n in range(4)]))
        assert payloads(worker) == [{"n": n} for n in range(4)]
        assert len({seen.message_id for seen in worker.published}) == 4

    def test_it_may_yield(self) -> None:
        def relay(paid: Paid) -> Iterator[dict[str, Any]]:
            yield {"n": 1}
            yield {"n": 2}

        assert payloads(relayed(relay)) == [{"n": 1}, {"n": 2}]

    def test_it_may_be_a_coroutine(self) -> None:
        async def relay(paid: Paid, ctx: Context) -> dict[str, Any]:
            await asyncio.sleep(0)
            return {"id": ctx.message_id}

        event = Paid(user="u1")
        assert payloads(relayed(relay, event)) == [{"id": event.event_id}]

    def test_it_may_be_a_coroutine_that_yields(self) -> None:
        async def relay(paid: Paid) -> AsyncIterator[dict[str, Any]]:
            for n in range(2):
                await asyncio.sleep(0)
                yield {"n": n}

        assert payloads(relayed(relay)) == [{"n": 0}, {"n": 1}]

    def test_it_may_be_a_class(self) -> None:
        class Relay:
            def __init__(self) -> None:
                self.seen = 0

            def handle(self, paid: Paid, ctx: Context) -> Iterator[dict[str, Any]]:
                self.seen += 1
                yield {"seen": self.seen}

        worker = relayed(Relay, Paid(user="u1"), Paid(user="u2"))
        assert payloads(worker) == [{"seen": 1}, {"seen": 2}]

    def test_what_came_is_sent_on_with_its_own_fields(self) -> None:
        assert payloads(relayed(lambda paid: paid)) == [{"user": "u1", "amount": 1}]

    def test_any_object_with_fields_will_do(self) -> None:
        point = dataclasses.make_dataclass("Point", [("x", int)])
        assert payloads(relayed(lambda paid: point(3))) == [{"x": 3}]

    @pytest.mark.parametrize(
        ("result", "says"),
        [
            (7, "int has none"),
            ("text", "str has none"),
            ({1, 2}, "set has none"),
            (Noted(amount=1), "returned Noted, and its relay says to='copied.{name}'"),
            (Relayed({}, name="user.paid"), "would come back to this relay"),
        ],
        ids=["number", "text", "set", "another event", "its own name"],
    )
    def test_anything_else_is_a_failure(self, result: Any, says: str) -> None:
        worker = relayed(lambda paid: result)
        assert worker.published == []
        assert says in worker.dead_letters[0].reason

    def test_nothing_is_published_where_it_fails_half_way(self) -> None:
        def relay(paid: Paid) -> Iterator[dict[str, Any]]:
            yield {"n": 1}
            raise ValueError("no")

        worker = relayed(relay)
        assert worker.published == []
        assert "ValueError: no" in worker.dead_letters[0].reason


class TestWhatIsPublished:
    def test_a_name_made_of_the_name_that_came(self) -> None:
        worker = relayed(
            lambda payload: payload, Paid(user="u1"), source="user.*", to="sharded.{name}"
        )
        assert [seen.name for seen in worker.published] == ["sharded.user.paid"]

    def test_a_class_by_instances_or_by_fields(self) -> None:
        def relay(paid: Paid) -> Iterator[Any]:
            yield Booked(account="a1")
            yield {"account": "a2", "amount": 5}

        worker = relayed(relay, to=Booked)
        assert [(s.name, s.key, s.payload["amount"]) for s in worker.published] == [
            ("booking.made", "a1", 1),
            ("booking.made", "a2", 5),
        ]

    def test_fields_that_a_class_has_not_are_told(self) -> None:
        worker = relayed(lambda paid: paid, to=Booked)
        assert "unexpected keyword argument 'user'" in worker.dead_letters[0].reason

    def test_a_command(self) -> None:
        worker = relayed(lambda paid: {"user": paid.user}, to=Send)
        assert [(s.name, s.key) for s in worker.published] == [("mailer.send", "u1")]

    def test_the_key_is_its_own_or_what_the_relay_says_or_that_of_the_source(self) -> None:
        def relay(paid: Paid) -> Iterator[Any]:
            yield Relayed(Booked(account="a1"), key="said")
            yield Booked(account="a1")

        assert [seen.key for seen in relayed(relay, to=Booked).published] == ["said", "a1"]
        assert [seen.key for seen in relayed(lambda _: {"amount": 1}, to=Noted).published] == ["u1"]
        assert [seen.key for seen in relayed(lambda paid: {}).published] == ["u1"]

    def test_a_message_without_a_key_makes_one_without(self) -> None:
        worker = relayed(lambda payload: payload, Noted(amount=1), source=Noted)
        assert [seen.key for seen in worker.published] == [None]

    def test_headers_that_it_says_but_none_of_the_runtime(self) -> None:
        def relay(paid: Paid, ctx: Context) -> Relayed:
            return Relayed({}, name="other", headers={**ctx.headers, "x-tenant": "t"})

        event = Paid(user="u1")
        (seen,) = relayed(relay, event).published
        assert seen.name == "other"
        assert seen.headers["x-tenant"] == "t"
        assert seen.headers["qw-key"] == "u1"
        assert seen.headers["qw-causation-id"] == event.event_id

    def test_the_time_is_that_of_what_came(self) -> None:
        event = Paid(user="u1")
        for to, fields in (("copied.{name}", {}), (Noted, {"amount": 1})):
            (seen,) = relayed(lambda paid, fields=fields: fields, event, to=to).published
            assert seen.message is not None
            assert seen.message.timestamp == event.timestamp

    def test_a_key_that_is_no_text_is_told_where_it_is_said(self) -> None:
        key: Any = 7
        with pytest.raises(TypeError, match="key=7"):
            Relayed({}, key=key)


class TestASecondExecution:
    def test_it_publishes_the_same_ids_derived_from_the_one_that_came(self) -> None:
        app = App("bank")
        app.relay(Paid, to="copied", name="relay")(lambda paid: [{"n": 1}, {"n": 2}])
        with TestWorker(app) as worker:
            event = Paid(user="u1")
            worker.publish(event)
            worker.run()
            first = [seen.message_id for seen in worker.published]
            worker.store.forget([record_ids("bank.relay")(event.event_id)])
            worker.publish(event)
            worker.run()

            assert len(worker.executed) == 2
            assert [seen.message_id for seen in worker.published] == first
        assert first == [derived_id(event.event_id, "bank.relay", n) for n in (0, 1)]

    def test_a_consumer_of_what_it_publishes_sees_each_once(self) -> None:
        app = App("bank")
        seen: list[int] = []
        app.relay(Paid, to=Noted, name="relay")(lambda paid: {"amount": paid.amount})
        app.on(Noted, name="note")(lambda noted: seen.append(noted.amount))
        app.use(duplicate_everything)
        with TestWorker(app) as worker:
            for amount in range(3):
                worker.publish(Paid(user="u1", amount=amount))
            worker.run()
        assert seen == [0, 0, 1, 1, 2, 2]  # each handler is run twice by the middleware: once each

    def test_once_would_lose_what_it_returns_and_is_refused(self) -> None:
        def relay(paid: Paid, ctx: Context) -> dict[str, Any]:
            connection: Any = None
            ctx.once(connection)
            return {}

        worker = relayed(relay)
        assert "is a relay and calls context.once" in worker.dead_letters[0].reason


class TestAHandlerThatPublishes:
    """``Context.publish`` takes what a relay returns: there is one way for both."""

    def test_it_may_say_key_and_headers_and_the_name_of_a_plain_payload(self) -> None:
        app = App("bank")

        @app.on(Paid)
        def handle(paid: Paid, ctx: Context) -> None:
            ctx.publish(Relayed(Noted(amount=1), key="k1", headers={"x-a": 1}))
            ctx.publish(Relayed({"n": 1}, name="plain", key="k2"))

        with TestWorker(app) as worker:
            worker.publish(Paid(user="u1"))
            worker.run()
            assert [(s.name, s.key) for s in worker.published] == [
                ("note.made", "k1"),
                ("plain", "k2"),
            ]
            assert worker.published[0].headers["x-a"] == 1

    @pytest.mark.parametrize(
        ("said", "says"),
        [
            (Relayed({"n": 1}), "dict is not an Event or a Command"),
            (Relayed(Noted), "Noted is a class; publish an instance of it"),
            (Relayed(Noted(amount=1), name="other"), "has a name, and is to be published as"),
        ],
    )
    def test_what_has_no_name_or_two_is_a_failure(self, said: Relayed, says: str) -> None:
        app = App("bank")
        app.on(Paid, name="handle", retry=ONCE)(lambda paid, ctx: ctx.publish(said))
        with TestWorker(app) as worker:
            worker.publish(Paid(user="u1"))
            worker.run()
            assert says in worker.dead_letters[0].reason


class TestOrder:
    def test_each_key_keeps_its_order_also_through_retries(self) -> None:
        app = App("bank")

        @app.relay(Paid, to=Booked, retry=RetryPolicy(attempts=3, first_wait=1.0))
        def book(paid: Paid, ctx: Context) -> Booked:
            if paid.amount % 3 == 0 and ctx.attempt == 1:
                raise TimeoutError("not yet")
            return Booked(account=paid.user, amount=paid.amount)

        with TestWorker(app) as worker:
            for amount in range(10):
                for user in "abc":
                    worker.publish(Paid(user=user, amount=amount))
            worker.run()

            for user in "abc":
                amounts = [s.payload["amount"] for s in worker.published if s.key == user]
                assert amounts == list(range(10))


class TestWhatCannotBeMeant:
    @pytest.mark.parametrize(
        ("source", "to"),
        [
            (Paid, Paid),
            (Paid, "user.paid"),
            ("user.*", Paid),
            ("#", "sharded.{name}"),
            ("#.paid", "sharded.{name}"),
            ("*", "copy-{name}"),
            ("user.#", "{name}.copied"),
            ("*.*", "a.b"),
            ("user.paid", "{name}"),
        ],
    )
    def test_what_would_come_back_for_ever(self, source: Any, to: Any) -> None:
        with pytest.raises(ConfigurationError, match="would come to it again, without end"):
            App("bank").relay(source, to=to)(lambda event: event)

    @pytest.mark.parametrize(
        ("source", "to"),
        [
            ("user.*", "sharded.{name}"),
            ("*", "sharded.{name}"),
            ("user.*", Booked),
            ("#", Send),
            ("user.#", "users"),
        ],
    )
    def test_what_goes_elsewhere_is_taken(self, source: Any, to: Any) -> None:
        App("bank").relay(source, to=to)(lambda event: event)

    @pytest.mark.parametrize(
        ("to", "says"),
        [
            (None, "says no to="),
            (7, "an Event or Command class, or a name"),
            ("a.*", "a name, in which {name} stands"),
            ("a.{key}", "a name, in which {name} stands"),
            ("a b", "white space"),
        ],
    )
    def test_a_to_that_is_none(self, to: Any, says: str) -> None:
        with pytest.raises(ConfigurationError, match=says):
            App("bank").relay(Paid, to=to)(lambda event: event)

    def test_two_of_one_name(self) -> None:
        app = App("bank")
        app.on(Paid, name="it")(lambda event: None)
        with pytest.raises(ConfigurationError, match="two handlers are named 'it'"):
            app.relay(Paid, to="copied", name="it")(lambda event: event)

    def test_a_plain_function_that_returns_a_coroutine(self) -> None:
        async def later() -> dict[str, Any]:
            return {}

        worker = relayed(lambda paid: later())
        assert "make it 'async def'" in worker.dead_letters[0].reason

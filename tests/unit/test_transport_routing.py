"""Where messages go: every type of exchange, and exchanges behind exchanges."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.routing import topic_matches, topic_words
from worker.sharding.ring import Ring
from worker.transport.routing import (
    DEFAULT_ROUTER,
    Binding,
    Destination,
    Found,
    hash_weight,
    make_router,
    resolve,
    trace,
)


def queue(name: str, key: str = "", **arguments: Any) -> Binding:
    return Binding(Destination(name, is_queue=True), key, arguments)


def exchange(name: str, key: str = "", **arguments: Any) -> Binding:
    return Binding(Destination(name, is_queue=False), key, arguments)


def matched(
    type_: str,
    bindings: list[Binding],
    key: str = "",
    arguments: Mapping[str, Any] | None = None,
    **properties: Any,
) -> set[str]:
    found = list(make_router(type_, arguments or {}, bindings).match(key, properties))
    assert len(found) == len(set(found)), "a destination is named once"
    return {destination.name for destination in found}


class Broker:
    """A few exchanges, routed as the broker does it."""

    def __init__(self, **exchanges: tuple[str, list[Binding]]) -> None:
        self.alternates: dict[str, str] = {}
        self.exchanges = exchanges

    def find(self, name: str) -> Found | None:
        if not name:
            return Found(DEFAULT_ROUTER, None)
        if name not in self.exchanges:
            return None
        type_, bindings = self.exchanges[name]
        return Found(make_router(type_, {}, bindings), self.alternates.get(name))

    def queues(self, exchange: str, key: str = "", **properties: Any) -> list[str]:
        route = trace(exchange, key, self.find)
        return sorted(resolve(route, key, properties, self.find))


def test_direct_takes_the_very_key() -> None:
    bindings = [queue("a", "x"), queue("b", "x"), queue("c", "y"), queue("a", "x")]
    assert matched("direct", bindings, "x") == {"a", "b"}
    assert matched("direct", bindings, "X") == set()


def test_fanout_takes_everything() -> None:
    assert matched("fanout", [queue("a", "x"), queue("a", "y"), queue("b")], "z") == {"a", "b"}


@pytest.mark.parametrize(
    ("pattern", "key", "fits"),
    [
        ("user.deposited", "user.deposited", True),
        ("user.*", "user.deposited", True),
        ("user.*", "user", False),
        ("user.*", "user.deposited.twice", False),
        ("user.#", "user", True),
        ("user.#", "user.deposited.twice", True),
        ("#", "", True),
        ("#", "a.b.c", True),
        ("*", "", False),
        ("*", "a", True),
        ("#.deposited", "deposited", True),
        ("#.deposited", "a.b.deposited", True),
        ("#.b.#", "a.b.c", True),
        ("#.b.#", "a.c", False),
        ("*.#.*", "a", False),
        ("*.#.*", "a.b", True),
        ("a..b", "a..b", True),
        ("a.*.b", "a..b", True),
        ("", "", True),
        ("", "a", False),
        ("us*", "user", False),
    ],
)
def test_topic_patterns(pattern: str, key: str, *, fits: bool) -> None:
    assert topic_matches(topic_words(pattern), topic_words(key)) is fits
    assert matched("topic", [queue("a", pattern)], key) == ({"a"} if fits else set())


def as_expression(pattern: str) -> str:
    """The same pattern for the regular expression engine; every word ends with a dot."""
    parts = {"#": r"(?:[^.]*\.)*", "*": r"[^.]*\."}
    return "".join(parts.get(word, re.escape(word) + r"\.") for word in topic_words(pattern))


words = st.lists(st.sampled_from(["a", "b", "", "*", "#"]), max_size=6)


@given(words, st.lists(st.sampled_from(["a", "b", ""]), max_size=6))
def test_topics_agree_with_regular_expressions(pattern: list[str], key: list[str]) -> None:
    pattern_text, key_text = ".".join(pattern), ".".join(key)
    dotted = "".join(f"{word}." for word in topic_words(key_text))
    expected = re.fullmatch(as_expression(pattern_text), dotted) is not None
    assert topic_matches(topic_words(pattern_text), topic_words(key_text)) is expected


def test_many_wildcards_take_no_time() -> None:
    assert not topic_matches(["#"] * 200 + ["z"], ["a"] * 200)


@pytest.mark.parametrize(
    ("wanted", "headers", "fits"),
    [
        ({"x-match": "all", "a": 1, "b": "x"}, {"a": 1, "b": "x", "c": 0}, True),
        ({"x-match": "all", "a": 1, "b": "x"}, {"a": 1}, False),
        ({"a": 1}, {"a": 1}, True),
        ({"a": 1}, {"a": 2}, False),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": None}, {"a": "anything"}, True),
        ({"a": None}, {"a": None}, True),
        ({"a": None}, {"b": 1}, False),
        ({"x-match": "any", "a": 1, "b": 2}, {"b": 2}, True),
        ({"x-match": "any", "a": 1, "b": 2}, {"b": 3}, False),
        ({"x-match": "any", "a": None}, {"a": 0}, True),
        ({"x-match": "any"}, {"a": 0}, False),
        ({"x-match": "all"}, {}, True),
        ({"x-match": "all", "x-tag": 1}, {}, True),
        ({"x-match": "all-with-x", "x-tag": 1}, {}, False),
        ({"x-match": "any-with-x", "x-tag": 1}, {"x-tag": 1}, True),
    ],
)
def test_headers(wanted: dict[str, Any], headers: dict[str, Any], *, fits: bool) -> None:
    bindings = [Binding(Destination("a", is_queue=True), "", wanted)]
    found = matched("headers", bindings, application_headers=headers)
    assert found == ({"a"} if fits else set())


def test_headers_of_a_message_that_has_none() -> None:
    assert matched("headers", [queue("a", k=1)]) == set()


SHARDS = [queue(f"s{number}", "10") for number in range(4)]
RING = Ring({f"s{number}": 10 for number in range(4)})


def test_consistent_hash_spreads_by_the_ring_of_the_queues() -> None:
    for number in range(50):
        key = f"user-{number}"
        assert matched("x-consistent-hash", SHARDS, key) == {RING.lookup(key)}
        assert matched(
            *("x-consistent-hash", SHARDS, "same", {"hash-header": "qw-key"}),
            application_headers={"qw-key": key},
        ) == {RING.lookup(key)}
        assert matched(
            *("x-consistent-hash", SHARDS, "same", {"hash-property": "correlation_id"}),
            correlation_id=key,
        ) == {RING.lookup(key)}


def test_consistent_hash_falls_back_to_the_message_id_then_to_the_routing_key() -> None:
    by_header = {"hash-header": "qw-key"}
    assert matched("x-consistent-hash", SHARDS, "rk", by_header, message_id="m7") == {
        RING.lookup("m7")
    }
    assert matched("x-consistent-hash", SHARDS, "rk", by_header) == {RING.lookup("rk")}
    by_type = {"hash-header": "qw-key", "hash-fallback": "type"}
    assert matched("x-consistent-hash", SHARDS, "rk", by_type, message_id="m7", type="t") == {
        RING.lookup("t")
    }


def test_consistent_hash_takes_any_value_and_any_destination() -> None:
    arguments = {"hash-header": "n"}
    assert matched("x-consistent-hash", SHARDS, "", arguments, application_headers={"n": 7}) == {
        RING.lookup("7")
    }
    assert matched("x-consistent-hash", [exchange("e", "1")], "x") == {"e"}
    assert matched("x-consistent-hash", [], "x") == set()


@pytest.mark.parametrize("key", ["", "0", "-1", "1.5", "ten", "\u0661"])
def test_a_weight_is_a_whole_number(key: str) -> None:
    with pytest.raises(ValueError, match="weight"):
        hash_weight(key)


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(ValueError, match="x-delayed-message"):
        make_router("x-delayed-message", {}, [])


def test_exchanges_behind_exchanges_reach_a_queue_once() -> None:
    broker = Broker(
        events=("topic", [exchange("a", "user.*"), exchange("b", "#"), queue("q", "user.x")]),
        a=("fanout", [queue("q"), queue("qa")]),
        b=("direct", [queue("q", "user.x"), queue("qb", "user.x"), queue("never", "other")]),
    )
    assert broker.queues("events", "user.x") == ["q", "qa", "qb"]
    assert broker.queues("events", "other") == ["never"]


def test_circles_end() -> None:
    broker = Broker(
        a=("fanout", [exchange("b"), exchange("a"), queue("qa")]),
        b=("headers", [exchange("a"), exchange("c"), queue("qb")]),
        c=("headers", [exchange("b"), queue("qc")]),
    )
    assert broker.queues("a") == broker.queues("b") == broker.queues("c") == ["qa", "qb", "qc"]


def test_an_alternate_exchange_has_what_nothing_took() -> None:
    broker = Broker(
        main=("direct", [queue("q", "known")]),
        rest=("fanout", [queue("lost-and-found")]),
        picky=("headers", [queue("q2", kind="x")]),
    )
    broker.alternates = {"main": "picky", "picky": "rest"}
    assert broker.queues("main", "known") == ["q"]
    assert broker.queues("main", "new", application_headers={"kind": "x"}) == ["q2"]
    assert broker.queues("main", "new") == ["lost-and-found"]
    broker.alternates["picky"] = "gone"
    assert broker.queues("main", "new") == []
    broker.alternates["picky"] = ""
    assert broker.queues("main", "new") == ["new"], "the default exchange, by the queue's name"


def test_a_route_decides_by_key_what_it_can() -> None:
    broker = Broker(
        events=("topic", [exchange("h", "#"), queue("all", "#")]),
        h=("headers", [queue("tagged", tag=None)]),
    )
    route = trace("events", "k", broker.find)
    assert route.queues == ("all",)
    assert len(route.undecided) == 1
    assert broker.queues("events", "k") == ["all"]
    assert broker.queues("events", "k", application_headers={"tag": 1}) == ["all", "tagged"]

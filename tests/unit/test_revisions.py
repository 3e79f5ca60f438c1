"""Handlers with revisions: what comes too late has no effect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypedDict

import attrs
import msgspec
import orjson
import pydantic
import pytest

from revised import WAIT, Price, Shop, counted, publish, reasons
from worker import App, Context, Event, Reject, Revisions
from worker.again import replay_headers
from worker.assembly import check_store
from worker.errors import ConfigurationError
from worker.testing import TestWorker


@pytest.fixture(params=[1, 16], ids=["one by one", "together"])
def settings(request: pytest.FixtureRequest) -> Mapping[str, Any]:
    return {"concurrency": request.param}


@pytest.mark.parametrize("at_once", [True, False])
def test_what_is_not_above_the_last_revision_has_no_effect(
    settings: Mapping[str, Any], *, at_once: bool
) -> None:
    shop = Shop(**settings)
    with TestWorker(shop.app) as worker:
        for revision in (3, 2, 3, 5, 4, 5, 6, 1):
            publish(worker, revision)
            if not at_once:
                worker.run()
        worker.run()

        assert shop.revisions() == [3, 5, 6]
        assert counted(worker) == (5, 0)
        assert reasons(worker) == []


def test_keys_and_handlers_have_revisions_of_their_own() -> None:
    shop = Shop()
    every: list[int] = []
    shop.app.on(Price, name="every")(lambda event: every.append(event.revision))
    with TestWorker(shop.app) as worker:
        publish(worker, 2, 1)
        publish(worker, 1, article="ink")
        worker.run()

        assert shop.seen == [("pen", 2), ("ink", 1)]
        assert every == [2, 1, 1]


def test_revisions_survive_a_restart_and_outlive_the_ids() -> None:
    shop = Shop()
    with TestWorker(shop.app) as worker:
        publish(worker, 7)
        worker.run()
        worker.drain()
        worker.clock.advance(4 * worker.settings.retention)
        publish(worker, 7, 6)
        worker.run()
        assert shop.revisions() == [7]

        worker.clock.advance(worker.settings.revision_retention)
        publish(worker, 1)
        worker.run()
        assert shop.revisions() == [7, 1]


def test_a_revision_that_failed_is_tried_again_and_keeps_the_next_ones_waiting() -> None:
    shop = Shop()
    failures = iter([ValueError("not yet"), ValueError("not yet")])

    def fail(event: Price, _: Context) -> None:
        if event.revision == 1 and (error := next(failures, None)):
            raise error

    shop.meanwhile = fail
    with TestWorker(shop.app) as worker:
        publish(worker, 1, 1, 2)
        worker.run()
        assert shop.revisions() == [1, 2]


def test_a_dead_letter_is_not_done_and_is_superseded_once_its_successor_is() -> None:
    shop = Shop()

    def refuse(event: Price, _: Context) -> None:
        if event.revision == 2:
            raise Reject("no")

    shop.meanwhile = refuse
    with TestWorker(shop.app) as worker:
        publish(worker, 1, 2)
        worker.run()
        shop.meanwhile = lambda *_: None
        publish(worker, 2)
        worker.run()
        assert shop.revisions() == [1, 2]
        publish(worker, 3, 2)
        worker.run()
        assert shop.revisions() == [1, 2, 3]


def test_what_is_published_counts_before_its_successors_are_judged() -> None:
    class Told(Event, name="told"):
        """One."""

    shop = Shop()
    told: list[str] = []
    shop.app.on(Told, name="told")(lambda event: told.append(event.event_id))

    def tell(_: Price, context: Context) -> None:
        context.publish(Told())

    shop.meanwhile = tell
    with TestWorker(shop.app) as worker:
        publish(worker, 1, 1, 2, 2)
        worker.run()
        assert shop.revisions() == [1, 2]
        assert len(told) == 2


# Where revisions are


def read(by: Any, payload: dict[str, Any], headers: dict[str, Any], key: str | None = "k") -> Any:
    """Return what a handler of plain payloads gets, and the reasons of dead letters."""
    app = App("shop")
    seen: list[Any] = []
    app.on("any.*", name="any", revision=by)(seen.append)
    with TestWorker(app) as worker:
        body = orjson.dumps(payload)
        worker.publish_raw(body, name="any.one", id="1", key=key, headers=headers)
        worker.run()
        return len(seen), [letter.reason for letter in worker.dead_letters]


@pytest.mark.parametrize(
    ("by", "payload", "headers"),
    [
        ("revision", {"revision": 3}, {}),
        ("meta.version", {"meta": {"version": 3}}, {}),
        ("revision", {}, {"qw-revision": 3}),
        ("revision", {"revision": None}, {"qw-revision": 3}),
        (lambda event: int(event["v"].removeprefix("v")), {"v": "v3"}, {}),
        (lambda event: None, {}, {}),
        ("revision", {"revision": None}, {}),
    ],
)
def test_a_revision_is_found(by: Any, payload: dict[str, Any], headers: dict[str, Any]) -> None:
    assert read(by, payload, headers) == (1, [])


@pytest.mark.parametrize(
    ("by", "payload", "headers", "key", "reason"),
    [
        ("revision", {}, {}, "k", "it has no revision, neither as 'revision' in its payload nor"),
        ("revision", {"revision": "3"}, {}, "k", "its revision is '3'; it must be an integer"),
        ("revision", {"revision": -1}, {}, "k", "its revision is -1; it must be an integer"),
        ("revision", {"revision": True}, {}, "k", "its revision is True; it must be an integer"),
        ("revision", {"revision": 2**63}, {}, "k", "its revision is 9223372036854775808; it must"),
        ("revision", {"revision": 3}, {}, None, "it has revision 3 and no key that tells of what"),
        (lambda event: event["v"], {}, {}, "k", "its revision: KeyError: 'v'"),
    ],
)
def test_what_has_no_revision_is_a_dead_letter(
    by: Any, payload: dict[str, Any], headers: dict[str, Any], key: str | None, reason: str
) -> None:
    seen, found = read(by, payload, headers, key)
    assert seen == 0
    assert [text.startswith(reason) for text in found] == [True], found


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"gap": "later"}, "gap='later'"),
        ({"then": "wait"}, "then='wait'"),
        ({"limit": 0}, "limit=0"),
        ({"limit": float("inf")}, "limit=inf"),
        ({"by": "a..b"}, "'a..b'"),
        ({"by": 3}, "3"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match="Revisions") as raised:
        Revisions(**{"by": "revision", **given})
    assert told in str(raised.value)


def handler_of(kind: Any, revision: Any) -> None:
    App("shop").on(kind, revision=revision)(print)


def test_a_mistake_in_a_registration_is_told() -> None:
    class Keyless(Event, name="keyless"):
        """It has no key."""

        revision: int

    mistakes: Iterator[tuple[Any, Any, str]] = iter(
        [
            (Price, "version", "'version' is no field of price.changed"),
            (Keyless, "revision", "revision= needs a key, and keyless has none"),
            (Price, 3, "a field of the payload"),
        ]
    )
    for kind, revision, told in mistakes:
        with pytest.raises(ConfigurationError) as raised:
            handler_of(kind, revision)
        assert told in str(raised.value)


@dataclass
class Version:
    """What a foreign publisher sends, as a dataclass; the others are the same."""

    article: str
    revision: int
    meta: dict[str, int]

    @property
    def number(self) -> int:
        """A name that the payload does not have."""
        return self.revision


class VersionStruct(msgspec.Struct):
    article: str
    revision: int
    meta: dict[str, int]


class VersionDict(TypedDict):
    article: str
    revision: int
    meta: dict[str, int]


VersionAttrs = attrs.make_class("VersionAttrs", ["article", "revision", "meta"])
VersionModel = pydantic.create_model(
    "VersionModel", article=(str, ...), revision=(int, ...), meta=(dict[str, int], ...)
)


@pytest.mark.parametrize(
    "kind", [Version, VersionStruct, VersionDict, VersionAttrs, VersionModel], ids=str
)
def test_a_field_that_a_typed_payload_does_not_have_is_told(kind: Any) -> None:
    for known in ("revision", "meta.version", lambda event: event.any):
        App("shop").on("any", type=kind, revision=known)(print)
    with pytest.raises(
        ConfigurationError, match=r"'verison' is no field of Version\w* \(article, "
    ):
        App("shop").on("any", type=kind, revision="verison")(print)


def test_what_may_be_there_is_not_refused() -> None:
    class Open(pydantic.BaseModel, extra="allow"):
        """It takes what comes."""

    for kind, name in ((Version, "number"), (Open, "revision"), (dict, "revision"), (Any, "a")):
        App("shop").on("any", type=kind, revision=name)(print)


def test_a_class_names_a_field_that_it_has_and_a_key() -> None:
    with pytest.raises(ConfigurationError, match="revision='version' is none of its fields"):
        type("Wrong", (Event,), {"__annotations__": {"id": str}}, key="id", revision="version")
    with pytest.raises(ConfigurationError, match="needs key="):
        type("Wrong", (Event,), {"__annotations__": {"id": int}}, revision="id")


@pytest.mark.parametrize("value", [-1, True, "1", 2**63])
def test_a_publisher_sends_no_revision_that_is_none(value: Any) -> None:
    with TestWorker(Shop().app) as worker, pytest.raises(ValueError, match="its revision is"):
        worker.publish(Price(article="pen", revision=value))


@pytest.mark.parametrize("event_format", ["plain", "cloudevents"])
def test_a_class_with_a_revision_sends_it_in_a_header(event_format: str) -> None:
    shop = Shop(event_format=event_format)
    headers: list[Mapping[str, Any]] = []
    found: list[int] = []

    @shop.app.on("price.*", name="by_header", revision="version")
    def by_header(event: dict[str, Any], context: Context) -> None:
        headers.append(context.headers)
        found.append(event["revision"])

    with TestWorker(shop.app) as worker:
        publish(worker, 2, 1)
        worker.run()
    assert [each["qw-revision"] for each in headers] == [2]
    assert found == shop.revisions() == [2]


def test_a_store_that_keeps_no_revisions_is_refused_where_they_are_needed() -> None:
    class Old:
        tier = "told by the test"

    store: Any = Old()
    plain = App("plain")
    plain.on("any")(print)
    assert check_store(plain, store) is False
    with pytest.raises(ConfigurationError, match=r"shop\.note: revision= needs .*told by the test"):
        check_store(Shop().app, store)


@pytest.mark.parametrize(
    ("revision", "settings", "told"),
    [
        ("revision", {"revision_retention": 3600}, "remembered no longer than ids"),
        (Revisions("revision", gap="wait", limit=8e5), {}, "waits 800000 s for an earlier"),
        (
            Revisions("revision", gap="wait", limit=3600),
            {"broker": "amqp://localhost"},
            "waits 3600 s for an earlier revision",
        ),
    ],
)
def test_times_that_cannot_work_together_are_refused(
    revision: Any, settings: dict[str, Any], told: str
) -> None:
    app = Shop(revision, **settings).app
    with pytest.raises(ConfigurationError, match=told):
        app.topology(app.settings)


def test_what_is_to_be_done_again_has_revisions_of_its_own() -> None:
    shop = Shop(WAIT)
    with TestWorker(shop.app) as worker:
        publish(worker, 1, 2, 3)
        worker.run()
        for replay in ("r1", "r2"):
            headers = replay_headers(replay, [], again=True)
            for revision in (1, 3, 2, 3):
                worker.publish(Price(article="pen", revision=revision), headers=headers)
            worker.run()
        publish(worker, 3, 4)
        worker.run()

        assert shop.revisions() == [1, 2, 3] * 3 + [4]
        assert counted(worker) == (3, 2)


def test_a_replay_finds_superseded_what_was_done_later() -> None:
    shop = Shop()
    with TestWorker(shop.app) as worker:
        publish(worker, 3)
        headers = replay_headers("r1", [], again=False)
        worker.publish(Price(article="pen", revision=2), headers=headers)
        worker.run()

        assert shop.revisions() == [3]

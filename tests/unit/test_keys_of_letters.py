"""A message has one key, whoever is told of it, and a dead letter tells it without the app."""

from __future__ import annotations

from typing import Any

import pytest

from worker import App, Context, Event
from worker.again import replay_headers
from worker.aside import HANDLER
from worker.codec import Codec
from worker.deadletters import Box, Letter
from worker.testing import TestWorker
from worker.topology import dead_letter_queue


class Placed(Event, name="placed", key="customer"):
    """What a foreign publisher tells of."""

    customer: str


@pytest.mark.parametrize("key", [None, "c1"], ids=["in the payload", "in its header"])
def test_a_key_that_the_handlers_class_found_is_kept(key: str | None) -> None:
    app = App("shop")

    @app.on(Placed)
    def fail(_: Placed) -> None:
        raise ValueError("no")

    with TestWorker(app) as worker:
        worker.publish_raw(b'{"customer": "c1"}', name="placed", id="m1", key=key)
        worker.run()
        codec = Codec.of("shop", worker.settings)
        with Box(dead_letter_queue("shop"), codec, worker.settings) as box:
            (letter,) = box.read()
            assert letter.key == "c1"
            assert ("qw-dead-key" in letter.headers) is (key is None)
            returned = letter.back("", "somewhere", {})

    assert isinstance(letter, Letter)
    assert "qw-dead-key" not in returned.headers
    assert b"qw-dead-key" not in (returned.raw or b"")


#: For one of the handlers alone: a dead letter that returns, and a replay.
FOR_ONE: list[dict[str, Any]] = [
    {HANDLER: "second"},
    replay_headers("r1", ["second"], again=False),
]
RETURNS = pytest.mark.parametrize("headers", FOR_ONE, ids=["dead letter", "replay"])


@RETURNS
def test_what_returns_to_one_handler_has_the_key_that_the_class_of_another_finds(
    headers: dict[str, Any],
) -> None:
    app = App("shop")
    seen: list[tuple[str | None, int]] = []

    @app.on(Placed)
    def first(_: Placed) -> None: ...

    @app.on("placed", revision="revision")
    def second(event: dict[str, Any], context: Context) -> None:
        seen.append((context.key, event["revision"]))

    with TestWorker(app) as worker:
        for revision, facts in ((1, {}), (2, headers)):
            body = b'{"customer": "c1", "revision": %d}' % revision
            worker.publish_raw(body, name="placed", id=f"m{revision}", headers=facts)
        worker.run()
        assert [letter.reason for letter in worker.dead_letters] == []
    assert seen == [("c1", 1), ("c1", 2)]


@RETURNS
def test_what_returns_to_one_handler_waits_for_what_fails_before_it(
    headers: dict[str, Any],
) -> None:
    app = App("shop")
    seen: list[str] = []

    @app.on(Placed)
    def first(_: Placed) -> None: ...

    @app.on("placed")
    def second(_: dict[str, Any], context: Context) -> None:
        if context.message_id == "m1" and context.attempt == 1:
            raise ValueError("not yet")
        seen.append(context.message_id)

    with TestWorker(app) as worker:
        for id_, facts in (("m1", {}), ("m2", headers), ("m3", headers)):
            worker.publish_raw(b'{"customer": "c1"}', name="placed", id=id_, headers=facts)
        worker.run()
    assert seen == ["m1", "m2", "m3"]

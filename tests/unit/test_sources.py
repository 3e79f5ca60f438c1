"""Sources: what can be meant, and what becomes of what comes from them."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest

from worker import App
from worker.assembly import sourcing_of
from worker.errors import ConfigurationError
from worker.resharding import topology_of
from worker.sharding.generations import Generation
from worker.sources import moment_of
from worker.testing import TestWorker


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"queue": ""}, "have names"),
        ({"offset": "yesterday"}, "offset='yesterday'"),
        ({"offset": -1}, "offset=-1"),
        ({"offset": True}, "offset=True"),
        ({"offset": datetime(2026, 1, 1)}, "a datetime with a time zone"),  # noqa: DTZ001 - see there
        ({"declare": "lasting"}, "declare='lasting'"),
        ({"declare": "stream"}, "a stream needs an offset"),
        ({"declare": "exclusive", "offset": "first"}, "offset= is for streams"),
        ({"exchange": "partner"}, "say declare="),
        ({"queue": "q" * 256}, "no names of over 255 bytes"),
        ({"declare": "durable", "queue_arguments": {"x": {1, 2}}}, "AMQP has no such arguments"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: dict[str, Any], told: str) -> None:
    facts = {"queue": "theirs", **given}
    with pytest.raises(ConfigurationError, match=told):
        App("joins").source(**facts)


@pytest.mark.parametrize("offset", ["first", "last", "next", 0, 2**40, "7D", datetime.now(UTC)])
def test_a_stream_has_an_offset(offset: Any) -> None:
    App("joins").source("log", offset=offset)


@pytest.mark.parametrize(
    ("offset", "moment"),
    [
        ("next", 1_000_000),
        ("last", 1_000_000),
        ("7D", 1_000_000 - 7 * 86400),
        ("12h", 1_000_000 - 12 * 3600),
        ("100Y", 0),
        ("first", None),
        (5, None),
        (datetime.now(UTC), None),
        (None, None),
    ],
)
def test_what_means_another_place_each_time_is_turned_into_a_time(
    offset: Any, moment: int | None
) -> None:
    assert moment_of(offset, 1_000_000.9) == moment


def test_two_sources_have_two_names() -> None:
    app = App("joins")
    app.source("log", offset="first")
    with pytest.raises(ConfigurationError, match="two sources are named 'log'"):
        app.source("log", offset="next")
    app.source("log", offset="next", name="log from now on")


@pytest.mark.parametrize("offset", [None, "first"])
def test_a_queue_is_taken_from_by_one_source(offset: Any) -> None:
    app = App("joins")
    app.source("theirs")
    with pytest.raises(ConfigurationError, match="two sources take from this queue"):
        app.source("theirs", name="theirs again", offset=offset)


def make(seen: list[int]) -> App:
    app = App("joins")
    app.on("test.*", name="note")(lambda event: seen.append(event["n"]))
    return app


def test_a_test_stands_in_for_who_declares_an_exchange_of_somebody_else() -> None:
    seen: list[int] = []
    app = make(seen)
    app.bind(exchange="partner", routing_key="order.*", declare=False)
    with TestWorker(app) as worker:
        worker.publish_raw(
            b'{"n": 1}', name="test.event", id="1", exchange="partner", routing_key="order.new"
        )
        worker.run()
    assert seen == [1]


@pytest.mark.parametrize("declare", ["durable", "transient", "exclusive"])
def test_a_queue_is_taken_from_on_an_embedded_broker_too(declare: Any) -> None:
    seen: list[int] = []
    app = make(seen)
    app.source("mine", declare=declare)
    with TestWorker(app) as worker:
        worker.run()
        for n in range(3):
            worker.publish_raw(
                orjson.dumps({"n": n}),
                name="test.event",
                id=str(n),
                key="k",
                exchange="",
                routing_key="mine",
            )
        worker.run()
        assert seen == [0, 1, 2]
        assert worker.dead_letters == []


def test_what_cannot_be_read_of_a_queue_is_set_aside() -> None:
    seen: list[int] = []
    app = make(seen)
    app.source("mine", declare="durable")
    with TestWorker(app) as worker:
        worker.run()
        worker.publish_raw(b"{}", name="test.event", exchange="", routing_key="mine")
        worker.publish_raw(b"{}", name="other", id="2", exchange="", routing_key="mine")
        worker.run()
        assert seen == []
        assert [letter.reason[:18] for letter in worker.dead_letters] == [
            "it has no id (prop",
            "no handler of 'joi",
        ]


def test_a_stream_is_left_out_on_an_embedded_broker(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[int] = []
    app = make(seen)
    app.source("log", offset="first")
    with caplog.at_level(logging.WARNING), TestWorker(app) as worker:
        worker.publish_raw(b'{"n": 1}', name="test.event", id="1")
        worker.run()
    assert seen == [1]
    assert "the source 'log' is left out" in caplog.text


def test_a_store_that_keeps_no_revisions_cannot_remember_a_stream() -> None:
    class Old:
        tier = "told by the test"

    app = App("joins", broker="amqp://localhost")
    app.on("test.*")(print)
    app.source("log", offset="first")
    settings = app.settings
    topology = topology_of(app, settings, Generation(1, 1))
    store: Any = Old()
    with pytest.raises(ConfigurationError, match="this dedup store keeps none"):
        sourcing_of(app, settings, store, topology)

"""Publishers that are plain AMQP clients, in Python and in Node.js, are full citizens."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import pika
import pytest

from acceptance.apps.words import OneWord, TwoWords
from acceptance.conftest import Place
from acceptance.running import PATIENCE, Service, eventually, letters
from worker import App

Serve = Callable[..., Service]
NODE = Path(__file__).with_name("node")
JSON = "application/json"
CLOUDEVENT = "application/cloudevents+json"


@dataclass(frozen=True, slots=True)
class Plain:
    """A message as a client library without any convention sends it."""

    body: str
    message_id: str | None = None
    type: str | None = "user.deposited"
    content_type: str | None = JSON
    headers: Mapping[str, Any] = field(default_factory=dict)
    correlation_id: str | None = None
    timestamp: int | None = None


Publish = Callable[[str, Iterable[Plain]], None]


def deposit(number: int, account: str = "a", **facts: Any) -> Plain:
    body = json.dumps({"account": account, "amount": "12.50", "sequence": number})
    return Plain(body, message_id=f"{account}-{number}", **facts)


def publish_by_pika(amqp_url: str, messages: Iterable[Plain]) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    channel = connection.channel()
    channel.confirm_delivery()
    for message in messages:
        properties = pika.BasicProperties(
            message_id=message.message_id,
            type=message.type,
            content_type=message.content_type,
            headers=dict(message.headers) or None,
            correlation_id=message.correlation_id,
            timestamp=message.timestamp,
            delivery_mode=2,
        )
        channel.basic_publish("qw.events", "user.deposited", message.body.encode(), properties)
    connection.close()


@pytest.fixture(scope="session")
def node(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the publisher in Node.js and the one package that it needs."""
    folder = tmp_path_factory.mktemp("node")
    for name in ("package.json", "publish.js"):
        shutil.copy(NODE / name, folder)
    subprocess.run(
        ["npm", "install", "--no-audit", "--no-fund", "--no-package-lock", "--loglevel=error"],
        cwd=folder,
        check=True,
        timeout=PATIENCE,
    )
    return folder


def publish_by_node(folder: Path, amqp_url: str, messages: Iterable[Plain]) -> None:
    lines = []
    for message in messages:
        options = {
            "messageId": message.message_id,
            "type": message.type,
            "contentType": message.content_type,
            "headers": dict(message.headers),
            "correlationId": message.correlation_id,
            "timestamp": message.timestamp,
            "persistent": True,
        }
        given = {name: value for name, value in options.items() if value is not None}
        facts = {"exchange": "qw.events", "routingKey": "user.deposited", "body": message.body}
        lines.append(json.dumps({**facts, "options": given}))
    subprocess.run(
        ["node", "publish.js", amqp_url],
        cwd=folder,
        input="\n".join(lines),
        text=True,
        check=True,
        timeout=PATIENCE,
    )


@pytest.fixture(params=["pika", "node"])
def publish(request: pytest.FixtureRequest) -> Publish:
    """Publish by either client."""
    if request.param == "pika":
        return publish_by_pika
    folder: Path = request.getfixturevalue("node")
    return lambda url, messages: publish_by_node(folder, url, messages)


def received(service: Service) -> list[dict[str, Any]]:
    """Return what the typed handler got, in the order of its calls."""
    file = service.folder / "received"
    lines = file.read_text().splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


def heard(service: Service) -> list[str]:
    """Return the names that the handlers of the app ``words`` noted."""
    file = service.folder / "heard"
    return file.read_text().split() if file.exists() else []


def test_an_id_and_a_type_are_all_that_a_typed_handler_needs(
    servers: Place, serve: Serve, publish: Publish
) -> None:
    service = serve(servers, "foreign")
    service.start_ready("--shards", "2")

    trace = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}
    rich = deposit(2, headers=trace, correlation_id="story", timestamp=1_700_000_000)
    publish(servers.broker, [deposit(1), rich, deposit(1)])
    eventually(lambda: service.counter("acked") == 3, "all came")

    assert service.drain() == 0
    assert sorted(received(service), key=itemgetter("id")) == [
        {
            "id": "a-1",
            "type": "Decimal",
            "account": "a",
            "amount": "12.50",
            "sequence": 1,
            "timestamp": None,
            "key": "a",
            "correlation": "a-1",
            "trace": None,
        },
        {
            "id": "a-2",
            "type": "Decimal",
            "account": "a",
            "amount": "12.50",
            "sequence": 2,
            "timestamp": "2023-11-14T22:13:20+00:00",
            "key": "a",
            "correlation": "story",
            "trace": trace["traceparent"],
        },
    ]


@pytest.mark.parametrize("keyed", [True, False], ids=["header", "class"])
def test_the_key_orders_whether_it_is_in_the_header_or_found_by_the_class(
    servers: Place, serve: Serve, publish: Publish, keyed: bool
) -> None:
    service = serve(servers, "foreign")
    service.start_ready("--shards", "4")

    accounts = [f"account-{n}" for n in range(5)]
    publish(
        servers.broker,
        [
            deposit(number, account, headers={"qw-key": account} if keyed else {})
            for number in range(20)
            for account in accounts
        ],
    )
    eventually(lambda: len(received(service)) == 100, "all came")

    assert service.drain() == 0
    for account in accounts:
        own = [each for each in received(service) if each["account"] == account]
        assert [each["sequence"] for each in own] == [*range(20)]
        assert {each["key"] for each in own} == {account}


def test_a_name_that_lies_in_the_routing_key_is_kept_on_all_ways(
    servers: Place, serve: Serve
) -> None:
    service = serve(servers, "words", name_from="routing-key")
    service.start_ready("--shards", "4")

    bodies = ["{}", '{"fault": "once"}', '{"fault": "for ever"}']
    messages = [Plain(body, message_id=body, type=None) for body in bodies]
    publish_by_pika(servers.broker, messages)
    eventually(lambda: len(heard(service)) == 2, "one came again by a retry queue")
    eventually(service.dead_letters, "one is set aside")
    assert service.run("dlq", "replay").returncode == 0
    eventually(lambda: service.counter("dead_lettered") == 2, "it came back as the same")

    assert service.drain() == 0
    assert heard(service) == ["user.deposited"] * 2
    (letter,) = letters(servers.broker, "words.dlq")
    assert "it has a fault" in letter.reason


def test_a_pattern_of_one_word_takes_names_of_one_word_alone(servers: Place, serve: Serve) -> None:
    service = serve(servers, "words")
    service.start_ready("--shards", "4")

    app = App("publisher", broker=servers.broker)
    with app.publisher() as out:
        for event in (OneWord(key="a"), TwoWords(key="a"), OneWord(key="b")):
            out.publish(event)
    app.close()
    eventually(lambda: service.counter("acked") == 3, "all came")

    assert service.drain() == 0
    assert heard(service) == ["word", "word"]
    assert service.dead_letters() == []


def test_a_cloud_event_in_structured_mode_is_understood(
    servers: Place, serve: Serve, publish: Publish
) -> None:
    service = serve(servers, "foreign")
    service.start_ready()

    event = {
        "specversion": "1.0",
        "id": "ce-1",
        "source": "/shop",
        "type": "user.deposited",
        "time": "2024-02-03T04:05:06Z",
        "partitionkey": "b",
        "data": {"account": "b", "amount": "3"},
    }
    kinds = (CLOUDEVENT, f"{CLOUDEVENT}; charset=utf-8")
    messages = [Plain(json.dumps(event), type=None, content_type=kind) for kind in kinds]
    publish(servers.broker, messages)
    eventually(lambda: service.counter("acked") == 2, "both came")

    assert service.drain() == 0
    (got,) = received(service)
    assert (got["id"], got["account"], got["amount"], got["key"]) == ("ce-1", "b", "3", "b")
    assert got["timestamp"] == "2024-02-03T04:05:06+00:00"


def test_what_is_no_event_is_set_aside_with_its_reason(
    servers: Place, serve: Serve, publish: Publish
) -> None:
    service = serve(servers, "foreign")
    service.start_ready()

    good = deposit(1).body
    wrong = [
        (Plain(good), "it has no id (property:message_id)"),
        (Plain(good, message_id="1", type=None), "it has no name (property:type)"),
        (Plain(good, message_id="2", type="user.left"), "no handler of 'foreign' observes"),
        (Plain("{", message_id="3"), "the body is not JSON"),
        (Plain('{"account": "a"}', message_id="4"), "missing required field `amount`"),
        (Plain('{"account": 7, "amount": 1}', message_id="5"), "$.account"),
        (Plain("<a/>", message_id="6", content_type="text/xml"), "'text/xml' is not JSON"),
        (Plain("{}", type=None, content_type=CLOUDEVENT), "not a CloudEvent"),
    ]
    publish(servers.broker, [*(message for message, _ in wrong), deposit(9)])
    eventually(lambda: received(service), "the one that fits is handled")
    eventually(lambda: service.counter("dead_lettered") == len(wrong), "the others are set aside")

    assert service.drain() == 0
    assert [each["id"] for each in received(service)] == ["a-9"]
    found = {
        letter.raw.decode() + letter.id: letter for letter in letters(servers.broker, "foreign.dlq")
    }
    for message, reason in wrong:
        letter = found[message.body + (message.message_id or "")]
        assert reason in letter.reason

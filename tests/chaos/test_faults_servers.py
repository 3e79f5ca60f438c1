"""What is done to RabbitMQ and Redis happens to their clients, and is undone."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import pika
import pytest
import redis

from chaos.faults.outages import killed, stopped
from chaos.faults.rabbitmq import (
    close_connections,
    delete_queue,
    depths,
    queues,
    short_of_disk,
    short_of_memory,
)
from chaos.faults.redis import (
    busy,
    demoted,
    emptied,
    flush_scripts,
    out_of_memory,
    paused,
    without_replicas,
)
from chaos.faults.redis import close_connections as close_those_of_redis
from chaos.lines import Line
from processes import state_of
from servers import RabbitMQ, Redis, Server
from waiting import until

PATIENCE = 30.0
WRITE = "EVAL \"return redis.call('INCR', 'n')\" 0"


@pytest.mark.parametrize(
    ("fault", "state"),
    [(stopped, "away"), (killed, "away"), (Server.standing_still, "T")],
    ids=["", "kill", "hang"],
)
def test_a_server_that_was_away_has_its_data(
    redis_server: Redis,
    redis_url: str,
    fault: Callable[[Redis], AbstractContextManager[None]],
    state: str,
) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set("k", "v")
        with fault(redis_server):
            assert (state_of(redis_server.pid) if redis_server.pid else "away") == state

        assert client.get("k") == b"v"


def test_connections_that_an_operator_closes(rabbitmq: RabbitMQ, amqp_url: str) -> None:
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))

    close_connections(rabbitmq)

    with pytest.raises(pika.exceptions.ConnectionClosedByBroker, match="an operator"):
        connection.process_data_events(PATIENCE)


def test_a_queue_that_an_operator_deletes(rabbitmq: RabbitMQ, amqp_url: str) -> None:
    assert queues(rabbitmq, amqp_url) == []
    with pika.BlockingConnection(pika.URLParameters(amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for name in ("one", "other"):
            channel.queue_declare(name, durable=True)
        channel.basic_publish("", "one", b"hello")
    assert queues(rabbitmq, amqp_url) == ["one", "other"]

    assert delete_queue(rabbitmq, amqp_url, "one") == 1

    assert queues(rabbitmq, amqp_url) == ["other"]
    assert delete_queue(rabbitmq, amqp_url, "one") == -1


@pytest.mark.parametrize("kind", ["quorum", "classic"])
def test_what_a_queue_holds_is_what_waits_and_what_is_not_acknowledged(
    rabbitmq: RabbitMQ, amqp_url: str, kind: str
) -> None:
    assert depths(rabbitmq, amqp_url) == {}
    with pika.BlockingConnection(pika.URLParameters(amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        for name in ("one", "other"):
            channel.queue_declare(name, durable=True, arguments={"x-queue-type": kind})
        for _ in range(2):
            channel.basic_publish("", "one", b"hello")
        assert depths(rabbitmq, amqp_url) == {"one": 2, "other": 0}
        tag = channel.basic_get("one")[0].delivery_tag
        assert depths(rabbitmq, amqp_url) == {"one": 2, "other": 0}
        channel.basic_ack(tag)
        until(lambda: depths(rabbitmq, amqp_url) == {"one": 1, "other": 0})


@pytest.mark.parametrize("fault", [short_of_memory, short_of_disk])
def test_an_alarm_blocks_who_publishes(
    rabbitmq: RabbitMQ,
    amqp_url: str,
    fault: Callable[[RabbitMQ], AbstractContextManager[None]],
) -> None:
    with pika.BlockingConnection(pika.URLParameters(amqp_url)) as connection:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.queue_declare("box")
        publishing = threading.Thread(target=channel.basic_publish, args=("", "box", b"hello"))
        with fault(rabbitmq):
            publishing.start()
            state = partial(rabbitmq.eval, "rabbit_networking:connection_info_all([state]).")
            until(lambda: "blocked" in state(), message="it is blocked")
            assert publishing.is_alive()

        publishing.join(PATIENCE)
        assert channel.basic_get("box", auto_ack=True)[2] == b"hello"


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (out_of_memory, "-OOM"),
        (without_replicas, "-NOREPLICAS"),
        (demoted, "-READONLY"),
        (partial(demoted, stale=False), "-MASTERDOWN"),
        (busy, "-BUSY"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_redis_that_refuses(
    redis_server: Redis,
    redis_url: str,
    fault: Callable[[Redis], AbstractContextManager[None]],
    error: str,
) -> None:
    with Line(redis_url) as line:
        assert line.ask(WRITE) == ":1"
        with fault(redis_server):
            assert line.ask(WRITE).split()[0] == error

        assert line.ask(WRITE) == ":2"


def test_a_redis_that_keeps_writers_waiting(redis_server: Redis, redis_url: str) -> None:
    with Line(redis_url) as line, redis.Redis.from_url(redis_url) as reader:
        with paused(redis_server):
            line.say(WRITE)
            until(lambda: reader.info("clients")["blocked_clients"] == 1, message="it waits")
            assert reader.get("n") is None

        assert line.hear() == ":1"


def test_a_redis_that_forgets(redis_server: Redis, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set("k", "v")
        script = client.script_load("return 1")
        flush_scripts(redis_server)
        assert client.script_exists(script) == [False]
        assert client.get("k") == b"v"
        script = client.script_load("return 1")

        with emptied(redis_server):
            assert redis_server.pid is None

        assert client.get("k") is None
        assert client.script_exists(script) == [False]


def test_a_redis_whose_connections_are_closed(redis_server: Redis, redis_url: str) -> None:
    with Line(redis_url) as line:
        close_those_of_redis(redis_server)

        assert line.hear() == ""

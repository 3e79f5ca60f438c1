"""Whatever the catalog has can be made by its name, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from random import Random
from time import monotonic

import pika
import pytest
import redis

from chaos.faults.catalog import CATALOG, Excuse, Setting, possible
from chaos.faults.clock import Clock
from chaos.faults.disk import SmallDisk, can_mount
from chaos.faults.proxy import Proxy
from servers import RabbitMQ, Redis
from waiting import until

#: A start of RabbitMQ takes six seconds, and is what other tests see every time.
LONG = ("rabbitmq-stopped", "rabbitmq-killed")
NAMES = [pytest.param(n, marks=pytest.mark.long) if n in LONG else n for n in CATALOG]


@pytest.fixture
def setting(
    rabbitmq: RabbitMQ, amqp_url: str, redis_server: Redis, redis_url: str, tmp_path: Path
) -> Iterator[Setting]:
    with ExitStack() as stack:
        disk = stack.enter_context(SmallDisk(tmp_path / "disk")) if can_mount() else None
        yield Setting(
            random=Random(4711),
            rabbitmq=rabbitmq,
            broker=amqp_url,
            redis=redis_server,
            to_rabbitmq=[stack.enter_context(Proxy(amqp_url))],
            to_redis=[stack.enter_context(Proxy(redis_url))],
            clocks=[Clock(tmp_path / "clock")],
            redis_clock=Clock(tmp_path / "redis-clock"),
            disk=disk,
        )


def works(setting: Setting, redis_url: str) -> bool:
    """Tell whether everything can be written to, through the links."""
    (broker,), (store,) = setting.to_rabbitmq, setting.to_redis
    try:
        with redis.Redis.from_url(store.url_through(redis_url)) as client:
            client.eval("return redis.call('INCR', 'n')", 0)
        parameters = pika.URLParameters(broker.url_through(setting.broker))
        with pika.BlockingConnection(parameters) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            channel.queue_declare("box", durable=True)
            channel.basic_publish("", "box", b"hello")
        if setting.disk is not None:
            (setting.disk.folder / "file").write_bytes(bytes(10_000))
    except (redis.RedisError, pika.exceptions.AMQPError, OSError):
        return False
    clocks = [*setting.clocks, setting.redis_clock]
    return not any(clock.ahead for clock in clocks if clock)


@pytest.mark.parametrize("name", NAMES)
def test_a_trouble_comes_by_its_name_and_is_gone_when_the_test_fails(
    name: str, setting: Setting, redis_url: str
) -> None:
    if name.startswith("disk") and not can_mount():
        pytest.skip("a disk that is full needs privileges (root), not a server")
    assert name in possible(setting)
    assert works(setting, redis_url)

    since = monotonic()
    with pytest.raises(ZeroDivisionError), CATALOG[name].made(setting):
        raise ZeroDivisionError

    until(partial(works, setting, redis_url), CATALOG[name].longest, "all is as before")
    assert monotonic() - since < CATALOG[name].longest


def test_a_setting_has_the_troubles_of_what_is_there(tmp_path: Path) -> None:
    assert possible(Setting(random=Random(1))) == []
    assert possible(Setting(random=Random(1), clocks=[Clock(tmp_path / "clock")])) == [
        "clock-ahead",
        "clock-behind",
    ]


def test_what_may_lose_messages_is_told() -> None:
    assert [n for n, it in CATALOG.items() if it.excuse is Excuse.LOSS] == [
        "rabbitmq-queue-deleted"
    ]
    assert [n for n, it in CATALOG.items() if it.excuse is Excuse.AMNESIA] == ["redis-emptied"]

"""A service that reads a stream, and a queue, of somebody else, while its processes are killed."""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Iterable
from functools import partial

import orjson
import pika
import pytest

from acceptance.apps.events import Step
from acceptance.conftest import Place
from acceptance.running import STEP_FIELDS, Service, eventually

Serve = Callable[..., Service]
KEYS, EACH = 20, 150
TAKEN = "streamed.take"


def fill(amqp_url: str, queue: str, steps: Iterable[Step], *, is_stream: bool) -> set[str]:
    """Declare a queue and publish into it, as whom it belongs to."""
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    channel = connection.channel()
    channel.queue_declare(
        queue, durable=True, arguments={"x-queue-type": "stream"} if is_stream else None
    )
    channel.confirm_delivery()
    ids = set()
    for step in steps:
        body = orjson.dumps({name: getattr(step, name) for name in STEP_FIELDS})
        properties = pika.BasicProperties(message_id=step.event_id, type=step.name, delivery_mode=2)
        channel.basic_publish("", queue, body, properties, mandatory=True)
        ids.add(step.event_id)
    connection.close()
    return ids


def in_turn(prefix: str) -> Iterable[Step]:
    for sequence in range(EACH):
        for key in range(KEYS):
            yield Step(key=f"{prefix}-{key}", sequence=sequence, seconds=0.001)


def has_effects(service: Service, number: int) -> bool:
    return len(service.ledger.entries("effect")) >= number


@pytest.mark.parametrize("change", ["kill", pytest.param("reshard", marks=pytest.mark.long)])
def test_what_comes_from_sources_is_handled_once_and_in_order(
    servers: Place, serve: Serve, change: str
) -> None:
    ids = fill(servers.broker, "their.log", in_turn("log"), is_stream=True)
    ids |= fill(servers.broker, "their.queue", in_turn("queue"), is_stream=False)
    service = serve(servers, "streamed", claim_ttl=1, prefetch=20)
    service.start_ready("--shards", "4", "--processes", "2", "--concurrency", "4")

    chosen = random.Random(3)
    for part in range(1, 4):
        enough = len(ids) * part // 5
        eventually(partial(has_effects, service, enough), "it goes on")
        if change == "kill":
            os.kill(chosen.choice(service.processes()), signal.SIGKILL)
        elif part == 2:
            assert service.run("reshard", "--to", "6").returncode == 0
    eventually(lambda: service.ledger.has(ids, TAKEN), "all is handled")
    assert service.drain() == 0

    ledger = service.ledger
    assert {e.id for e in ledger.entries("effect")} == ids
    if change == "reshard":
        assert ledger.twice("effect") == {}
        assert ledger.disorder() == {}
        return
    for place, found in ledger.sequences().items():
        # A kill repeats what was not recorded, in order and to its end.
        last = -1
        for sequence in found:
            assert sequence <= last + 1, f"{place}: {sequence} comes after {last}"
            last = sequence
        assert last == EACH - 1

"""A header that RabbitMQ cannot read costs its message, no connection, and nothing beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from worker import Event
from worker.codec import Codec
from worker.config import Settings
from worker.errors import PublishRefused
from worker.transport.capabilities import connect
from worker.transport.inbound import release
from worker.transport.outbound import Outbound


class Deposited(Event, name="user.deposited"):
    user_id: str = ""


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "value"), [("rate", [float("nan")]), ("CC", "queue"), ("BCC", 1)], ids=str
)
def test_what_no_publisher_of_ours_has_made(amqp_url: str, name: str, value: object) -> None:
    """As a replay or an outbox may send it on."""
    codec = Codec.of("bank", Settings())
    connection = connect(amqp_url, heartbeat=10, timeout=10.0, name="test")
    outbound = Outbound(connection, amqp_url)
    messages = [replace(codec.encode(Deposited()), exchange="amq.topic") for _ in range(3)]
    headers = {**messages[1].headers, name: value}
    messages[1] = replace(messages[1], headers=headers)
    try:
        first, second, third = outbound.deliver(messages, timeout=20.0)
        assert (first, third) == (None, None)
        assert isinstance(second, PublishRefused)
        assert f"{name}" in str(second)
        assert "end the connection" in str(second)
    finally:
        release(connection)

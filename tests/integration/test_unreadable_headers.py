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
def test_a_number_that_is_not_finite(amqp_url: str) -> None:
    """As one that a replay or an outbox sends on, which no publisher of ours has made."""
    codec = Codec.of("bank", Settings())
    connection = connect(amqp_url, heartbeat=10, timeout=10.0, name="test")
    outbound = Outbound(connection, amqp_url)
    messages = [replace(codec.encode(Deposited()), exchange="amq.topic") for _ in range(3)]
    headers = {**messages[1].headers, "rate": [float("nan")]}
    messages[1] = replace(messages[1], headers=headers)
    try:
        first, second, third = outbound.deliver(messages, timeout=20.0)
        assert (first, third) == (None, None)
        assert isinstance(second, PublishRefused)
        assert "the header 'rate' is [nan]" in str(second)
    finally:
        release(connection)

"""Connecting to brokers that do not answer."""

from __future__ import annotations

import socket
import time

import pytest

from worker.errors import BrokerUnreachable
from worker.transport.capabilities import connect


def refused_url() -> str:
    """Return the URL of a port where nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return f"amqp://127.0.0.1:{sock.getsockname()[1]}/"


def test_a_port_that_refuses_is_told_at_once() -> None:
    begun = time.monotonic()
    with pytest.raises(BrokerUnreachable, match="refused"):
        connect(refused_url(), heartbeat=0, timeout=2, name="test")

    assert time.monotonic() - begun < 1


def test_every_url_is_tried_and_told_once() -> None:
    urls = [refused_url(), refused_url()]
    with pytest.raises(BrokerUnreachable) as caught:
        connect(";".join(urls), heartbeat=0, timeout=2, name="test")

    ports = [url.split(":")[2].strip("/") for url in urls]
    assert [str(caught.value).count(f":{port}/") for port in ports] == [1, 1]

"""Connecting to brokers that do not answer."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from worker import App
from worker.consumer import Consumer
from worker.errors import BrokerUnreachable
from worker.leases.base import lease_clock
from worker.transport.capabilities import connect
from worker.transport.inbound import Inbound


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


@pytest.fixture
def app() -> Iterator[App]:
    """One with a handler."""
    made = App("bank")
    made.on("user.deposited")(lambda _event: None)
    yield made
    made.close()


class Site:
    """A broker in a file, and a consumer that connects to it."""

    def __init__(self, app: App, folder: Path, **settings: Any) -> None:
        self.url = f"sqlite:///{folder}/broker.db"
        given = {"broker": self.url, "dedup": "memory://", "shards": 1, **settings}
        self.consumer = Consumer(app, app.configure(given))

    def queues(self) -> bool:
        """Tell whether the service's queue was declared."""
        connection = connect(self.url, heartbeat=0, timeout=5, name="test")
        try:
            connection.channel().queue_declare("bank.g1.0", passive=True)
        except connection.channel_errors:
            return False
        finally:
            connection.release()
        return True


def test_who_was_away_declares_nothing_until_it_is_trusted_again(app: App, tmp_path: Path) -> None:
    """The queues of the plan that it knew may have been removed meanwhile."""
    site = Site(app, tmp_path)
    assert not site.consumer.open(lease_clock() - 1)
    site.consumer.tick(0)
    assert not site.queues()
    assert not site.consumer.statistics()["connected"]

    site.consumer.trust(lease_clock() + 60)
    site.consumer.tick(0)
    assert site.queues()
    assert site.consumer.statistics()["connected"]
    site.consumer.close()


@pytest.mark.parametrize("again", [False, True])
def test_who_was_away_while_it_connected_declares_nothing(
    app: App, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    site = Site(app, tmp_path)
    trusted_until = lease_clock() + 60

    def connect_for_long(*args: Any, **options: Any) -> Any:
        connection = connect(*args, **options)
        monkeypatch.setattr("worker.executor.suspended", lambda: 1e6 + later)
        return connection

    later = lease_clock() - time.monotonic()
    if again:
        assert site.consumer.open(lease_clock() - 1) is False
        site.consumer.trust(trusted_until)
        monkeypatch.setattr("worker.link.connect", connect_for_long)
        site.consumer.tick(0)
    else:
        monkeypatch.setattr("worker.link.connect", connect_for_long)
        assert site.consumer.open(trusted_until) is False

    assert not site.queues()
    site.consumer.close()


def test_a_broker_that_is_away_at_the_start_is_told_whoever_is_trusted(
    app: App, tmp_path: Path
) -> None:
    site = Site(app, tmp_path, broker=refused_url(), connect_timeout=0.1)
    with pytest.raises(BrokerUnreachable):
        site.consumer.open(lease_clock() - 1)


def test_a_queue_that_does_not_answer_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = connect("memory://silent", heartbeat=0, timeout=1, name="test")

    def answer(_channel: Any, queue: str, **_options: object) -> None:
        if queue == "bank.g1.1":
            raise ConnectionResetError("reset by peer")

    monkeypatch.setattr(type(connection.default_channel), "basic_consume", answer)
    inbound = Inbound(connection, "memory://silent", 10)
    with pytest.raises(OSError, match=r"reset by peer, while 'bank\.g1\.1' was asked"):
        inbound.consume({0: "bank.g1.0", 1: "bank.g1.1", 2: "bank.g1.2"})

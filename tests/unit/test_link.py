"""The link: both connections, lost and made together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from worker import App
from worker.config import Settings
from worker.errors import BrokerUnreachable, PublishError
from worker.link import Link
from worker.message import Outgoing
from worker.telemetry import Telemetry
from worker.transport.outbound import Outbound


@pytest.fixture
def link(tmp_path: Path) -> Iterator[Link]:
    """One to a broker in a file, connected."""
    app = App("bank")
    app.on("user.deposited")(_handle)
    settings = Settings(broker=f"sqlite:///{tmp_path}/broker.db")
    link = Link(
        settings,
        topology=app.topology(settings),
        service=app.name,
        telemetry=Telemetry(),
        random=Random(1),
    )
    link.take((0,))
    link.open()
    yield link
    link.close()


def _handle(event: object) -> None:
    """Do nothing."""


@pytest.fixture
def ends_after_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the broker store what is published and then end the connection."""
    publish_batch = Outbound._publish_batch  # between two steps of it

    def publish_and_end(outbound: Outbound) -> None:
        publish_batch(outbound)
        raise OSError("the broker closed the connection")

    monkeypatch.setattr(Outbound, "_publish_batch", publish_and_end)


@pytest.mark.usefixtures("ends_after_writing")
def test_a_fate_that_was_known_when_the_link_broke_is_told(link: Link) -> None:
    fates: list[PublishError | None] = []
    link.send(Outgoing("", "bank.g1.0", b"{}", "m1", {}, {}, mandatory=True), fates.append)
    with pytest.raises(BrokerUnreachable) as caught:
        link.publish()

    link.drop(caught.value, time.monotonic())
    link.publish()

    assert fates == [None]
    assert link.outstanding == 0


def test_what_goes_once_is_forgotten_with_the_link(link: Link) -> None:
    fates: list[PublishError | None] = []
    link.drop(BrokerUnreachable("it went away"), time.monotonic())
    message = Outgoing("", "bank.g1.0", b"{}", "m1", {}, {}, mandatory=True)
    link.send(message, fates.append, again=False)
    assert link.outstanding == 0
    link.open()

    link.send(message, fates.append, again=False)
    link.drop(BrokerUnreachable("it went away again"), time.monotonic())
    link.open()
    link.publish()

    assert link.outstanding == 0
    assert fates == []


def vanish(*_: object, **__: object) -> None:
    raise AttributeError("'NoneType' object has no attribute 'write'")


def test_a_transport_that_vanishes_while_it_connects_is_a_broker_that_does_not_answer(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    link.close()
    monkeypatch.setattr("worker.link.declare", vanish)

    with pytest.raises(BrokerUnreachable):
        link.open()


def test_a_transport_that_vanishes_while_a_retry_queue_is_declared_ends_nothing(
    link: Link, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.retryqueues.declare_queue", vanish)

    assert link.declare_retry(1.0) is None

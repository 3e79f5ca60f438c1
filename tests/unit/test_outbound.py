"""The publishing connection: what was heard before it broke, and what it keeps."""

from __future__ import annotations

from collections.abc import Iterator
from struct import pack
from types import SimpleNamespace
from typing import Any, cast

import amqp
import kombu.connection
import pytest

from frames import BODY, HEADER, METHOD, Wire, frame, short
from worker.errors import BrokerUnreachable, Unroutable
from worker.message import Outgoing
from worker.transport.outbound import WINDOW, Outbound


def outgoing(number: int = 0) -> Outgoing:
    return Outgoing("", "q", b"{}", f"m{number}", {}, {}, mandatory=True)


def ack(tag: int) -> bytes:
    return frame(METHOD, 1, pack(">HHQB", 60, 80, tag, 0))


def back() -> bytes:
    """Return the frames of a message that no queue took."""
    method = pack(">HHH", 60, 50, 312) + short("NO_ROUTE") + short("") + short("q")
    return (
        frame(METHOD, 1, method)
        + frame(HEADER, 1, pack(">HHQH", 60, 0, 2, 0))
        + frame(BODY, 1, b"{}")
    )


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Wire() as wire:
        yield wire


@pytest.fixture
def outbound(wire: Wire) -> Outbound:
    """One that publishes into the wire."""
    channel = wire.connection.channels[1]
    channel.confirm_select = lambda: None
    connection = SimpleNamespace(
        channel=lambda: channel,
        connection=wire.connection,
        connection_errors=amqp.Connection.connection_errors,
        channel_errors=amqp.Connection.channel_errors,
    )
    wire.connection.frame_max = 128 * 1024
    return Outbound(cast("Any", connection), "amqp://nowhere")


def test_a_confirm_that_came_just_before_the_end_is_not_lost(
    wire: Wire, outbound: Outbound
) -> None:
    first, second = outgoing(1), outgoing(2)
    outbound.send([first, second])
    outbound.pump()
    wire.send(ack(1))
    wire.far.close()

    with pytest.raises(BrokerUnreachable):
        outbound.pump()

    assert outbound.decided() == [(first, None)]
    assert outbound.decided() == []
    assert outbound.unconfirmed() == [second]


def test_nothing_is_kept_of_a_message_that_came_back(wire: Wire, outbound: Outbound) -> None:
    outbound.send([outgoing(1), outgoing(2)])
    outbound.pump()
    wire.send(back() + ack(1) + back() + ack(2))

    fates = outbound.pump()

    assert [type(sent.error) for sent in fates] == [Unroutable, Unroutable]
    assert not outbound._returned  # what is kept shows nowhere else


def test_a_batch_that_was_stored_before_the_end_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    connection = kombu.connection.Connection(
        transport="worker.transport.memory:Transport", virtual_host=str(tmp_path)
    )
    outbound = Outbound(connection, "memory://")
    messages = [outgoing(number) for number in range(WINDOW + 1)]
    outbound.send(messages)
    answers: list[Any] = [[0], OSError("the disk is full")]

    def publish_many(_batch: object) -> list[int]:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return cast("list[int]", answer)

    monkeypatch.setattr(outbound._channel, "publish_many", publish_many)

    with pytest.raises(BrokerUnreachable):
        outbound.pump()

    (unroutable, *stored) = outbound.decided()
    assert isinstance(unroutable.error, Unroutable)
    assert [(sent.message, sent.error) for sent in stored] == [(m, None) for m in messages[1:-1]]
    assert outbound.unconfirmed() == messages[-1:]
    outbound.close()


def test_a_connection_that_cannot_be_used_is_let_go() -> None:
    collected = []

    def channel() -> None:
        raise AttributeError("'NoneType' object has no attribute 'write'")

    connection = SimpleNamespace(
        channel=channel,
        collect=lambda **_: collected.append(True),
        connection_errors=amqp.Connection.connection_errors,
        channel_errors=amqp.Connection.channel_errors,
    )

    with pytest.raises(BrokerUnreachable):
        Outbound(cast("Any", connection), "amqp://nowhere")

    assert collected == [True]

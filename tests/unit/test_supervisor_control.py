"""The pipe between supervisor and child: what one end says, the other hears, or is told apart."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress

import pytest

from worker.supervisor import control
from worker.supervisor.control import (
    Beat,
    Boot,
    Bury,
    ControlError,
    Drain,
    Dump,
    Fatal,
    Finished,
    Follow,
    Followed,
    Give,
    Given,
    Hello,
    Lose,
    Open,
    Ready,
    Step,
    Stepped,
    Stop,
    Take,
    Trust,
    decode,
    encode,
)
from worker.supervisor.pipe import Channel, ControlClosed

READY = Ready(1, 3)


@pytest.fixture
def pipe() -> Iterator[tuple[Channel, socket.socket]]:
    """One end as a channel, the other as a plain socket."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours), theirs


@pytest.mark.parametrize(
    "message",
    [
        Boot({"app": "handlers", "shards": 8}, 1),
        Hello(4711, "00ff", {"service": "bank"}),
        Fatal(3, "wrong\nin two lines"),
        Open('{"current": 1}', 7, 12.5),
        Ready(2, 7),
        Follow('{"current": 1}', 8),
        Followed(8),
        Followed(8, "the broker is away"),
        Step('{"current": 1}', 8),
        Stepped(8, False, "the broker is away"),
        Take([[0, 17], [2, 18]], 4711.25),  # type: ignore[list-item]  # JSON has no tuples
        Trust(4720.5),
        Give([0, 2]),
        Lose([1]),
        Given([0]),
        Beat({"idle": True, "received": 3}),
        Bury(["00ff"]),
        Dump(),
        Drain(24.5),
        Stop(),
        Finished("DRAINED"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_every_message_arrives_as_it_was_sent(message: control.Message) -> None:
    assert decode(encode(message)) == message


@pytest.mark.parametrize(
    "line", [b"\xff", b"[]", b"{}", b'{"kind": "shout"}', b'{"kind": "drain", "minutes": 3}', b"1"]
)
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(ControlError):
        decode(line)


def test_messages_that_arrive_in_pieces_or_together_are_taken_apart(
    pipe: tuple[Channel, socket.socket],
) -> None:
    channel, peer = pipe
    lines = encode(READY) + encode(Dump())

    peer.send(lines[:5])
    assert channel.receive() == []
    peer.send(lines[5:])

    assert channel.receive() == [READY, Dump()]


def test_last_words_are_heard_before_the_end_of_the_stream(
    pipe: tuple[Channel, socket.socket],
) -> None:
    channel, peer = pipe

    peer.send(encode(Finished("DRAINED")))
    peer.close()

    assert channel.receive() == [Finished("DRAINED")]
    assert channel.closed


def test_one_message_at_a_time_can_be_taken(pipe: tuple[Channel, socket.socket]) -> None:
    channel, peer = pipe
    peer.send(encode(READY) + encode(Stop()))
    peer.close()

    assert channel.next() == READY
    assert channel.next() == Stop()
    with pytest.raises(ControlClosed):
        channel.next()


def test_a_peer_that_does_not_read_never_blocks_and_is_given_up(
    pipe: tuple[Channel, socket.socket],
) -> None:
    channel, _ = pipe
    beat = Beat({"text": "x" * 500_000})

    while not channel.closed:
        channel.send(beat)

    assert not channel.pending


def test_what_a_slow_peer_did_not_take_is_sent_when_it_reads_again(
    pipe: tuple[Channel, socket.socket],
) -> None:
    channel, peer = pipe
    line = encode(Beat({"text": "x" * 900_000}))

    channel.send(decode(line))
    assert channel.pending
    taken = b""
    while len(taken) < len(line):
        taken += peer.recv(1 << 20)
        channel.flush()

    assert taken == line
    assert not channel.pending


def test_a_peer_that_is_gone_is_no_error_for_who_speaks(
    pipe: tuple[Channel, socket.socket],
) -> None:
    channel, peer = pipe
    peer.close()

    channel.send(READY)
    channel.send(READY)

    assert channel.closed


def test_a_line_without_end_is_refused(pipe: tuple[Channel, socket.socket]) -> None:
    channel, peer = pipe
    peer.setblocking(False)

    def babble() -> None:
        while True:
            with suppress(BlockingIOError):
                peer.send(b"x" * 65536)
            channel.receive()

    with pytest.raises(ControlError, match="more than"):
        babble()


def test_a_message_that_is_too_long_is_refused_before_it_is_sent(
    pipe: tuple[Channel, socket.socket],
) -> None:
    channel, _ = pipe

    with pytest.raises(ControlError, match="too long"):
        channel.send(Beat({"text": "x" * control.MAX_LINE}))

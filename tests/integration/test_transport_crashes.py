"""Processes that use the embedded broker die, hang and come back: nothing is lost or reordered."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import amqp
import kombu.connection
import pytest
from amqp import exceptions

from waiting import until
from worker.transport.embedded.broker import Wanted

#: Prints each message's body; acknowledges it if told to; kills itself when it has printed as many
#: as it is told. Says "lost" when its lease is lost.
CONSUMER = """
import os, signal, sys
from kombu.connection import Connection
path, queue, prefetch, acks, lease, life = *sys.argv[1:6], (*sys.argv, 0)[6]
connection = Connection(
    transport="worker.transport.sqlite:Transport",
    virtual_host=path,
    transport_options={"lease": float(lease)},
)
channel = connection.channel()
channel.basic_qos(0, int(prefetch), False)
held = []
def receive(message):
    print(message.body.decode(), flush=True)
    held.append(message)
    if len(held) == int(life):
        os.kill(os.getpid(), signal.SIGKILL)
    if acks == "acks":
        channel.basic_ack(message.delivery_tag)
channel.basic_consume(queue, callback=receive)
print("ready", flush=True)
while True:
    try:
        connection.drain_events(timeout=0.05)
    except TimeoutError:
        pass
    except connection.recoverable_connection_errors as error:
        print("lost", flush=True)
        raise SystemExit(0)
"""

#: Publishes numbered batches for ever, and prints the last number of each that was confirmed.
PUBLISHER = """
import sys
import amqp
from kombu.connection import Connection
path, queue, name, size, count = sys.argv[1:]
channel = Connection(transport="worker.transport.sqlite:Transport", virtual_host=path).channel()
print("ready", flush=True)
for start in range(0, int(count), int(size)):
    batch = [
        (amqp.Message(f"{name}{n}", delivery_mode=2), "", queue, True)
        for n in range(start, start + int(size))
    ]
    assert channel.publish_many(batch) == []
    print(start + int(size) - 1, flush=True)
print("done", flush=True)
"""


class Child:
    """A program in a process of its own, and the lines that it has printed."""

    def __init__(self, program: str, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, *map(str, arguments)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.strip())

    def printed(self, line: str) -> Child:
        """Wait until it has printed ``line``."""
        until(lambda: line in self.lines, 30, f"{line!r} in what it printed")
        return self

    @property
    def numbers(self) -> list[int]:
        return [int(line) for line in self.lines if line.isdigit()]

    def holds(self, *numbers: int) -> Child:
        """Wait until it was given exactly these."""
        until(lambda: self.numbers == list(numbers), 30, f"it is given {numbers}")
        return self

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        """Kill -9, and take note of its end."""
        self.process.kill()
        self.finish()

    def finish(self) -> None:
        self.process.wait(30)
        self._reader.join(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


Start = Callable[..., Child]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts children; kills at the end what is left of them."""
    children: list[Child] = []

    def start_child(program: str, *arguments: object) -> Child:
        children.append(Child(program, *arguments))
        return children[-1]

    yield start_child
    for child in children:
        child.kill()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "broker.db")


@pytest.fixture
def connect(path: str) -> Iterator[Callable[..., Any]]:
    """Opens connections in this process; closed at the end."""
    opened = []

    def open_connection(**options: Any) -> Any:
        connection = Connection(
            transport="worker.transport.sqlite:Transport",
            virtual_host=path,
            transport_options=options,
        )
        connection.connect()
        opened.append(connection)
        return connection

    yield open_connection
    for connection in opened:
        connection.release()


#: kombu's, without its half of types.
Connection: Any = kombu.connection.Connection

Connect = Callable[..., Any]
SAC = {"x-single-active-consumer": True}


def prepare(connect: Connect, count: int, **arguments: Any) -> None:
    channel = connect().channel()
    channel.queue_declare("q", durable=True, auto_delete=False, arguments=arguments)
    channel.publish_many(
        [(amqp.Message(str(n), delivery_mode=2), "", "q", True) for n in range(count)]
    )


class Taker:
    """A consumer in this process."""

    def __init__(self, connection: Any, queue: str = "q", prefetch: int = 0) -> None:
        self.connection = connection
        self.channel = connection.channel()
        self.channel.basic_qos(0, prefetch, False)
        self.given: list[amqp.Message] = []
        self.channel.basic_consume(queue, callback=self.given.append)

    @property
    def numbers(self) -> list[int]:
        return [int(m.body) for m in self.given]

    def drain(self) -> list[int]:
        with suppress(TimeoutError):
            self.connection.drain_events(timeout=0.02)
        return self.numbers

    def watch(self, seconds: float) -> list[int]:
        """Keep draining for some time, to see what must not come."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.drain()
        return self.numbers


def exists(channel: Any, queue: str) -> bool:
    try:
        channel.queue_declare(queue, passive=True)
    except exceptions.NotFound:
        return False
    return True


@pytest.mark.parametrize("arguments", [{}, SAC], ids=["competing", "single-active"])
def test_what_a_killed_consumer_held_comes_back_at_once_and_in_order(
    connect: Connect, start: Start, path: str, arguments: dict[str, Any]
) -> None:
    prepare(connect, 6, **arguments)
    child = start(CONSUMER, path, "q", 4, "holds", 600).holds(0, 1, 2, 3)
    taker = Taker(connect())
    child.kill()
    until(lambda: len(taker.drain()) == 6)
    assert sorted(taker.numbers) == [0, 1, 2, 3, 4, 5]
    if arguments:
        assert taker.numbers == [0, 1, 2, 3, 4, 5]
    redelivered = {int(m.body): m.delivery_info["redelivered"] for m in taker.given}
    assert redelivered == {0: True, 1: True, 2: True, 3: True, 4: False, 5: False}


def test_a_zombie_is_dead(connect: Connect, start: Start, path: str) -> None:
    prepare(connect, 2, **SAC)
    child = start(CONSUMER, path, "q", 2, "holds", 600).holds(0, 1)
    taker = Taker(connect())
    os.kill(child.process.pid, signal.SIGKILL)  # and nobody waits for it
    until(lambda: taker.drain() == [0, 1])


def test_a_hanging_consumer_keeps_its_messages_until_its_lease_ends(
    connect: Connect, start: Start, path: str
) -> None:
    prepare(connect, 4, **SAC)
    child = start(CONSUMER, path, "q", 2, "holds", 2).holds(0, 1)
    taker = Taker(connect())
    child.signal(signal.SIGSTOP)
    paused = time.monotonic()
    assert taker.watch(1) == [], "2 and 3 are ready, but giving them would overtake 0 and 1"
    until(lambda: taker.drain() == [0, 1, 2, 3])
    assert 1 < time.monotonic() - paused < 8
    child.signal(signal.SIGCONT)
    child.printed("lost")
    assert child.numbers == [0, 1]


def test_the_acks_of_who_lost_its_lease_do_nothing(connect: Connect) -> None:
    prepare(connect, 3)
    late, taker = Taker(connect(lease=0.5), prefetch=2), Taker(connect())
    while late.numbers != [0, 1]:
        late.drain()
    until(lambda: len(taker.drain()) == 3)
    late.channel.basic_ack(1)
    late.channel.basic_reject(2, requeue=True)
    with pytest.raises(exceptions.RecoverableConnectionError, match="lease"):
        late.connection.drain_events(timeout=1)
    assert not late.connection.connected
    with pytest.raises(exceptions.RecoverableConnectionError):
        late.channel.basic_ack(1)
    taker.channel.close()
    assert until(lambda: sorted(Taker(connect()).drain())) == [0, 1, 2], "all are still there"


def test_what_was_fetched_but_not_given_is_not_given_after_the_lease(connect: Connect) -> None:
    prepare(connect, 3)
    connection = connect(lease=0.5)
    channel, taker = connection.channel(), Taker(connect())
    given = []

    def be_slow(message: amqp.Message) -> None:
        given.append(int(message.body))
        until(lambda: len(taker.drain()) == 3)

    channel.basic_consume("q", callback=be_slow)
    with pytest.raises(exceptions.RecoverableConnectionError, match="lease"):
        connection.drain_events(timeout=1)
    assert given == [0]


def test_who_is_cleared_away_between_looking_and_leasing_is_leased_nothing(
    connect: Connect,
) -> None:
    prepare(connect, 1)
    late, other = Taker(connect()), connect()
    (consumer,) = late.channel.consumers.values()
    presence = other.connection.broker.presence
    rewrite(connect, "boot", "another", presence.id)
    presence.clear_up_after_others()
    with pytest.raises(exceptions.RecoverableConnectionError, match="lease"):
        late.connection.connection.broker.fetch(
            [Wanted(consumer.id, consumer.queue.id, limit=1, no_ack=False)]
        )
    successor = Taker(other)
    until(lambda: successor.drain() == [0])


@pytest.mark.parametrize("how", ["draining", "heartbeats"])
def test_a_living_consumer_keeps_its_lease(connect: Connect, how: str) -> None:
    prepare(connect, 1)
    holder, other = Taker(connect(lease=0.6)), Taker(connect())
    until(lambda: holder.drain() == [0])
    end = time.monotonic() + 2
    while time.monotonic() < end:
        if how == "draining":
            holder.drain()
        else:
            holder.connection.heartbeat_check()
        assert other.drain() == []
    holder.channel.basic_ack(1)


def test_who_only_publishes_need_not_renew_anything(connect: Connect) -> None:
    connection = connect(lease=0.2)
    channel = connection.channel()
    channel.queue_declare("brief", durable=False, auto_delete=False)
    channel.queue_declare("q", durable=True, auto_delete=False)
    taker = Taker(connect())
    assert taker.watch(0.6) == [], "the lease is over, three times"
    connect().release()
    assert exists(channel, "brief"), "it still counts as connected"
    channel.basic_publish(amqp.Message("1", delivery_mode=2), "", "q")
    until(lambda: taker.drain() == [1])
    late = Taker(connection, "brief")
    channel.queue_declare("mine", exclusive=True, auto_delete=False)
    taker.watch(0.15)
    assert late.drain() == []


def rewrite(connect: Connect, column: str, value: str, but: int) -> None:
    """Let all connections but one look as if they came from elsewhere."""
    with connect().connection.broker.database.transaction() as db:
        update = f"UPDATE broker_connections SET {column} = ? WHERE id <> ?"  # noqa: S608 - our own
        db.execute(update, (value, but))


def test_in_another_container_only_the_lease_tells(
    connect: Connect, start: Start, path: str
) -> None:
    prepare(connect, 2, **SAC)
    child = start(CONSUMER, path, "q", 2, "holds", 3).holds(0, 1)
    taker = Taker(connect())
    rewrite(connect, "namespace", "pid:[1]", taker.connection.connection.broker.presence.id)
    child.kill()
    assert taker.watch(1) == []
    until(lambda: taker.drain() == [0, 1])


def test_who_connected_before_a_reboot_is_dead(connect: Connect, start: Start, path: str) -> None:
    prepare(connect, 2, **SAC)
    child = start(CONSUMER, path, "q", 2, "holds", 600).holds(0, 1)
    taker = Taker(connect())
    rewrite(connect, "boot", "another", taker.connection.connection.broker.presence.id)
    until(lambda: taker.drain() == [0, 1])
    child.printed("lost")


def test_who_renewed_in_the_future_is_dead(connect: Connect, start: Start, path: str) -> None:
    # The monotonic clock starts anew with a boot; where boots have no name, that tells.
    prepare(connect, 1, **SAC)
    start(CONSUMER, path, "q", 1, "holds", 600).holds(0)
    taker = Taker(connect())
    own = taker.connection.connection.broker.presence.id
    rewrite(connect, "renewed", str(time.monotonic() + 10_000), own)
    until(lambda: taker.drain() == [0])


def test_exclusive_and_automatic_queues_go_with_a_killed_process(
    connect: Connect, start: Start, path: str
) -> None:
    child = start(
        """
import signal, sys
from kombu.connection import Connection
channel = Connection(
    transport="worker.transport.sqlite:Transport", virtual_host=sys.argv[1]
).channel()
channel.queue_declare("exclusive", exclusive=True, auto_delete=False)
channel.queue_declare("automatic", auto_delete=True)
channel.basic_consume("automatic")
print("ready", flush=True)
signal.pause()
""",
        path,
    ).printed("ready")
    connection = connect()
    channel = connection.channel()
    assert exists(channel, "automatic")
    with pytest.raises(exceptions.ResourceLocked):
        channel.queue_declare("exclusive", exclusive=True, auto_delete=False)
    child.kill()
    channel.queue_declare("exclusive", exclusive=True, auto_delete=False)
    assert not exists(channel, "automatic")


def test_a_confirmed_publish_survives_kill_9(connect: Connect, start: Start, path: str) -> None:
    prepare(connect, 0)
    publisher = start(PUBLISHER, path, "q", "", 7, 700_000).printed("69")
    publisher.kill()
    confirmed = publisher.numbers[-1]
    taker = Taker(connect())
    until(lambda: len(taker.drain()) > confirmed)
    count = len(taker.watch(0.2))
    assert taker.numbers == list(range(count)), "in order, without gaps or copies"
    assert count % 7 == 0, "a batch is there or it is not"


def test_nothing_is_lost_while_publishers_and_consumers_are_killed(
    connect: Connect, start: Start, path: str
) -> None:
    prepare(connect, 0, **SAC)
    publishers = [start(PUBLISHER, path, "q", f"{name}:", 10, 300) for name in range(3)]
    seen: list[str] = []
    for _ in range(4):
        child = start(CONSUMER, path, "q", 20, "acks", 600, 60)
        child.finish()
        seen += child.lines
    for publisher in publishers:
        publisher.printed("done")
    last = start(CONSUMER, path, "q", 20, "acks", 600)
    channel = connect().channel()
    until(lambda: depth(channel) == 0, 30, "the queue is empty")
    last.kill()
    seen += last.lines
    for name in range(3):
        mine = [int(line.split(":")[1]) for line in seen if line.startswith(f"{name}:")]
        assert list(dict.fromkeys(mine)) == list(range(300)), "each came, and first in its order"
        assert len(mine) <= 300 + 4 * 20, "only what a killed consumer held came again"


def depth(channel: Any) -> int:
    rows = channel.connection.broker.database.rows("SELECT ready + leased FROM broker_depths")
    return int(rows[0][0])


def test_many_processes_may_create_the_file_at_once(
    connect: Connect, start: Start, path: str
) -> None:
    program = """
import sys
import amqp
from kombu.connection import Connection
channel = Connection(
    transport="worker.transport.sqlite:Transport", virtual_host=sys.argv[1]
).channel()
channel.queue_declare("q", durable=True, auto_delete=False)
channel.queue_bind("q", "amq.fanout")
channel.basic_publish(amqp.Message("1", delivery_mode=2), "amq.fanout", "")
print("done", flush=True)
"""
    children = [start(program, path) for _ in range(4)]
    for child in children:
        child.printed("done")
    assert connect().channel().queue_declare("q", passive=True).message_count == 4


@pytest.mark.parametrize("end", ["closed", "killed"])
def test_what_is_transient_ends_with_the_last_connection(
    connect: Connect, start: Start, path: str, end: str
) -> None:
    program = """
import signal, sys
import amqp
from kombu.connection import Connection
path, end = sys.argv[1:]
connection = Connection(transport="worker.transport.sqlite:Transport", virtual_host=path)
channel = connection.channel()
channel.exchange_declare("brief", "fanout", durable=False, auto_delete=False)
channel.exchange_declare("lasting", "fanout", durable=True, auto_delete=False)
channel.queue_declare("brief", durable=False, auto_delete=False)
channel.queue_declare("lasting", durable=True, auto_delete=False)
for body, mode in (("1", 2), ("2", 1), ("3", None), ("4", 2)):
    channel.basic_publish(amqp.Message(body, delivery_mode=mode), "", "lasting")
channel.basic_get("lasting")
if end == "closed":
    connection.release()
print("ready", flush=True)
signal.pause()
"""
    child = start(program, path, end).printed("ready")
    if end == "killed":
        witness = connect()
        assert exists(witness.channel(), "brief"), "somebody is still there"
        child.kill()
        witness.release()
    channel = connect().channel()
    assert not exists(channel, "brief")
    with pytest.raises(exceptions.NotFound):
        channel.exchange_declare("brief", "fanout", passive=True)
    channel.exchange_declare("lasting", "fanout", passive=True)
    found = [channel.basic_get("lasting").body for _ in range(2)]
    assert found == [b"1", b"4"]
    assert channel.basic_get("lasting") is None

"""The embedded broker's file: who may read it, and what is said when it cannot be used."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import amqp
import kombu.connection
import pytest
from amqp import exceptions

from waiting import until
from worker.transport.sqlite import Transport

NOBODY = 65534


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "broker.db"


#: kombu's, without its half of types.
Connection: Any = kombu.connection.Connection

Connect = Callable[..., Any]


@pytest.fixture
def connect(path: Path) -> Iterator[Connect]:
    """Opens connections to the file; closed at the end."""
    opened = []

    def open_connection(place: Path = path, **options: Any) -> Any:
        connection = Connection(
            transport=Transport, virtual_host=str(place), transport_options=options
        )
        opened.append(connection)
        connection.connect()
        return connection

    yield open_connection
    for connection in opened:
        connection.release()


def queue(connection: Any, name: str = "q") -> Any:
    """Declare a queue; return the channel."""
    channel = connection.channel()
    channel.queue_declare(name, durable=True, auto_delete=False)
    return channel


def publish(channel: Any, *bodies: str, mode: int = 2) -> None:
    channel.publish_many(
        [(amqp.Message(body, delivery_mode=mode), "", "q", True) for body in bodies]
    )


def taken(channel: Any) -> list[str]:
    found = []
    while (message := channel.basic_get("q", no_ack=True)) is not None:
        found.append(message.body.decode())
    return found


def test_only_its_owner_may_read_the_file(connect: Connect, path: Path) -> None:
    publish(queue(connect()), "secret")
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in path.parent.iterdir()}
    assert modes == {"broker.db": 0o600, "broker.db-wal": 0o600, "broker.db-shm": 0o600}


def test_an_existing_file_keeps_its_mode(connect: Connect, path: Path) -> None:
    path.touch(0o640)
    path.chmod(0o640)
    queue(connect())
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def trace(connection: Any) -> list[str]:
    """Return the list in which the connection's statements will be."""
    statements: list[str] = []
    sqlite = connection.connection.broker.database._connection
    sqlite.set_trace_callback(statements.append)
    return statements


def test_a_publish_is_synced_to_the_disk_before_it_returns(connect: Connect) -> None:
    connection = connect()
    channel = queue(connection)
    statements = trace(connection)

    def level() -> int:
        rows = connection.connection.broker.database.rows("PRAGMA synchronous")
        found: int = rows[0][0]
        return found

    full, normal = 2, 1
    publish(channel, "1")
    assert statements[-1] == "COMMIT"
    assert level() == full
    tag = channel.basic_get("q").delivery_tag
    assert level() == normal, "what a power cut forgets of a fetch is delivered again"
    publish(channel, "2")
    assert level() == full
    channel.basic_ack(tag)
    assert level() == normal
    publish(channel, "transient", mode=1)
    assert level() == normal, "nothing was promised for it"
    channel.queue_bind("q", "amq.topic", "#")
    assert level() == full


def test_a_batch_is_one_transaction(connect: Connect) -> None:
    connection = connect()
    channel = queue(connection)
    statements = trace(connection)
    publish(channel, *map(str, range(100)))
    assert statements.count("COMMIT") == 1


def test_a_file_of_a_newer_version_is_refused(connect: Connect, path: Path) -> None:
    connect().release()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(exceptions.NotAllowed, match="made by a newer qworker") as caught:
        connect()
    assert isinstance(caught.value, Transport.connection_errors)
    assert not isinstance(caught.value, Transport.recoverable_connection_errors)


def test_another_program_s_file_is_refused(connect: Connect, path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE customers (id)")
        db.execute("PRAGMA user_version=1")
    db.close()
    with pytest.raises(exceptions.NotAllowed, match="belongs to another program"):
        connect()


def test_the_file_may_hold_other_tables_of_qworker(connect: Connect, path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE dedup_meta (name)")
    db.close()
    channel = queue(connect())
    with sqlite3.connect(path) as db:
        db.execute("INSERT INTO dedup_meta VALUES ('x')")
    db.close()
    publish(channel, "1")
    assert taken(channel) == ["1"]


@pytest.mark.parametrize("content", [b"this is no database" * 100, os.urandom(8192)])
def test_what_is_no_database_is_refused(connect: Connect, path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(exceptions.InternalError, match="no SQLite database"):
        connect()
    assert path.read_bytes() == content, "and left as it is"


def test_a_damaged_file_is_told_as_such(connect: Connect, path: Path) -> None:
    connection = connect()
    publish(queue(connection), *("x" * 5000 for _ in range(50)))
    connection.release()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff" * (size // 2))
    with pytest.raises(exceptions.InternalError, match="damaged"):
        taken(connect().channel())


def test_a_folder_and_a_missing_folder_are_told(connect: Connect, tmp_path: Path) -> None:
    with pytest.raises(exceptions.NotAllowed, match="is a folder"):
        connect(tmp_path)
    with pytest.raises(exceptions.NotAllowed, match="No such file or directory"):
        connect(tmp_path / "no" / "broker.db")


def test_a_read_only_file_is_told(connect: Connect) -> None:
    # Root may write to anything, so the child becomes somebody else; a folder of pytest's
    # would be closed to that one.
    folder = Path(tempfile.mkdtemp())
    path = folder / "broker.db"
    connect(path).release()
    path.chmod(0o444)
    folder.chmod(0o555)
    program = f"""
import os
from kombu.connection import Connection
from worker.transport.sqlite import Transport
if os.geteuid() == 0:
    os.setuid({NOBODY})
try:
    Connection(transport=Transport, virtual_host={str(path)!r}).connect()
except Transport.connection_errors as error:
    print(type(error).__name__, isinstance(error, Transport.recoverable_connection_errors), error)
"""
    try:
        told = run(program)
    finally:
        shutil.rmtree(folder)
    assert told.startswith("NotAllowed False"), told
    assert "read-only" in told


def run(program: str) -> str:
    """Run a program in another process; return what it prints."""
    return subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


def test_a_locked_file_is_waited_for(connect: Connect, path: Path) -> None:
    channel = queue(connect(patience=20))
    blocker = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    blocker.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.3, blocker.execute, ("COMMIT",))
    timer.start()
    publish(channel, "1")
    timer.join()
    blocker.close()
    assert taken(channel) == ["1"]


def test_a_message_is_routed_by_the_bindings_of_the_moment_in_which_it_is_stored(
    connect: Connect, path: Path
) -> None:
    channel = queue(connect(patience=20))
    channel.queue_bind("q", "amq.topic", "k")
    message = amqp.Message("1", delivery_mode=2)
    assert channel.publish_many([(message, "amq.topic", "k", True)]) == []
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    other.execute("DELETE FROM broker_bindings")
    other.execute("UPDATE broker_state SET topology = topology + 1")
    timer = threading.Timer(0.3, other.execute, ("COMMIT",))
    timer.start()
    assert channel.publish_many([(message, "amq.topic", "k", True)]) == [0], "it was unbound"
    timer.join()
    other.close()
    assert taken(channel) == ["1"]


def test_a_file_that_stays_locked_is_an_error_to_come_back_from(
    connect: Connect, path: Path
) -> None:
    channel = queue(connect(patience=0.2))
    publish(channel, "1")
    held = channel.basic_get("q")
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    for call in (
        lambda: publish(channel, "2"),
        lambda: channel.basic_ack(held.delivery_tag),
        lambda: connect(patience=0.1),
    ):
        with pytest.raises(Transport.recoverable_connection_errors, match="locked"):
            call()
    blocker.execute("ROLLBACK")
    blocker.close()
    channel.basic_ack(held.delivery_tag)
    publish(channel, "2")
    assert taken(channel) == ["2"]


def test_a_fetch_that_met_a_locked_file_is_made_up_for(connect: Connect, path: Path) -> None:
    connection = connect(patience=0.1, lease=600)
    channel = queue(connection)
    given: list[amqp.Message] = []
    channel.basic_consume("q", callback=given.append)
    with pytest.raises(TimeoutError):
        connection.drain_events(timeout=0.2)
    publish(connect().channel(), "1")
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(Transport.recoverable_connection_errors, match="locked"):
        connection.drain_events(timeout=1)
    blocker.close()
    connection.drain_events(timeout=5)
    assert [m.body for m in given] == [b"1"]


def test_a_full_disk_loses_nothing(connect: Connect) -> None:
    connection = connect()
    channel = queue(connection)
    publish(channel, "1", "2")
    database = connection.connection.broker.database
    ((pages,),) = database.rows("PRAGMA page_count")
    database.rows(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(Transport.recoverable_connection_errors, match="disk is full"):
        publish(channel, *("x" * 5000 for _ in range(100)))
    publish(channel, "3")
    assert [channel.basic_get("q").body.decode() for _ in range(2)] == ["1", "2"]
    channel.basic_ack(1)
    database.rows("PRAGMA max_page_count=1000000")
    publish(channel, "x" * 50_000)
    channel.close()
    assert [body[:1] for body in taken(connection.channel())] == ["2", "3", "x"]


def test_what_was_confirmed_before_writing_failed_is_there(connect: Connect, path: Path) -> None:
    queue(connect()).close()
    program = f"""
import resource, amqp
from kombu.connection import Connection
from worker.transport.sqlite import Transport
connection = Connection(transport=Transport, virtual_host={str(path)!r})
channel = connection.channel()
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
for number in range(1000):
    try:
        message = amqp.Message(str(number) + " " + "x" * 2000, delivery_mode=2)
        channel.basic_publish(message, "", "q")
    except Transport.recoverable_connection_errors as error:
        print(error)
        break
    print(number)
"""
    *confirmed, last_words = run(program).splitlines()
    assert "failed to read or write" in last_words
    assert confirmed
    found = [body.split()[0] for body in taken(connect().channel())]
    assert found[: len(confirmed)] == confirmed
    assert len(found) <= len(confirmed) + 1


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_nothing_is_confirmed_into_a_file_that_is_gone(
    connect: Connect, path: Path, how: str
) -> None:
    connection = connect()
    channel = queue(connection)
    publish(channel, "1")
    for file in list(path.parent.iterdir()):
        file.rename(file.with_name(f"old-{file.name}"))
    if how == "replaced":
        sqlite3.connect(path).close()
        path.touch()
    with pytest.raises(Transport.recoverable_connection_errors, match="removed or replaced"):
        publish(channel, "2")

    def notices() -> bool:
        try:
            connection.drain_events(timeout=0.05)
        except TimeoutError:
            return False
        except Transport.recoverable_connection_errors:
            return True
        return False

    until(notices)
    connection.release()
    publish(queue(connect()), "3")


def test_readers_do_not_wait_for_writers(connect: Connect, path: Path) -> None:
    channel = queue(connect())
    publish(channel, "1")
    blocker = sqlite3.connect(path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    assert channel.queue_declare("q", passive=True).message_count == 1
    blocker.close()


def test_a_backlog_is_read_from_a_file_of_another_life(connect: Connect) -> None:
    first = connect()
    publish(queue(first), *map(str, range(50)))
    first.release()
    assert taken(connect().channel()) == [str(n) for n in range(50)]

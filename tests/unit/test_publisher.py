"""Publishing over a connection that ends: nothing is forgotten in silence."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import run
from sys import executable
from typing import Any

import pytest

from worker import App, Command, Event
from worker.errors import BrokerUnreachable, ConfirmTimeout, QworkerError, Unroutable
from worker.transport.capabilities import connect
from worker.transport.outbound import Outbound


class Deposited(Event, name="user.deposited", key="user"):
    """Money arrived."""

    user: str


class Close(Command, name="close", to="nobody", key="user"):
    """It has no queue."""

    user: str


class Broker:
    """What the embedded broker does to who publishes: answer, or not."""

    def __init__(self) -> None:
        self.accepts = True
        #: How many batches are still to fail.
        self.failures = 0
        self.connections = 0


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    """The broker, which can be made to fail."""
    broker = Broker()
    publish_batch = Outbound._publish_batch  # where the connection ends
    outbound = Outbound.__init__

    def publish(self: Outbound) -> None:
        if broker.failures:
            broker.failures -= 1
            raise OSError("the broker ended the connection")
        publish_batch(self)

    def connect(self: Outbound, *arguments: Any) -> None:
        broker.connections += 1
        if not broker.accepts:
            raise BrokerUnreachable("the broker does not answer")
        outbound(self, *arguments)

    monkeypatch.setattr("worker.publisher._BURST", 3600.0)  # on a slow machine too
    monkeypatch.setattr(Outbound, "_publish_batch", publish)
    monkeypatch.setattr(Outbound, "__init__", connect)
    return broker


@pytest.fixture
def app(tmp_path: Path) -> Iterator[App]:
    """A service that publishes into a file, and observes what it publishes."""
    app = App(
        "bank",
        broker=f"sqlite:///{tmp_path}/broker.db",
        settings={"connect_timeout": 0.2, "confirm_timeout": 1.0},
    )
    yield app
    app.close()


def fill_the_window(out: Any) -> None:
    """Publish one, which is confirmed at once, and then as many as a burst may be long."""
    for number in range(1001):
        out.publish(Deposited(user=str(number)))


def test_what_was_on_its_way_when_no_broker_answered_is_sent_later(
    app: App, broker: Broker
) -> None:
    with app.publisher() as out:
        fill_the_window(out)
        broker.failures, broker.accepts = 1, False
        with pytest.raises(BrokerUnreachable):
            out.publish(Deposited(user="late"))
        broker.accepts = True

    assert out.confirmed == 1001


def publish_while_the_broker_goes(app: App, broker: Broker, *, and_go_on: bool) -> None:
    with app.publisher() as out:
        fill_the_window(out)
        broker.failures, broker.accepts = 1, False
        try:
            out.publish(Deposited(user="late"))
        except BrokerUnreachable:
            if not and_go_on:
                raise


def test_leaving_the_block_tells_that_something_was_not_confirmed(app: App, broker: Broker) -> None:
    with pytest.raises(BrokerUnreachable):
        publish_while_the_broker_goes(app, broker, and_go_on=True)

    broker.accepts = True
    with app.publisher() as out:
        before = out.confirmed
        out.publish(Deposited(user="another"))
    assert (before, out.confirmed) == (1, 2)


def test_who_was_told_that_no_broker_answers_does_not_wait_for_one_again(
    app: App, broker: Broker
) -> None:
    with pytest.raises(BrokerUnreachable) as caught:
        publish_while_the_broker_goes(app, broker, and_go_on=False)

    assert caught.value.__context__ is None


def test_a_broker_that_ends_every_connection_at_the_message_is_given_up(
    app: App, broker: Broker
) -> None:
    broker.failures = 1_000_000

    with pytest.raises(ConfirmTimeout, match="the broker ended the connection"):
        app.publish(Deposited(user="refused"))

    assert 1 < broker.connections < 10


def test_what_is_published_is_sent_before_the_block_ends(app: App) -> None:
    with app.publisher() as out:
        out.publish(Deposited(user="alice"))
        assert out.confirmed == 1


def test_a_connection_that_ends_as_a_message_is_sent_keeps_it(app: App, broker: Broker) -> None:
    with app.publisher() as out:
        broker.failures = 1
        out.publish(Deposited(user="alice"))
        assert out.confirmed == 0
    assert (out.confirmed, broker.connections) == (1, 2)


def test_publishing_one_within_a_block_is_confirmed_when_it_returns(app: App) -> None:
    with app.publisher() as out:
        app.publish(Deposited(user="alice"))
        assert out.confirmed == 1


def test_each_block_is_told_of_its_own_messages(app: App) -> None:
    outer, inner = Close(user="a"), Close(user="b")

    def publish_both() -> None:
        with app.publisher() as out:
            out.publish(outer)
            app.publish(Deposited(user="alice"))
            with pytest.raises(Unroutable, match=inner.event_id):
                app.publish(inner)

    with pytest.raises(Unroutable, match=outer.event_id) as caught:
        publish_both()
    assert caught.value.message_ids == (outer.event_id,)


def test_what_was_encoded_before_is_sent_as_it_is(app: App) -> None:
    event = Deposited(user="alice")
    outgoing = app.encode(event, headers={"shop": "north"}, correlation_id="story")
    assert (outgoing.message_id, outgoing.routing_key) == (event.event_id, "user.deposited")
    assert outgoing.headers == {"shop": "north", "qw-key": "alice"}
    assert outgoing.properties["correlation_id"] == "story"
    with app.publisher() as out:
        out.send(outgoing)
    assert out.confirmed == 1


def test_what_was_not_confirmed_in_time_is_named(app: App, broker: Broker) -> None:
    broker.failures = 1_000_000
    event = Deposited(user="refused")
    with pytest.raises(ConfirmTimeout) as caught:
        app.publish(event)
    assert caught.value.message_ids == (event.event_id,)


def test_what_is_not_confirmed_when_somebody_closes_is_sent_by_the_end_of_the_block(
    app: App,
) -> None:
    with app.publisher() as out:
        out.publish(Deposited(user="alice"))
        out.publish(Deposited(user="bob"))  # gathered
        assert out.confirmed == 1
        out.close()
    assert out.confirmed == 2


def in_a_child(act: Callable[[], object]) -> int:
    """Fork; return the exit code of the child: that of what ``act`` answers, 9 for an error."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(10)  # one that hangs is ended
        code = 9
        try:
            code = int(bool(act()))
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def test_what_is_put_on_its_way_as_somebody_closes_is_sent_by_the_end_of_the_block(
    app: App, broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = Outbound.send

    def interrupted(self: Outbound, messages: Any) -> None:
        monkeypatch.setattr(Outbound, "send", send)
        out.close()
        send(self, messages)

    with app.publisher() as out:
        out.publish(Deposited(user="0"))
        monkeypatch.setattr(Outbound, "send", interrupted)
        out.publish(Deposited(user="1"))
        confirmed = out.confirmed
    assert out.confirmed == 2
    assert confirmed < 2


def test_a_child_that_is_forked_while_a_burst_is_written_closes_and_publishes(app: App) -> None:
    with app.publisher() as out:
        out.publish(Deposited(user="alice"))
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with out._gate:  # as the timer's thread does
            held.set()
            go.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    try:
        assert in_a_child(out.close) == 0
        assert in_a_child(lambda: app.publish(Deposited(user="bob"))) == 1
    finally:
        go.set()
        thread.join()


def test_a_child_that_is_forked_in_a_block_leaves_its_messages_to_the_parent(app: App) -> None:
    def leave_and_publish() -> bool:
        out.__exit__(None, None, None)
        return out.confirmed == 1 and bool(app.publish(Deposited(user="carol")))

    with app.publisher() as out:
        out.publish(Deposited(user="alice"))
        out.publish(Deposited(user="bob"))  # gathered
        assert in_a_child(leave_and_publish) == 1
    assert out.confirmed == 2


def test_who_publishes_into_a_file_that_no_service_uses_is_warned_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In another folder than the service, most likely: nothing of it would ever arrive."""
    monkeypatch.chdir(tmp_path)
    for _ in range(2):  # where the file is not there, and where the one before has made it
        app = App("site", broker="sqlite:///qworker.db")
        caplog.clear()
        with app.publisher() as out:
            out.publish(Deposited(user="alice"))
            out.publish(Deposited(user="bob"))
        app.close()

        assert caplog.text.count("no service was ever started with it") == 1
        assert f"sqlite:///qworker.db is {tmp_path}/qworker.db" in caplog.text
        assert "'user.deposited' goes nowhere" in caplog.text


def test_what_its_sender_keeps_is_refused_there_also_when_that_was_told(tmp_path: Path) -> None:
    app = App("site", broker=f"sqlite:///{tmp_path}/qworker.db")
    kept = app.encode(Deposited(user="carol"))
    with app.publisher() as out:
        out.publish(Deposited(user="alice"))  # warned of
    with app.publisher() as out, pytest.raises(BrokerUnreachable, match="would go nowhere"):
        out.send(kept, kept_by_sender=True)
    with connect(app.settings.broker, heartbeat=0, timeout=5, name="somebody") as connection:
        connection.channel().queue_declare("bank.g1.0", durable=True, auto_delete=False)
    with app.publisher() as out:
        out.send(kept, kept_by_sender=True)
    app.close()


def test_what_its_sender_keeps_leaves_once_a_service_has_made_the_file_anew(
    tmp_path: Path,
) -> None:
    """Who is told that it is the wrong file removes it, and starts the service."""
    file = tmp_path / "qworker.db"
    app = App("site", broker=f"sqlite:///{file}")
    kept = app.encode(Deposited(user="carol"))
    with app.publisher() as out, pytest.raises(BrokerUnreachable, match="would go nowhere"):
        out.send(kept, kept_by_sender=True)
    for part in tmp_path.iterdir():
        part.unlink()
    serve = (
        "import sys; from worker.transport.capabilities import connect\n"
        "with connect(sys.argv[1], heartbeat=0, timeout=5, name='service') as connection:\n"
        "    connection.channel().queue_declare('bank.g1.0', durable=True, auto_delete=False)\n"
    )
    run([executable, "-c", serve, app.settings.broker], check=True)

    with app.publisher() as out:
        out.send(kept, kept_by_sender=True)

    assert out.confirmed == 1
    app.close()


def test_what_its_sender_keeps_does_not_follow_into_a_file_of_nobody(tmp_path: Path) -> None:
    """That of the service was removed while it was on its way, and this publisher makes it anew."""
    file = tmp_path / "qworker.db"
    app = App("site", broker=f"sqlite:///{file}")
    with connect(app.settings.broker, heartbeat=0, timeout=5, name="service") as connection:
        connection.channel().queue_declare("bank.g1.0", durable=True, auto_delete=False)
    with app.publisher() as out:
        out.send(app.encode(Deposited(user="alice")), kept_by_sender=True)
    assert out.confirmed == 1
    for part in tmp_path.iterdir():
        part.unlink()

    with pytest.raises(BrokerUnreachable, match="would go nowhere"), app.publisher() as out:
        out.send(app.encode(Deposited(user="bob")), kept_by_sender=True)

    assert out.confirmed == 1
    with app.publisher() as out:  # of others it is only told
        out.publish(Deposited(user="carol"))
    assert out.confirmed == 2
    app.close()


def test_what_its_sender_keeps_is_kept_where_the_file_is_damaged(tmp_path: Path) -> None:
    file = tmp_path / "qworker.db"
    app = App("site", broker=f"sqlite:///{file}", settings={"connect_timeout": 0.1})
    kept = app.encode(Deposited(user="carol"))
    with app.publisher() as out:
        out.publish(Deposited(user="alice"))
    file.write_bytes(b"?" * file.stat().st_size)

    with app.publisher() as out, pytest.raises(QworkerError):
        out.send(kept, kept_by_sender=True)
    app.close()


def test_nobody_is_warned_who_is_told_or_where_services_are(
    app: App, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Unroutable):
        app.publish(Close(user="alice"))
    app.close()
    url = app.settings.broker
    connection = connect(url, heartbeat=0, timeout=1, name="test")
    connection.channel().queue_declare("bank.g1.0", durable=True, auto_delete=False)
    connection.release()

    app.publish(Deposited(user="alice"))

    assert caplog.records == []

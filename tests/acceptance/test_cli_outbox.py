"""``qworker outbox``: what was committed and not sent leaves, with one owner, until SIGTERM."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
from sqlalchemy import create_engine, text
from worker.contrib.sqlalchemy import create_tables

from acceptance.commands import Shell, messages
from databases import Database
from outboxes import AlchemyDesk, Noted, Order
from processes import stands_still
from waiting import until
from worker import App

_APP = """
from worker import App, Event

app = App("desk")

@app.on("noted")
def note(event: dict) -> None:
    pass
"""
#: Dies behind its queues, before its bindings.
_DYING = """\
import os
from desk_app import app
from worker import declaring

declaring._bind = lambda *_: os.kill(os.getpid(), 9)
"""
_QUEUE = "desk.g1.0"


class Office:
    """A service whose processes died before they sent, and the commands of its operator."""

    def __init__(self, folder: Path, database: Database) -> None:
        self.broker = f"sqlite:///{folder / 'broker.db'}"
        self.shell = Shell(
            folder,
            {
                "QWORKER_APP": "desk_app",
                "QWORKER_BROKER_URL": self.broker,
                "QWORKER_LEASE_TTL": "1",
                "QWORKER_OUTBOX_URL": database.url.replace("+psycopg", ""),
            },
        )
        self.shell.write("desk_app.py", _APP)
        self.shell.run("topology", "--declare")
        engine = create_engine(database.url)
        create_tables(engine)
        self.desk = AlchemyDesk(App("desk", broker=self.broker), engine)

    def begin(self, *options: str) -> subprocess.Popen[bytes]:
        """Run the relay."""
        return self.shell.start("outbox", "--pause", "0.05", "--grace", "0", *options)

    def is_empty(self) -> bool:
        return not self.desk.left()

    def received(self) -> list[int]:
        """Return the numbers of what the service would handle, in order."""
        return [orjson.loads(bytes(m.body))["number"] for m in messages(self.broker, _QUEUE)]


@pytest.fixture
def office(tmp_path: Path, database: Database) -> Iterator[Office]:
    office = Office(tmp_path, database)
    yield office
    office.shell.close()
    office.desk.engine.dispose()


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[Shell]:
    """A folder with an app, and a database without the table."""
    environ = {"QWORKER_APP": "desk_app", "QWORKER_BROKER_URL": "sqlite:///broker.db"}
    shell = Shell(tmp_path, environ)
    shell.write("desk_app.py", _APP)
    yield shell
    shell.close()


on_postgresql = pytest.mark.parametrize("database", ["postgresql"], indirect=True)
on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def ended(process: subprocess.Popen[bytes], number: signal.Signals) -> tuple[int, list[Any]]:
    """Send a signal; return the exit code and the records of the log."""
    process.send_signal(number)
    _, log = process.communicate(timeout=30)
    return process.returncode, [json.loads(line) for line in log.splitlines()]


def test_a_burst_sends_what_is_left_and_ends(office: Office) -> None:
    office.desk.leave(*(Noted(key="a", number=n) for n in range(5)))
    office.shell.run("outbox", "--burst", "--batch", "2")
    assert office.received() == [0, 1, 2, 3, 4]
    assert office.is_empty()
    office.shell.run("outbox", "--burst")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_sends_what_comes_until_it_is_asked_to_end(
    office: Office, number: signal.Signals
) -> None:
    relay = office.begin()
    for place in range(3):
        office.desk.leave(Noted(key="a", number=place))
        until(office.is_empty, 30, "the row is sent")
    code, log = ended(relay, number)
    assert code == 0
    told = [record["message"] for record in log]
    assert "relaying the outbox of desk under the lease desk:outbox" in told
    assert office.received() == [0, 1, 2]


def test_another_one_waits_and_takes_over_where_the_first_is_killed(office: Office) -> None:
    first = office.begin()
    office.desk.leave(Noted(key="a", number=0))
    until(office.is_empty, 30, "the first one sends")
    second = office.begin("--log-level", "debug")
    office.desk.leave(Noted(key="a", number=1))
    until(office.is_empty, 30, "the first one goes on")
    first.kill()
    office.desk.leave(Noted(key="a", number=2))
    until(office.is_empty, 30, "the second one sends")
    code, log = ended(second, signal.SIGTERM)
    assert code == 0
    assert ["has the lease" in record["message"] for record in log].count(True) == 1
    assert office.received() == [0, 1, 2]


@on_sqlite
def test_outboxes_in_two_databases_have_a_relay_each_by_their_names(
    office: Office, tmp_path: Path
) -> None:
    """As Django has them, by ``using``."""
    engine = create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    create_tables(engine)
    other = AlchemyDesk(App("desk", broker=office.broker), engine)
    first = office.begin()
    office.desk.leave(Noted(key="a", number=0))
    until(office.is_empty, 30, "the first one sends")
    second = office.begin("--database", str(engine.url), "--name", "other")
    other.leave(Noted(key="b", number=1))
    until(lambda: not other.left(), 30, "the second one sends, though the first has its lease")
    assert ended(first, signal.SIGTERM)[0] == 0
    code, log = ended(second, signal.SIGTERM)
    assert code == 0
    assert "this process has the lease desk:outbox:other" in [each["message"] for each in log]
    assert office.received() == [0, 1]
    engine.dispose()


@on_sqlite
def test_a_burst_beside_another_one_ends_when_nothing_is_left(office: Office) -> None:
    first = office.begin()
    office.desk.leave(Noted(key="a", number=0))
    until(office.is_empty, 30, "the first one sends")
    result = office.shell.run("outbox", "--burst")
    assert "this process waits for the lease desk:outbox, which is another's" in result.err
    assert ended(first, signal.SIGTERM)[0] == 0


@on_sqlite
def test_a_burst_does_not_wait_for_a_broker_that_is_away(office: Office) -> None:
    office.desk.leave(Noted(key="a", number=0))
    away = ("--broker", "amqp://127.0.0.1:1//", "--dedup", office.broker)
    result = office.shell.run("outbox", "--burst", *away, "--connect-timeout", "0.2", code=4)
    assert "127.0.0.1:1" in result.err
    assert office.desk.left() == 1


@on_sqlite
def test_rows_are_kept_from_a_file_that_no_service_was_started_with(
    office: Office, tmp_path: Path
) -> None:
    """It is that of another folder, mostly, and whatever is sent there goes nowhere."""
    office.desk.leave(Noted(key="a", number=0))
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    result = office.shell.run("outbox", "--burst", "--broker", elsewhere, code=4)
    assert "no service was ever started with it" in result.err
    assert office.desk.left() == 1
    relay = office.begin("--broker", elsewhere)
    office.shell.run("topology", "--declare", "--broker", elsewhere)
    until(office.is_empty, 30, "a service has come, and the row is sent")
    assert ended(relay, signal.SIGTERM)[0] == 0
    assert len(messages(elsewhere, _QUEUE)) == 1


@on_sqlite
def test_nor_do_they_leave_where_a_service_died_while_it_declared_itself(
    office: Office, tmp_path: Path
) -> None:
    """Its queues would be there, and nothing bound to them."""
    office.desk.leave(Noted(key="a", number=0))
    office.shell.write("dying_app.py", _DYING)
    elsewhere = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    office.shell.run(
        "topology", "--declare", "--app", "dying_app", "--broker", elsewhere, code=-signal.SIGKILL
    )

    result = office.shell.run("outbox", "--burst", "--broker", elsewhere, code=4)

    assert "no service was ever started with it" in result.err
    assert office.desk.left() == 1


def sessions(office: Office, query: str, *, waiting: bool = False) -> list[int]:
    """Return the server's processes for other sessions, by what was asked of them last."""
    look = text(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND pid <> pg_backend_pid() AND query ILIKE :query"
        " AND (wait_event_type = 'Lock' OR NOT :waiting)"
    )
    with office.desk.engine.connect() as connection:
        return [*connection.scalars(look, {"query": query, "waiting": waiting})]


@on_postgresql
def test_one_that_is_stopped_as_it_removes_rows_keeps_nobody_waiting(office: Office) -> None:
    office.desk.leave(Noted(key="a", number=0))
    with office.desk.engine.connect() as somebody:
        somebody.execute(text("LOCK TABLE qworker_outbox IN SHARE MODE"))
        first = office.begin()
        until(lambda: sessions(office, "delete%", waiting=True), 60, "it waits for the table")
        first.send_signal(signal.SIGSTOP)
        until(lambda: stands_still(first.pid), 10)
    try:
        second = office.begin()
        office.desk.leave(Noted(key="a", number=1), Noted(key="b", number=2))
        until(office.is_empty, 30, "the second one sends, and removes what it has sent")
    finally:
        first.send_signal(signal.SIGCONT)
    assert ended(second, signal.SIGTERM)[0] == 0
    assert [*dict.fromkeys(office.received())] == [0, 1, 2]


@on_postgresql
def test_sessions_that_hang_are_told_and_others_are_opened(office: Office) -> None:
    office.desk.leave(Noted(key="a", number=0))
    relay = office.begin()
    until(office.is_empty, 30, "it sends")
    office.desk.engine.dispose()
    hung = sessions(office, "%qworker_outbox%")
    assert hung
    for pid in hung:
        os.kill(pid, signal.SIGSTOP)
    try:
        office.desk.leave(Noted(key="a", number=1))
        until(office.is_empty, 60, "it sends again")
    finally:
        for pid in hung:
            os.kill(pid, signal.SIGCONT)
    code, log = ended(relay, signal.SIGTERM)
    assert code == 0
    told = [r["message"] for r in log if "nothing is sent until this is over" in r["message"]]
    assert "has not answered for 10 seconds" in told[0]


@on_sqlite
def test_one_that_ends_gives_the_lease_back_at_once(office: Office) -> None:
    first = office.begin("--lease-ttl", "60")
    office.desk.leave(Noted(key="a", number=0))
    until(office.is_empty, 30, "the first one sends")
    second = office.begin("--lease-ttl", "60")
    assert ended(first, signal.SIGTERM)[0] == 0
    office.desk.leave(Noted(key="a", number=1))
    until(office.is_empty, 30, "the second one sends")
    assert ended(second, signal.SIGTERM)[0] == 0


@on_sqlite
def test_what_the_broker_refuses_stays_and_a_burst_says_so(office: Office) -> None:
    office.desk.leave(Order(key="a", number=0), Noted(key="a", number=1), Noted(key="b", number=2))
    result = office.shell.run("outbox", "--burst", code=75)
    (record,) = [r for r in map(json.loads, result.err.splitlines()) if "refused" in r["message"]]
    assert record["message_id"]
    assert "no queue is bound to exchange 'qw.commands' for 'nobody'" in record["message"]
    assert office.received() == [2]
    assert office.desk.left() == 2


@on_sqlite
def test_it_waits_for_a_broker_that_is_away_and_says_so_once(office: Office) -> None:
    office.desk.leave(Noted(key="a", number=0))
    leases = f"sqlite:///{office.shell.folder / 'leases.db'}"
    away = ("--broker", "amqp://127.0.0.1:1", "--leases", leases, "--connect-timeout", "0.3")
    relay = office.begin(*away)
    assert relay.stderr is not None
    lines: list[str] = []
    while not any("nothing is sent until this is over" in line for line in lines):
        lines.append(relay.stderr.readline().decode())
        assert lines[-1], lines
    code, log = ended(relay, signal.SIGTERM)
    assert code == 0
    assert not [r for r in log if "nothing is sent" in r["message"]]
    assert office.desk.left() == 1


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ((), 2, "or set QWORKER_OUTBOX_URL"),
        (("--database", "sqlite:///nothing.db"), 3, "sqlite:///nothing.db: there is no such file"),
        (("--database", "sqlite:///nowhere/n.db"), 3, "there is no such file"),
        (("--database", "sqllite:///x.db"), 3, "sqllite:///x.db: did you mean sqlite://?"),
        (("--database", "oracle+nothing://u:secret@h/x"), 3, "knows no oracle+nothing://"),
        (("--database", "nonsense"), 3, "the database nonsense"),
        (("--database", "postgresql://u:secret@h:port/bank"), 3, "this is no URL as SQLAlchemy"),
        (("--database", "sqlite:///x.db?timeout=abc"), 3, "could not convert string to float"),
        (("--database", "sqlite+aiosqlite:///x.db"), 3, "this driver is for asyncio"),
        (
            ("--database", "postgresql://u:secret@127.0.0.1:1/bank", "--connect-timeout", "0.2"),
            4,
            "the outbox at postgresql+psycopg://u:***@127.0.0.1:1/bank",
        ),
        (("--database", "sqlite:///x.db", "--broker", "memory://"), 3, "it lives in one process"),
        (("--database", "sqlite:///x.db", "--batch", "0"), 2, "is not a whole number from 1"),
        (("--database", "sqlite:///x.db", "--pause", "soon"), 2, "is not a number of seconds"),
    ],
)
def test_a_mistake_is_told_in_words(
    plain: Shell, options: Sequence[str], code: int, said: str
) -> None:
    result = plain.run("outbox", *options, code=code)
    assert said in result.err
    assert "Traceback" not in result.err
    assert "secret" not in result.err
    assert not [*plain.folder.glob("[xn]*.db")], "what is misspelt is not made"


@pytest.mark.parametrize(
    ("missing", "database", "extra"),
    [
        ("sqlalchemy", "sqlite:///x.db", "sqlalchemy"),
        ("django", "django://default", "django"),
        ("asgiref", "django://default", "django"),
        ("psycopg", "postgresql://u:secret@127.0.0.1:1/bank", "postgres"),
    ],
)
def test_without_what_reads_the_rows_the_extra_is_named(
    plain: Shell, missing: str, database: str, extra: str
) -> None:
    program = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from worker.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ("outbox", "--database", database)
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=plain.folder,
        env=plain.environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert f"pip install '.[{extra}]'" in done.stderr
    assert "secret" not in done.stderr

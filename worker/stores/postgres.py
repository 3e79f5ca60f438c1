"""A PostgreSQL server, for stores of every kind: a connection that waits no longer than it may.

A server that hangs is away: nothing here waits for it past the timeout, by the client's own clock.
(Connecting takes two seconds at least before it is given up, as libpq has it, at each address.
Before that its name is looked up, within the timeout too, unless that is in a service file.) And
what a client leaves behind as it hangs, dies, or is cut off keeps nobody waiting for long either:
the server ends its statements, and its idle transactions, by their timeouts.
"""

from __future__ import annotations

import math
import re
import select
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import error_from_result
from psycopg.pq import ExecStatus
from psycopg.rows import TupleRow
from psycopg.waiting import Ready, Wait

from worker.config import mask_url
from worker.errors import ConfigurationError
from worker.stores.hosts import Hosts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from psycopg.abc import RV, PQGen
    from psycopg.sql import Composable

    from worker.errors import QworkerError, Unreachable

#: What a server, or its client, says of a URL that waiting does not mend.
_REFUSALS = (
    "authentication failed", "does not exist", "invalid", "no password supplied",
    "no pg_hba.conf entry", "not permitted to log in", "permission denied",
)  # fmt: skip
#: The oldest version that is tried: pg_terminate_backend waits from there on.
_OLDEST = 140_000
#: One that creates tables keeps all others from it, of whatever kind of store: with IF NOT EXISTS,
#: too, two at the same moment disturb each other.
_ONE_AT_A_TIME = "SELECT pg_advisory_xact_lock(7163120461)"
#: Asked of the server itself: what a pooler says of it when it connects is made up. (Nor do poolers
#: take settings then, so they are set by what asks.)
_WHO = """SELECT pg_backend_pid(),
    (SELECT backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()), {settings}"""
#: A pooler may have given this client the session that it had before: all of that is over.
_END_PREDECESSOR = """SELECT pg_terminate_backend(pid, %s) FROM pg_stat_activity
    WHERE pid = %s AND backend_start = %s AND pid <> pg_backend_pid()"""
_EVENTS = {
    Wait.R: select.POLLIN,
    Wait.W: select.POLLOUT,
    Wait.RW: select.POLLIN | select.POLLOUT,
}


class Kind(NamedTuple):
    """What a store in PostgreSQL is, for its errors."""

    #: As errors call it, and its URL: ``dedup``.
    name: str
    #: What its user has to be allowed to use and to create.
    tables: str
    #: What is raised while the server is away.
    unavailable: type[Unreachable]


class Line(psycopg.Connection[TupleRow]):
    """A connection that waits for its server until ``give_up`` (monotonic), and no longer."""

    give_up = math.inf

    def wait(self, gen: PQGen[RV], *_: object, **__: object) -> RV:
        """Drive one of psycopg's generators to its end."""
        try:
            state = next(gen)
            while True:
                state = gen.send(self._ready(state))
        except StopIteration as done:
            result: RV = done.value
            return result

    def begin(self, script: str) -> Callable[[], list[str]]:
        """Send statements; the call that is returned waits for the first value of each.

        They are one message. So the server begins when it has all of them, runs them as one
        transaction, and needs nobody to end it: no lock waits for a client that is gone. (What
        psycopg's pipeline mode sends is several messages, of which a network may deliver some.)
        """
        server = self.pgconn
        server.send_query(script.encode())
        while server.flush():
            if self._ready(Wait.RW) & Ready.R:
                server.consume_input()

        def finish() -> list[str]:
            values, error = [], None
            while True:
                while server.is_busy():
                    self._ready(Wait.R)
                    server.consume_input()
                result = server.get_result()
                if result is None:
                    break
                if result.status == ExecStatus.FATAL_ERROR:
                    error = error_from_result(result)
                elif result.status == ExecStatus.TUPLES_OK:
                    values.append((result.get_value(0, 0) or b"").decode())
            if error is not None:
                raise error
            return values

        return finish

    def _ready(self, wanted: Wait) -> Ready:
        """Wait until the socket can be used so. What is there is taken also when it is late."""
        poll = select.poll()
        poll.register(self.pgconn.socket, _EVENTS[wanted])
        while True:
            left = self.give_up - time.monotonic()
            found = poll.poll(None if left == math.inf else max(0.0, left) * 1000)
            if found:
                break
            if left <= 0:
                raise psycopg.OperationalError("timeout: the server does not answer")
        ((_, events),) = found
        ready = (Ready.R if events & ~select.POLLOUT else 0) | (
            Ready.W if events & ~select.POLLIN else 0
        )
        return Ready(ready & wanted)


class Database:
    """The connection to the database of a URL, made when needed and again after any error.

    One thread at a time uses it.
    """

    def __init__(
        self, url: str, kind: Kind, timeout: float, prepare: Callable[[Line], None]
    ) -> None:
        """Read the URL; connects when it is asked for something. Raises ConfigurationError.

        ``prepare`` is called with each new connection.
        """
        self.shown = f"{kind.name} store {mask_url(url)}"
        self._url = url
        self._parameters = _parameters(url, kind, timeout)
        self._hosts = Hosts(conninfo_to_dict(url))
        settings = (f"set_config('{name}', '{to}', false)" for name, to in _settings(timeout))
        self._who = _WHO.format(settings=", ".join(settings))
        self._kind = kind
        self._timeout = timeout
        self._prepare = prepare
        self._line: Line | None = None
        #: The server's process for this connection, and for the last one: its number, and when it
        #: was started.
        self._current: tuple[int, Any] | None = None
        self._left: tuple[int, Any] | None = None

    @contextmanager
    def talking(self, *, opening: bool = False) -> Iterator[Line]:
        """Give a connection for the block, and tell in this package's errors what goes wrong.

        ``opening``: what waiting cannot mend is a ConfigurationError, and not that the server is
        away. Closing matters after any exception: an answer that nobody read would be taken for
        that to the next question.
        """
        try:
            if self._line is None:
                self._line = self._connect()
            self._line.give_up = time.monotonic() + self._timeout
            yield self._line
        except psycopg.Error as error:
            self.close()
            raise self._failure(error, opening=opening) from None
        except BaseException:
            self.close()
            raise

    def mistake(self, reason: str) -> ConfigurationError:
        """Return the error that says what is set wrong about this store."""
        return ConfigurationError(f"{self.shown}: {reason}")

    def close(self) -> None:
        """Disconnect; the next call connects again."""
        line, self._line = self._line, None
        self._left, self._current = self._current or self._left, None
        if line is not None:
            line.close()

    def _failure(self, error: psycopg.Error, *, opening: bool) -> QworkerError:
        """Return what ``error`` means here; nothing in it shows a password."""
        text = mask_url(str(error).strip()) or type(error).__name__
        wrong = isinstance(error, psycopg.ProgrammingError) or (
            isinstance(error, psycopg.OperationalError)
            and error.sqlstate is None
            and any(words in text for words in _REFUSALS)
        )
        if opening and wrong:
            return self.mistake(
                f"{text}; name a database, and a user that may use, and at first create,"
                f" {self._kind.tables}"
            )
        return self._kind.unavailable(f"{self.shown}: {text}")

    def _connect(self) -> Line:
        # What psycopg prepares by itself it discards with all that others prepared.
        try:
            parameters = {**self._parameters, **self._hosts.parameters(self._timeout)}
        except OSError as error:
            raise psycopg.OperationalError(str(error)) from None
        line = Line.connect(self._url, autocommit=True, prepare_threshold=None, **parameters)
        self._line = line  # closed by whoever sees the following fail
        line.give_up = time.monotonic() + self._timeout
        if line.info.server_version < _OLDEST:
            raise self.mistake(
                f"PostgreSQL {line.info.server_version // 10_000} is too old; use 14 or newer"
            )
        ((pid, started, *_),) = line.execute(self._who)
        if self._left is not None:
            self._end_predecessor(line, *self._left)
        self._current = pid, started
        self._prepare(line)
        return line

    def _end_predecessor(self, line: Line, pid: int, started: Any) -> None:
        """End what the server still does for the connection before this one.

        What it was sent it might yet begin: after this one has sent it again, and after what was
        done since then.
        """
        milliseconds = math.ceil(self._timeout * 500)
        row = line.execute(_END_PREDECESSOR, (milliseconds, pid, started)).fetchone()
        if row is not None and not row[0]:
            raise psycopg.OperationalError("what was asked of it before does not end")
        self._left = None


def _read(url: str) -> tuple[Mapping[str, Any] | None, str]:
    """Return what a URL says; None where it cannot be read, and what may be told of that."""
    try:
        return conninfo_to_dict(url), ""
    except psycopg.ProgrammingError as error:
        told = re.search("invalid URI query parameter: .*", str(error))
        return None, f" ({told[0]})" if told else ""


def _parameters(url: str, kind: Kind, timeout: float) -> dict[str, Any]:
    """Return what a connection needs besides its URL. Raises ConfigurationError."""
    said, reason = _read(url)
    # Half of a password with a slash in it may be taken for the port.
    if said is None or not re.fullmatch(r"[\d,]*", str(said.get("port") or "")):
        # Not the URL: where it cannot be read, it is not known which part of it is the password.
        raise ConfigurationError(
            f"the {kind.name} URL cannot be read{reason}: write postgresql://user:password@host/"
            "database?sslmode=…; in a password, %2F for /, %40 for @ and %25 for %"
        )
    return {
        "connect_timeout": math.ceil(timeout),
        "tcp_user_timeout": math.ceil(timeout * 1000),  # a server that vanished without a word
        "application_name": said.get("application_name") or f"qworker {kind.name}",
    }


def _settings(timeout: float) -> Iterator[tuple[str, object]]:
    """Yield what a session has to be like."""
    # Ahead of the client, so that it hears the reason.
    yield "statement_timeout", math.ceil(timeout * 900)
    yield "lock_timeout", math.ceil(timeout * 900)
    yield "idle_in_transaction_session_timeout", math.ceil(timeout * 1000)
    # Whatever the environment, or the URL, says: texts are those of any language.
    yield "client_encoding", "UTF8"
    # What a lock was waited for has to be seen as it is by then.
    yield "default_transaction_isolation", "read committed"


@contextmanager
def alone(line: Line) -> Iterator[None]:
    """Make the block one transaction, of which there is one at a time in a database."""
    with line.transaction():
        line.execute(_ONE_AT_A_TIME)
        yield


def send_alone(line: Line, statement: Composable, *, patience: int | None = None) -> None:
    """Let ``statement`` be such a transaction: one message, so that no lock waits for the client.

    ``patience``: milliseconds that it waits for each lock, this one too.
    """
    waits = "" if patience is None else f"SET LOCAL lock_timeout = {patience}; "
    line.begin(f"{waits}{_ONE_AT_A_TIME}; {statement.as_string(line)}")()


def is_lost(line: Line, error: psycopg.Error) -> bool:
    """Tell whether ``error`` means that the connection cannot be used any more."""
    return line.closed or (error.sqlstate or "08").startswith(("08", "57P"))

"""A service under test: started by its real command line, and everything it did, seen from outside.

A :class:`Service` is what an operator has: a process to start, to signal and to kill, its exit
code, its log and its status file. A :class:`Ledger` is what the world has: the effects that
handlers left in a file of their own. Nothing here looks into the runtime.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import IO, Any

import orjson
import pika

from acceptance.apps.events import HELD, RELEASED, Step
from chaos.history import Entry, History
from processes import Started, status_of
from waiting import until
from worker import App, Event

STEP_FIELDS = ("key", "sequence", "fault", "seconds")
TESTS = Path(__file__).parents[1]
COMMAND = (sys.executable, "-m", "worker.cli")
#: The handlers of ``apps/steps.py``, and the options that the tests under load run it with.
STEPS = ("steps.count", "steps.observe")
SCALE = ("--shards", "4", "--processes", "2", "--concurrency", "8")
#: Seconds that anything may take on a busy machine before it counts as hung.
PATIENCE = 60.0


class Ledger(History):
    """What handlers noted in a file outside the system: that they began, and their effects."""

    def has(self, ids: Iterable[str], *handlers: str) -> bool:
        """Tell whether each of ``ids`` took effect at each of ``handlers``."""
        effects = {(e.handler, e.id) for e in self.entries("effect")}
        return effects.issuperset(product(handlers, ids))

    def executions(self, *ids: str) -> Counter[tuple[str, str]]:
        """Return how often each (handler, id) began; of these ids, if any are given."""
        return Counter((e.handler, e.id) for e in self.entries("begin") if not ids or e.id in ids)

    def twice(self, what: str) -> dict[tuple[str, str], int]:
        """Return the (handler, id) with more than one line of that kind, and how many."""
        times = Counter((e.handler, e.id) for e in self.entries(what))
        return {place: number for place, number in times.items() if number > 1}

    def sequences(self) -> dict[tuple[str, str], list[int]]:
        """Return the sequence numbers of the effects of each (handler, key), in their order."""
        found: dict[tuple[str, str], list[int]] = defaultdict(list)
        for entry in self.entries("effect"):
            found[entry.handler, entry.key].append(entry.sequence)
        return dict(found)

    def disorder(self) -> dict[tuple[str, str], list[int]]:
        """Return the (handler, key) whose effects did not happen in the order of publishing."""
        return {place: each for place, each in self.sequences().items() if each != sorted(each)}

    def overlaps(self) -> list[tuple[Entry, Entry]]:
        """Return where a key's handler began before its last execution ended."""
        found: list[tuple[Entry, Entry]] = []
        under_way: dict[tuple[str, str], Entry] = {}
        for entry in self.entries():
            place = entry.handler, entry.key
            if entry.what == "begin":
                before = under_way.get(place)
                if before is not None and before.pid == entry.pid:
                    found.append((before, entry))
                under_way[place] = entry
            else:
                under_way.pop(place, None)
        return found


class Service(Started):
    """One supervisor with its processes, in a folder and a process group of its own."""

    patience = PATIENCE
    #: Stands before its commands, to make them run elsewhere under the same pid.
    entrance: tuple[str, ...] = ()

    def __init__(
        self, folder: Path, app: str, *, broker: str, dedup: str = "", **settings: object
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.app = app
        self.ledger = Ledger(folder / "ledger")
        self._run_folder = folder / "run"
        self._starts = 0
        self.environ = {
            **os.environ,
            "PYTHONPATH": str(TESTS),
            "LEDGER": str(self.ledger.file),
            "QWORKER_RUN_DIR": str(self._run_folder),
            "QWORKER_BROKER_URL": broker,
            "QWORKER_DEDUP_URL": dedup,
        }
        self.configure(**settings)

    def configure(self, **settings: object) -> None:
        """Set settings by their environment variables, for the starts to come."""
        for name, value in settings.items():
            self.environ[f"QWORKER_{name.upper()}"] = str(value)

    def use_ledger(self, ledger: Ledger) -> None:
        """Write to the ledger of another service."""
        self.ledger = ledger
        self.environ["LEDGER"] = str(ledger.file)

    # What an operator does

    def start(self, *options: str) -> None:
        """Run ``qworker start``; the log of each start is a file of its own."""
        self._starts += 1
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [*self.entrance, *COMMAND, "start", "--app", self.app, *options],
                cwd=self.folder,
                env=self.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def start_ready(self, *options: str) -> None:
        """Start it and wait until every process consumes."""
        self.start(*options)
        until(self._ready_or_dead, PATIENCE, "every process is ready")
        assert self.running, self.log

    def drain(self) -> int:
        """Send SIGTERM and return the exit code."""
        self.signal(signal.SIGTERM)
        return self.exit_code()

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run another command of ``qworker`` in the service's place."""
        return subprocess.run(
            [*self.entrance, *COMMAND, *arguments, "--app", self.app],
            cwd=self.folder,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )

    def begin(
        self, *arguments: str, says: int | IO[bytes] = subprocess.DEVNULL
    ) -> subprocess.Popen[bytes]:
        """Begin another command of ``qworker`` in the service's place, and do not wait for it.

        ``says`` is for its standard error.
        """
        return subprocess.Popen(
            [*self.entrance, *COMMAND, *arguments, "--app", self.app],
            cwd=self.folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=says,
        )

    def release(self) -> None:
        """Let the handlers of what is held go on."""
        (self.folder / RELEASED).touch()

    def dead_letters(self) -> list[dict[str, Any]]:
        """Return what ``qworker dlq list`` shows."""
        listed: list[dict[str, Any]] = json.loads(self.run("dlq", "list", "--json").stdout)
        return listed

    def end(self) -> None:
        """Kill what is left of it, and show the log where the test failed."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)
        for file in sorted(self.folder.glob("log.*")):
            sys.stderr.write(f"---- {file.name}\n{file.read_text()}")

    # What an operator sees

    def status(self) -> dict[str, Any]:
        """Return what the status file of the last start says; nothing where there is none."""
        return status_of(self.pid, self._run_folder)

    def processes(self) -> list[int]:
        """Return the pids of the processes that consume."""
        listed = self.status().get("processes", [])
        return [each["pid"] for each in listed if each["stage"] == "ready"]

    def counter(self, name: str) -> int:
        """Return a counter of the service since its start."""
        return int(self.status().get("counters", {}).get(name, 0))

    @property
    def log_file(self) -> Path:
        """The log of the last start."""
        return self.folder / f"log.{self._starts}"

    @property
    def log(self) -> str:
        """The log since the last start."""
        return self.log_file.read_text()

    def records(self) -> list[dict[str, Any]]:
        """Return the records of the log since the last start (JSON: standard error is a file)."""
        found = []
        for line in self.log.splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
        return [record for record in found if isinstance(record, dict)]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the runtime events of that name in the log, by their details."""
        return [
            record["event"]
            for record in self.records()
            if "event" in record and record["message"].startswith(f"{name}:")
        ]

    def _ready_or_dead(self) -> bool:
        return bool(self.status().get("ready")) or not self.running


class Load:
    """Publishes steps of several keys from a thread of its own, as an application would.

    ``confirmed`` are the ids that the broker has confirmed.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self.confirmed: set[str] = set()

    def publish(self, steps: Iterable[Event], *, batch: int = 100, pause: float = 0.0) -> set[str]:
        """Publish ``steps``, each batch confirmed before the next; return their ids."""
        steps = iter(steps)
        ids: set[str] = set()
        while not self._stop.is_set():
            with self._app.publisher() as out:
                pending = [out.publish(step) for step in islice(steps, batch)]
            if not pending:
                break
            ids.update(pending)
            self.confirmed.update(pending)
            self._stop.wait(pause)
        return ids

    @contextmanager
    def in_background(
        self, steps: Iterable[Event], *, batch: int = 5, pause: float = 0.02
    ) -> Iterator[None]:
        """Publish a few hundred a second while the block runs; stop at its end."""

        def work() -> None:
            try:
                self.publish(steps, batch=batch, pause=pause)
            except BaseException as error:  # noqa: BLE001 - told by the test's own thread
                self._error = error

        self._stop.clear()
        self._thread = threading.Thread(target=work, name="load", daemon=True)
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the publisher hangs"
        if self._error is not None:
            raise self._error


class ForeignLoad(Load):
    """The same from a plain AMQP client, which knows neither slots nor, maybe, keys."""

    def __init__(self, amqp_url: str, *, keyed: bool) -> None:
        super().__init__(App("nobody"))
        self._url = amqp_url
        self._keyed = keyed
        self._channel: Any = None

    def publish(self, steps: Iterable[Event], *, batch: int = 100, pause: float = 0.0) -> set[str]:
        """Publish ``steps`` one by one, each again until it is confirmed; return their ids."""
        ids: set[str] = set()
        for step in steps:
            while not self._stop.is_set():
                try:
                    self._send(step)
                except pika.exceptions.AMQPError:
                    self._channel = None
                    self._stop.wait(0.05)
                else:
                    ids.add(step.event_id)
                    self.confirmed.add(step.event_id)
                    break
            if self._stop.is_set():
                break
        if self._channel is not None:
            self._channel.connection.close()
            self._channel = None
        return ids

    def _send(self, step: Any) -> None:
        if self._channel is None:
            connection = pika.BlockingConnection(pika.URLParameters(self._url))
            self._channel = connection.channel()
            self._channel.confirm_delivery()
        body = {name: value for name, value in vars(step).items() if name in STEP_FIELDS}
        headers = {"qw-key": step.key} if self._keyed else None
        properties = pika.BasicProperties(
            message_id=step.event_id, type=step.name, headers=headers, delivery_mode=2
        )
        self._channel.basic_publish("qw.events", step.name, orjson.dumps(body), properties)


def steps(keys: int, each: int, begin: int = 0, **facts: Any) -> Iterator[Step]:
    """Yield ``each`` steps of each of ``keys`` keys, the keys in turn."""
    for sequence in range(begin, begin + each):
        for key in range(keys):
            yield Step(key=f"key-{key}", sequence=sequence, **facts)


def held(key: str, sequence: int = 0) -> Step:
    """Return a step whose handlers run until the service is told to ``release`` them."""
    return Step(key=key, sequence=sequence, fault=HELD)


def forever(keys: int, **facts: Any) -> Iterator[Step]:
    """Yield steps of ``keys`` keys in turn, without an end."""
    yield from steps(keys, sys.maxsize, **facts)


@dataclass(frozen=True, slots=True)
class Letter:
    """A message in a queue, as any AMQP client sees it."""

    id: str
    raw: bytes
    headers: Mapping[str, Any]

    @property
    def body(self) -> dict[str, Any]:
        """The payload."""
        content: dict[str, Any] = json.loads(self.raw)
        return content

    @property
    def reason(self) -> str:
        """Why it was set aside."""
        return str(self.headers["qw-dead-reason"])


def letters(amqp_url: str, queue: str) -> list[Letter]:
    """Return the messages of a queue, in order; they stay there."""
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    try:
        channel = connection.channel()
        found: list[Letter] = []
        while True:
            method, properties, body = channel.basic_get(queue)
            if method is None:
                return found
            found.append(Letter(properties.message_id or "", body, properties.headers or {}))
    finally:
        connection.close()


def is_consumed(amqp_url: str, queue: str) -> bool:
    """Tell whether there is such a queue, and somebody consumes it."""
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    try:
        declared = connection.channel().queue_declare(queue, passive=True)
    except pika.exceptions.ChannelClosedByBroker:
        return False
    finally:
        connection.close()
    return bool(declared.method.consumer_count)


def put(amqp_url: str, queue: str, step: Step) -> None:
    """Put a step straight into a queue, past every exchange, as a plain AMQP client."""
    connection = pika.BlockingConnection(pika.URLParameters(amqp_url))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        body = {name: value for name, value in vars(step).items() if name in STEP_FIELDS}
        channel.basic_publish(
            "",
            queue,
            orjson.dumps(body),
            pika.BasicProperties(
                message_id=step.event_id, type=step.name, headers={"qw-key": step.key}
            ),
            mandatory=True,
        )
    finally:
        connection.close()


def eventually(condition: Callable[[], Any], message: str) -> None:
    """Wait until ``condition`` holds, for as long as anything may take."""
    until(condition, PATIENCE, message)


def some_more(service: Service, number: int = 100) -> None:
    """Wait until the service has done some more work."""
    target = len(service.ledger.entries("effect")) + number
    eventually(lambda: len(service.ledger.entries("effect")) >= target, "work goes on")

"""The servers, a place of its own on them for each run, and a contender at work there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self

import redis
from peers.unit import spawn

from servers import Guard, PostgreSQL, RabbitMQ, Redis
from speed.contenders import RABBITMQ, SQLITE, Contender, argv
from speed.load import Load
from speed.sharedmemory import Counts, Moments
from speed.tree import Tree

BENCHMARKS = Path(__file__).resolve().parent.parent
#: Seconds without one more event after which a contender is given up, and in which it has to end.
PATIENCE = 60.0
_LOOK = 0.004
_LOG_CHARACTERS = 2_000


class Unfinished(Exception):
    """A contender stopped before its work was done; the text says how far it came, and its log."""


class Durable(PostgreSQL):
    """A PostgreSQL that has on disk what it answered, as tests do not need it."""

    def command(self) -> Sequence[str | Path]:
        """Return the command that runs it."""
        return [*super().command(), "-c", "fsync=on"]


class Servers:
    """RabbitMQ, Redis and PostgreSQL, each started at the first use and ended with the block."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    @cached_property
    def guard(self) -> Guard:
        """Ends what this process leaves behind."""
        return self._stack.enter_context(Guard())

    @cached_property
    def rabbitmq(self) -> RabbitMQ:
        """The broker."""
        return self._stack.enter_context(RabbitMQ(self._own("rabbitmq"), self.guard))

    @cached_property
    def redis(self) -> Redis:
        """The store. It does not rewrite its file in the middle of a run."""
        server = self._stack.enter_context(Redis(self._own("redis"), self.guard))
        with redis.Redis.from_url(server.url) as client:
            client.config_set("auto-aof-rewrite-percentage", 0)
        return server

    @cached_property
    def postgresql(self) -> PostgreSQL:
        """The other store."""
        return self._stack.enter_context(Durable(self._own("postgresql"), self.guard))

    def _own(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir()
        return folder

    @contextmanager
    def site(self, contender: Contender, load: Load) -> Iterator[Site]:
        """Give a contender an empty place for one run, which is gone afterwards."""
        unfinished: Unfinished | None = None
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=self._folder)))
            database = self.redis.fresh_url()
            vhost = ""
            if contender.broker == RABBITMQ:
                vhost = stack.enter_context(self.rabbitmq.vhost())
            ids = self.postgresql.fresh_url() if contender.dedup == "postgresql" else ""
            try:
                yield Site(contender, load, Place(folder, vhost, database, ids), self.guard)
            except Unfinished as error:
                # The next one must not meet what this one left.
                unfinished = error
            self.empty(database)
        if unfinished is not None:
            raise unfinished

    def empty(self, database: str) -> None:
        """Remove what a run left in Redis."""
        with redis.Redis.from_url(database) as client:
            client.flushdb()


@dataclass(frozen=True, slots=True)
class Place:
    """Where one run happens."""

    folder: Path
    vhost: str
    redis: str
    #: Empty where the contender has its ids elsewhere.
    postgresql: str = ""

    def dedup_url(self, store: str) -> str:
        """Return the URL of an empty store of qworker; see ``contenders.STORES``."""
        return {
            "memory": "memory://",
            "redis": self.redis,
            "postgresql": self.postgresql,
            "sqlite": f"sqlite:///{self.folder / 'dedup.db'}",
        }[store]

    def environ(self, contender: Contender, load: Load) -> dict[str, str]:
        """Return what all processes of the run have in their environment."""
        own = {
            "PYTHONPATH": str(BENCHMARKS),
            "PYTHONUNBUFFERED": "1",
            "SPEED_LOAD": load.dump(),
            "REDIS_URL": self.redis,
            "QWORKER_RUN_DIR": str(self.folder / "run"),
        }
        broker = self.vhost
        if contender.broker == SQLITE:
            broker = f"sqlite:///{self.folder / 'broker.db'}"
            own["HUEY_FILE"] = str(self.folder / "huey.db")
        if self.vhost:
            own["BROKER_URL"] = self.vhost
        if contender.is_qworker:
            own["QWORKER_BROKER_URL"] = broker
            # An embedded broker has its ids in its own file, by default.
            if contender.broker == RABBITMQ:
                own["QWORKER_DEDUP_URL"] = self.dedup_url(contender.dedup)
            if contender.dedup == "memory":
                own["QWORKER_LEASES_URL"] = "memory://"
        if contender.mark:
            own["SPEED_MARK"] = "1"
        return {**os.environ, **own, **contender.environ}


class Site:
    """One contender with its load."""

    def __init__(self, contender: Contender, load: Load, place: Place, guard: Guard) -> None:
        self.contender = contender
        self.load = load
        self.place = place
        self.environ = place.environ(contender, load)
        self._guard = guard
        if contender.is_qworker:
            self._declare()

    def fill(self, load: Load | None = None, **environ: str) -> dict[str, float]:
        """Publish the site's load, or another, in a process of its own.

        Returns how many ``events`` left in how many ``seconds`` and ``cpu`` seconds, but for the
        first few. Raises Unfinished.
        """
        environ = {**self.environ, "SPEED_LOAD": (load or self.load).dump(), **environ}
        done = self._run([sys.executable, "-m", "speed.fill", self.contender.app], environ)
        report: dict[str, float] = json.loads(done.splitlines()[-1])
        return report

    def moments(self, name: str) -> tuple[Moments, Path]:
        """Make a file of a moment for each event."""
        path = self.place.folder / name
        return Moments.create(path, self.load.events), path

    @contextmanager
    def at_work(self, **environ: str) -> Iterator[Worker]:
        """Run the contender while the block runs."""
        counts = self.place.folder / "counts"
        shared = Counts.create(counts)
        environ = {**self.environ, "SPEED_COUNTS": str(counts), **environ}
        worker = Worker(argv(self.contender), self.place.folder, environ, shared, self._guard)
        try:
            yield worker
        finally:
            worker.end()

    def _declare(self) -> None:
        """Make the queues: an event that nobody has a queue for is not kept."""
        shards = self.contender.command[self.contender.command.index("--shards") + 1]
        words = ("topology", "--declare", "--app", self.contender.app, "--shards", shards)
        self._run([sys.executable, "-m", "worker.cli", *words], self.environ)

    def _run(self, command: list[str], environ: Mapping[str, str]) -> str:
        done = subprocess.run(
            command,
            env=environ,
            cwd=self.place.folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            what = " ".join(command[2:])
            raise Unfinished(f"{what}: {done.stdout}{done.stderr[-_LOG_CHARACTERS:]}")
        return done.stdout


@dataclass(frozen=True, slots=True)
class Snapshot:
    """How far a worker had come at a moment."""

    at: float
    count: int
    cpu: float


class Worker:
    """A contender that runs; its time is counted from its start."""

    def __init__(
        self,
        command: list[str],
        folder: Path,
        environ: Mapping[str, str],
        counts: Counts,
        guard: Guard,
    ) -> None:
        self._counts = counts
        self._guard = guard
        self._log = folder / "worker.log"
        self.began = time.monotonic()
        with self._log.open("wb") as log:
            self._process = spawn(command, folder, environ, log)
        guard.watch(self._process.pid)
        self.tree = Tree(self._process.pid)

    @property
    def count(self) -> int:
        """How many events its handlers have counted."""
        return self._counts.total()

    def snapshot(self) -> Snapshot:
        """Look at it now."""
        count = self.count
        return Snapshot(time.monotonic(), count, self.tree.cpu())

    def reach(self, count: int) -> Snapshot:
        """Wait until it has come so far. Raises Unfinished where it comes no further."""
        return self._wait(lambda seen: seen >= count, count)

    def join(self, processes: int, count: int) -> Snapshot:
        """Wait until so many processes have run handlers, or so many events are done."""
        return self._wait(
            lambda seen: self._counts.processes() >= processes or seen >= count, count
        )

    def _wait(self, is_there: Callable[[int], bool], count: int) -> Snapshot:
        seen = self.count
        deadline = time.monotonic() + PATIENCE
        while not is_there(seen):
            if time.monotonic() > deadline:
                raise Unfinished(self._told(seen, count, f"nothing for {PATIENCE:g} s"))
            if (code := self._process.poll()) is not None:
                raise Unfinished(self._told(seen, count, f"ended with code {code}"))
            time.sleep(_LOOK)
            if (now := self.count) != seen:
                seen, deadline = now, time.monotonic() + PATIENCE
        return self.snapshot()

    def drain(self) -> tuple[float, int]:
        """Send SIGTERM, and wait for the end; return the seconds and the exit code."""
        began = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            raise Unfinished(f"still there {PATIENCE:g} s after SIGTERM") from None
        return time.monotonic() - began, code

    def end(self) -> None:
        """End it, with all that it started."""
        self.tree.processes()
        if self._process.poll() is None:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
        # What its own end left behind, in its group and out of it.
        left = self.tree.processes()
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()
        self._guard.forget(self._process.pid)

    def _told(self, seen: int, count: int, why: str) -> str:
        log = self._log.read_text(errors="replace")[-_LOG_CHARACTERS:]
        return f"{seen:,} of {count:,} events, then {why}\n{log}"

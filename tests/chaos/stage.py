"""Where a trial plays: supervisors of one service, its publishers, and the history of all of it.

Whoever ended is started again, as systemd would, until the stage is told to let be. Faults strike
supervisors by :meth:`Stage.one`, each of them one at a time.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from random import Random
from subprocess import Popen, TimeoutExpired
from time import monotonic
from typing import Any, Self

from acceptance.running import TESTS, Ledger
from chaos import clerk
from chaos.blows import EVERYBODY, Blows
from chaos.changes import Changes
from chaos.checker import Due
from chaos.crashpoints import Board
from chaos.database import Database, Records
from chaos.deaths import End, Watch
from chaos.executions import Fault, Kind, faults
from chaos.faults.catalog import Setting
from chaos.history import History, Writer
from chaos.mortal import Mortal
from chaos.places import Place, Wiring
from chaos.publishing import Publisher
from chaos.toll import JUST_NOW
from chaos.workloads import Workload
from machines.supervisor import Supervisor
from processes import is_alive
from servers import Guard
from waiting import until
from worker.topology import dead_letter_queue, parked_queue

#: Seconds after the last fault within which everything comes to its end.
LIVENESS = 90.0
#: Seconds within which every process consumes.
_READY = 60.0
#: Seconds between two looks at what goes on.
_LOOK = 0.1
#: A machine of two cores is busy: what is quick in life is not here.
_SETTINGS: Mapping[str, Any] = {"claim_ttl": 5, "lease_ttl": 3, "heartbeat": 2, "crash_limit": 3}


class NoAnswerError(Exception):
    """A command of ``qworker`` failed; it says why."""


class Stage:
    """A service at a place, with a folder of its own. A context manager."""

    #: How many handlers a process runs at once.
    concurrency = 8

    def __init__(  # noqa: PLR0913 - what a stage is made of
        self,
        folder: Path,
        guard: Guard,
        workload: Workload,
        place: Place,
        *,
        transactional: bool | Records,
        options: tuple[str, ...],
        **settings: Any,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.workload = workload
        self.place = place
        self.history = History(folder / "history.jsonl")
        #: Where the effects of the transactional tier are.
        self.database: Records | None = None
        if transactional:
            file = folder / "effects.db"
            self.database = Database(file) if transactional is True else transactional
        self.supervisors: dict[str, Supervisor] = {}
        #: Those that left as well.
        self._joined: list[Supervisor] = []
        #: Set when all faults have to end.
        self.healing = threading.Event()
        #: How supervisors ended before the last drain.
        self.ends: list[End] = []
        #: How supervisors ended in that, and publishers, that should not have ended so.
        self.wrong: list[str] = []
        #: What was set aside when that was looked at last; what is parked, in the order of return.
        self.dead_letters: list[Due] = []
        self.parked: list[Due] = []
        #: Why, as the letters say.
        self.reasons: dict[Due, str] = {}
        self._writer = Writer(self.history.file)
        self._blows = Blows(self._writer)
        self._changes = Changes(self._writer)
        self._guard = guard
        self._options = (*options, "--concurrency", str(self.concurrency))
        self.single_active = "--single-active" in options
        self._settings: dict[str, Any] = {**_SETTINGS, **settings}
        self._points = folder / "points.json"
        self._board = Board(self._points)
        self._struck: set[str] = set()
        self._wirings: dict[str, Wiring] = {}
        self._lock = threading.RLock()
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        self._closing.callback(self._writer.close)
        self._closing.enter_context(Watch(self._running, self.note))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closing.close()

    def _running(self) -> list[Supervisor]:
        with self._lock:
            return [*self.supervisors.values()]

    @property
    def crash_limit(self) -> int:
        """After how many deaths of its process a message is a dead letter."""
        return int(self._settings["crash_limit"])

    @property
    def ttls(self) -> tuple[float, float]:
        """The seconds that leases and claims live without renewal."""
        return self._settings["lease_ttl"], self._settings["claim_ttl"]

    # The service

    def join(self, name: str, **settings: Any) -> Supervisor:
        """Start one more supervisor, with settings of its own; wait for nothing."""
        wiring = self._wirings.get(name)
        if wiring is None:
            wiring = self._wirings[name] = Wiring(self.place, self.folder / name)
            self._closing.callback(wiring.close)
        supervisor = Supervisor(
            self.folder / name,
            name,
            self.workload.app,
            broker=wiring.broker,
            dedup=wiring.dedup,
            ledger=Ledger(self.folder / "unused"),
            note=self.note,
            guard=self._guard,
            **{**self._settings, **settings},
        )
        supervisor.environ |= {
            "PYTHONPATH": f"{clerk.STARTUP}:{TESTS}",
            "CHAOS_HISTORY": str(self.history.file),
            clerk.VARIABLE: str(self.history.file),
            "CHAOS_POINTS": str(self._points),
            "CHAOS_DATABASE": "" if self.database is None else self.database.where,
            **wiring.clock.environment(),
        }
        self._joined.append(supervisor)
        self._closing.callback(supervisor.kill_rest)
        supervisor.start(*self._options)
        self._blows.meets(name)
        with self._lock:
            self.supervisors[name] = supervisor
        return supervisor

    def leave(self, name: str) -> None:
        """Let a supervisor drain, and start it no more. It may have ended by itself."""
        self.ends.append(self._leave(name))

    def _leave(self, name: str) -> End:
        with self._lock:
            supervisor = self.supervisors.pop(name)
        if supervisor.running:
            supervisor.drain()
        return _end_of(supervisor)

    def until_ready(self) -> None:
        """Wait until every process of all supervisors consumes.

        From then on the service knows how many shards it has, and may get another number.
        """
        for supervisor in [*self.supervisors.values()]:
            until(partial(_is_ready, supervisor), _READY, f"{supervisor.name} is ready")
            supervisor.environ.pop("QWORKER_SHARDS", None)
        self._settings.pop("shards", None)

    def revive(self) -> None:
        """Start again who ended, unless a fault is about to."""
        with self._lock:
            for name, supervisor in self.supervisors.items():
                if name not in self._struck and not supervisor.running:
                    self.ends.append(_end_of(supervisor))
                    supervisor.start(*self._options)

    def drain(self) -> None:
        """End all supervisors in order, when all is healed and done: nothing may be left behind."""
        for name in [*self.supervisors]:
            end = self._leave(name)
            if end.code:
                self.wrong.append(f"in the last drain {end}")

    @property
    def asked(self) -> Mapping[str, Collection[float]]:
        """When somebody sent each supervisor a signal."""
        found = defaultdict[str, list[float]](list)
        for supervisor in self._joined:
            found[supervisor.name] += [at for _, _, at in supervisor.asked]
        return found

    # Faults

    @contextmanager
    def one(
        self, random: Random, among: Collection[int] | None = None
    ) -> Iterator[Supervisor | None]:
        """Give a supervisor that runs and that no other fault strikes; None where there is none.

        ``among``: it has one of these processes.
        """
        with self._lock:
            free = [n for n, s in self.supervisors.items() if n not in self._struck and s.running]
            if among is not None:
                free = [n for n in free if {*among} & {*self.supervisors[n].children()}]
            name = random.choice(free) if free else None
            if name is not None:
                self._struck.add(name)
        try:
            yield self.supervisors[name] if name is not None else None
        finally:
            with self._lock:
                self._struck.discard(name or "")

    def at_work(self, seconds: float = 0.0) -> set[int]:
        """Return the processes that have begun a handler just now, and the first one so long ago.

        Or one at that time, at least. ``seconds`` are a few at most.
        """
        now = monotonic()
        begun = [*self.history.latest("begin", now - max(JUST_NOW, 2 * seconds))]
        just_now = {e.pid for e in begun if e.at >= now - JUST_NOW}
        long_ago = {e.pid for e in begun if e.at <= now - seconds}
        return {pid for pid in just_now & long_ago if is_alive(pid)}

    def setting(self, name: str, random: Random) -> Setting:
        """Return what of the place, and of the links and the clock of a supervisor, has faults."""
        return self._wirings[name].setting(random)

    def note(self, fault: Fault) -> None:
        """Write a fault into the history."""
        if fault.pids is None or fault.pids:
            self._blows.meets(fault.supervisor or EVERYBODY)
        self._writer.note("fault", detail=fault.dump())

    def blow(self, fault: str) -> AbstractContextManager[None]:
        """Write into the history that a block carries out this fault, and whom it met."""
        return self._blows.blow(fault)

    def meets(self, whom: str) -> None:
        """Tell whom the blow of this thread met, where no fault tells that (:meth:`note`)."""
        self._blows.meets(whom)

    @contextmanager
    def armed(self, points: Mapping[str, float]) -> Iterator[None]:
        """Let processes die at these crash points while a block runs (:meth:`Board.armed`).

        The blow of this thread met the points at which somebody did.
        """
        since = monotonic()
        try:
            with self._board.armed(points):
                yield
        finally:
            self._blows.meets(*self.died_at(points, since))

    def died_at(self, points: Iterable[str], since: float) -> list[str]:
        """Return the crash points at which somebody died since then."""
        died = {fault.what for fault in faults(self.history.latest("fault", since))}
        return [name for name in points if f"kill -9, {name}" in died]

    def mortal(self, name: str) -> Mortal:
        """Return one more publisher, to be killed."""
        return Mortal(self.workload.app, name, self.place.broker, self.history, self._guard)

    def abandon(self, mortal: Mortal) -> None:
        """Note that a publisher is dead, and what it had sent, and heard nothing of."""
        now = monotonic()
        gone = Fault(Kind.GONE, mortal.name, now, now, frozenset({mortal.pid}))
        self._writer.note("fault", detail=gone.dump())  # whether that met somebody is told below
        left = mortal.left()
        told = ({n: getattr(each, n) for n in ("id", "key", "sequence", "detail")} for each in left)
        self._writer.note_all({"what": "abandoned", **each} for each in told)
        if left:
            self._blows.meets(mortal.name)

    def last(self, seconds: float) -> None:
        """Wait so long, or until all faults have to end."""
        self.healing.wait(seconds)

    # The load

    @contextmanager
    def load(self, *, publishers: int, rate: float) -> Iterator[None]:
        """Publish while the block runs, so many events a second in all.

        What is begun by then is published to its end, if that can be within LIVENESS.
        """
        mine = [
            Publisher(
                f"publisher-{number}",
                self.place.broker,
                self.workload.stream(number, publishers),
                self._writer,
                rate=rate / publishers,
            )
            for number in range(publishers)
        ]
        for publisher in mine:
            publisher.start()
        try:
            yield
            for publisher in mine:
                publisher.end()
            deadline = monotonic() + LIVENESS
            while monotonic() < deadline and not all(p.is_done for p in mine):
                self.revive()
                self.last(_LOOK)
        finally:
            for publisher in mine:
                publisher.give_up()
            self.wrong += filter(None, [publisher.trouble() for publisher in mine])

    def reshard(self, supervisor: Supervisor, shards: int, **options: Any) -> Popen[bytes]:
        """Ask for another number of shards; return the command, which waits for it."""
        since = monotonic()
        asked = supervisor.begin("reshard", "--to", str(shards), **options)
        self._changes.ask(asked, since)
        return asked

    def resharded(self, asked: Popen[bytes]) -> bool:
        """Note what the command came to; tell whether a change may go on without it."""
        return self._changes.answered(asked)

    def change(self) -> str:
        """Return what the service tells of a change of its shards; empty where none goes on.

        That none does is noted. Raises NoAnswerError.
        """
        return self._changes.told(monotonic(), self._ask("status", "--json"))

    def is_changing(self) -> bool:
        """Tell whether a change of the shards may go on; it may where nobody answers."""
        try:
            return bool(self.change())
        except (NoAnswerError, TimeoutExpired):
            return True

    def shards(self) -> int:
        """Return how many shards the service has."""
        return len(self._ask("status", "--json")["shards"])

    # What is set aside

    def set_aside(self) -> list[Due]:
        """Return handler and id of all dead letters and parked messages."""
        self.dead_letters, self.parked = self._listed(), self._listed("--parked")
        return self.dead_letters + self.parked

    def left(self) -> list[str]:
        """Return what the broker holds beside that, in words: nothing, where all is done."""
        aside = {dead_letter_queue(self._service), parked_queue(self._service)}
        depths = self.place.depths()
        return [f"{n} left in {name}" for name, n in depths.items() if n and name not in aside]

    @property
    def _service(self) -> str:
        return self.workload.app.rpartition(".")[2]

    def _listed(self, *options: str) -> list[Due]:
        listed = self._ask("dlq", "list", "--json", "--limit", "0", *options)
        told = [(self._whole(each["handler"]), each["id"], each["reason"]) for each in listed]
        self.reasons |= {(handler, id_): reason for handler, id_, reason in told}
        return [(handler, id_) for handler, id_, _ in told]

    def _whole(self, handler: str | None) -> str:
        """Return the name of a handler as its context has it."""
        return f"{self._service}.{handler}" if handler else ""

    def _ask(self, *words: str) -> Any:
        """Return what a command answers, from the place of any supervisor; raise NoAnswerError."""
        done = self._running()[0].run(*words)
        if done.returncode:
            raise NoAnswerError(done.stderr)
        return json.loads(done.stdout)


def _end_of(supervisor: Supervisor) -> End:
    pid, code = supervisor.pid, supervisor.exit_code()
    numbers = [number for whom, number, _ in supervisor.asked if whom == pid]
    last = " ".join(supervisor.log.splitlines()[-1:])
    return End(supervisor.name, pid, code, monotonic(), numbers, last)


def _is_ready(supervisor: Supervisor) -> bool:
    return bool(supervisor.status().get("ready"))

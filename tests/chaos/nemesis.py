"""Who makes the faults: each alone, or composed at random by a schedule that follows from a seed.

A fault is a function that does its harm and undoes what outlasts it, however it ends. Those that
strike a supervisor take one that no other strikes at that moment; those on servers and links, and
armed crash points, come on top. The schedule says what happens when; whom it meets, and in the
midst of what, is up to the processes, so a seed gives the same schedule again but never the same
run. (The simulation does that: ``tests/simulation``.)
"""

from __future__ import annotations

import math
import signal
import tempfile
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from random import Random
from time import monotonic

from chaos.blows import EVERYBODY
from chaos.crashpoints import IN_HANDLERS, POINTS
from chaos.executions import Fault as Harm
from chaos.executions import Kind
from chaos.faults.catalog import CATALOG, Excuse
from chaos.faults.disk import can_mount
from chaos.faults.redis_clock import RedisByClock
from chaos.places import Place
from chaos.stage import Stage
from machines.supervisor import Part

Fault = Callable[[Stage, Random], None]

#: Seconds for which crash points stay armed, and how likely each of them kills meanwhile.
_ARMED, _LIKELY = 3.0, 0.02
#: Longer than a lease (3 s), so that it is somebody else's.
_SLEEP = 5.0
#: Seconds for which a kill waits for somebody who is at work; and those for which that one has been
#: at work, at most.
_AT_WORK, _MOMENT = 3.0, 2.0
#: Seconds between two looks at who is at work, or has ended and has to be started again.
_TURN = 0.1
_MOST_SUPERVISORS = 6
#: Numbers of shards that somebody asks for, and the seconds for which who asks waits, twice.
_SHARDS, _PATIENCE = (1, 2, 3, 4, 6, 8), 8.0
#: Seconds between two looks whether it is over: a look takes half a second of a core.
_LOOK = 2.0
#: How likely a process dies that comes by the crash point of a change of shards, if one is armed.
_DIES = 0.5
#: Seconds for which a publisher that is to die publishes; and for which it is waited for, before
#: that, and until it is in the midst of it.
_LIFE, _BIRTH, _MIDST = 1.5, 5.0, 1.0
#: Seconds between two looks at that.
_BLINK = 0.002


def terminate(stage: Stage, random: Random) -> None:
    """Drain a supervisor; it comes back."""
    with stage.one(random) as supervisor:
        if supervisor is not None:
            stage.meets(supervisor.name)
            supervisor.terminate()


def terminate_twice(stage: Stage, random: Random) -> None:
    """Drain a supervisor, and lose patience: it stops at once, and abandons what runs."""
    with stage.one(random) as supervisor:
        if supervisor is None:
            return
        supervisor.terminate()
        stage.last(random.uniform(0.0, 0.5))
        pids = frozenset({supervisor.pid, *supervisor.children()})
        since = monotonic()
        if supervisor.running:
            supervisor.signal(signal.SIGTERM)
            supervisor.exit_code()
            stage.note(Harm(Kind.STOP, supervisor.name, since, monotonic(), pids))


def reload(stage: Stage, random: Random) -> None:
    """Replace all processes of a supervisor."""
    with stage.one(random) as supervisor:
        if supervisor is not None:
            stage.meets(supervisor.name)
            supervisor.signal(signal.SIGHUP)


def kill(part: Part, stage: Stage, random: Random) -> None:
    """Kill one process, a supervisor alone, or all of it, whatever it does."""
    with stage.one(random) as supervisor:
        if supervisor is not None:
            supervisor.kill(part)


def kill_at_work(part: Part, stage: Stage, random: Random) -> None:
    """Do the same once it has been at work for a moment: who only starts has nothing to lose.

    Nobody is killed where nobody works for a while.
    """
    moment = random.uniform(0.0, _MOMENT)
    end = monotonic() + _AT_WORK
    while monotonic() < end and not stage.healing.is_set():
        busy = stage.at_work(moment)
        with stage.one(random, busy) as supervisor:
            if supervisor is not None:
                supervisor.kill(part, busy)
                return
        stage.last(_TURN)


def pause(part: Part, stage: Stage, random: Random) -> None:
    """Stop one process, a supervisor alone, or all of it, for longer than a lease."""
    with stage.one(random) as supervisor:
        if supervisor is not None:
            with supervisor.paused(part):
                stage.last(_SLEEP)


def crash(stage: Stage, random: Random) -> None:
    """Let processes die between two lines, at some of the points."""
    names = random.sample([*POINTS, *IN_HANDLERS], 4)
    with stage.armed(dict.fromkeys(names, _LIKELY)):
        stage.last(_ARMED)


def scale(stage: Stage, random: Random) -> None:
    """Let supervisors join until there are six, and leave until there is one, then come back."""
    before = len(stage.supervisors)
    extra = [f"extra-{random.randrange(10**9)}" for _ in range(_MOST_SUPERVISORS - before)]
    for name in extra:
        stage.join(name)
    stage.last(_SLEEP)
    for name in extra:
        stage.leave(name)


def reshard(stage: Stage, random: Random) -> None:
    """Ask for another number of shards; half of the time somebody dies in a step of the change.

    Where a change is under way, or the lease store away, whoever asks is told so, and that is all.
    Else the fault lasts as long as the change: so it is known what was sent in its midst.
    """
    shards = random.choice(_SHARDS)
    point = random.choice([name for name in POINTS if name.startswith("reshard")])
    armed = stage.armed({point: _DIES}) if random.random() < 0.5 else nullcontext()
    supervisor = random.choice([*stage.supervisors.values()])
    with tempfile.TemporaryFile() as says:
        since = monotonic()
        asked = stage.reshard(supervisor, shards, says=says)
        try:
            with armed:  # for one death: who connects anew comes by some of them, too
                _last_while(
                    lambda: asked.poll() is None and not stage.died_at([point], since),
                    stage,
                    _PATIENCE,
                )
            _last_while(lambda: asked.poll() is None, stage, _PATIENCE)
        finally:
            asked.kill()  # what it asked for goes on without it
            asked.wait()
        goes_on = stage.resharded(asked)
        says.seek(0)
        if b"reshard from " in says.read():  # a step of it
            stage.meets(EVERYBODY)
    if goes_on:
        _last_while(stage.is_changing, stage, math.inf, turn=_LOOK)


def publisher_dies(stage: Stage, random: Random) -> None:
    """Kill a publisher in the midst of its publishing; what it heard nothing of is nobody's."""
    moment = random.uniform(0.0, _LIFE)
    mortal = stage.mortal(f"stray-{random.randrange(10**9)}")
    with mortal.running():
        _last_while(lambda: not mortal.has_published, stage, _BIRTH)
        stage.last(moment)
        _last_while(lambda: not mortal.is_amidst, stage, _MIDST, turn=_BLINK)
    stage.abandon(mortal)


def _last_while(
    goes_on: Callable[[], bool], stage: Stage, seconds: float, turn: float = _TURN
) -> None:
    """Wait while something goes on, so long at most, or until all faults have to end."""
    end = monotonic() + seconds
    while goes_on() and monotonic() < end and not stage.healing.is_set():
        stage.last(turn)


def trouble(name: str, stage: Stage, random: Random) -> None:
    """Trouble a server, a disk, or the link or the clock of one supervisor, and heal it."""
    wanted = CATALOG[name]
    whose = random.choice(sorted(stage.supervisors))
    own = {"to_rabbitmq", "to_redis"} | ({"clocks"} if stage.place.clock is None else set())
    is_shared = wanted.to not in own
    # A link has several troubles at once; a clock that two set would stay where one left it.
    is_alone = is_shared or wanted.to == "clocks"
    room = _ROOMS[wanted.to, "" if is_shared else whose] if is_alone else nullcontext(True)
    setting = stage.setting(whose, random)
    seconds = random.uniform(0.5, 1.0) * min(wanted.hold, _SLEEP)
    with room as is_free:
        if not is_free or not getattr(setting, wanted.to):
            return
        since = monotonic()
        try:
            with wanted.made(setting):
                stage.last(seconds)
        finally:
            kind = _KINDS[wanted.excuse]
            stage.note(Harm(kind, "" if is_shared else whose, since, monotonic(), what=name))


class _Room:
    """Lets one in at a time, and tells the others that it is taken."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._mine = threading.local()

    def __enter__(self) -> bool:
        self._mine.has = self._lock.acquire(blocking=False)
        return bool(self._mine.has)

    def __exit__(self, *exc_info: object) -> None:
        if self._mine.has:
            self._lock.release()


#: A server can be stopped, or hang, but not both at once; so for what is a supervisor's own.
_ROOMS = defaultdict[tuple[str, str], _Room](_Room)
_KINDS = {
    Excuse.OTHER: Kind.OTHER,
    Excuse.BROKER: Kind.BROKER,
    Excuse.CUT: Kind.CUT,
    Excuse.OUTAGE: Kind.OUTAGE,
    Excuse.HANG: Kind.HANG,
    Excuse.AMNESIA: Kind.AMNESIA,
    Excuse.CLOCK: Kind.CLOCK,
}
#: Faults of everything but processes; a queue that an operator deletes is lost, which has a trial
#: of its own.
TROUBLES: Mapping[str, Fault] = {
    name: partial(trouble, name) for name, it in CATALOG.items() if it.excuse in _KINDS
}

FAULTS: Mapping[str, Fault] = {
    "terminate": terminate,
    "terminate twice": terminate_twice,
    "reload": reload,
    **{f"kill {part.value}": partial(kill, part) for part in Part},
    **{f"kill {part.value}, at work": partial(kill_at_work, part) for part in Part},
    **{f"pause {part.value}": partial(pause, part) for part in Part},
    "crash points": crash,
    "scale": scale,
    "reshard": reshard,
    "publisher dies": publisher_dies,
    **TROUBLES,
}


def possible(place: Place) -> list[str]:
    """Return the names of all faults that there can be at a place."""
    there = {"clocks"}
    if place.rabbitmq is not None:
        there |= {"rabbitmq", "to_rabbitmq"}
    if place.redis is not None:
        there |= {"redis", "to_redis"}
    if isinstance(place.redis, RedisByClock):
        there.add("redis_clock")
    if place.disk is not None:
        there.add("disk")
    return [name for name in FAULTS if name not in CATALOG or CATALOG[name].to in there]


def left_out() -> list[str]:
    """Return the names of the faults of a file's disk, where no disk can be made for it here."""
    return [] if can_mount() else [name for name, it in CATALOG.items() if it.to == "disk"]


@dataclass(frozen=True, slots=True)
class Blow:
    """One fault, so many seconds after the beginning."""

    at: float
    fault: str
    seed: str

    def __str__(self) -> str:
        """Return a line of the schedule."""
        return f"{self.at:7.2f} s  {self.fault}"


def schedule(seed: int, faults: Sequence[str], *, seconds: float, every: float) -> list[Blow]:
    """Return what happens when: about one fault ``every`` so many seconds."""
    random = Random(f"schedule {seed}")
    blows: list[Blow] = []
    at = random.uniform(0.0, every)
    while at < seconds:
        blows.append(Blow(at, random.choice(faults), f"{seed}/{len(blows)}"))
        at += random.expovariate(1 / every)
    return blows


class Nemesis:
    """Carries out a schedule on a stage, so many faults at once at most.

    ``faults`` are those that it may name.
    """

    def __init__(self, stage: Stage, faults: Mapping[str, Fault], at_once: int) -> None:
        self._stage = stage
        self._faults = faults
        self._threads: list[threading.Thread] = []
        self._errors: list[BaseException] = []
        self._room = threading.Semaphore(at_once)

    def strike(self, blows: Iterable[Blow]) -> None:
        """Carry out the schedule while the stage's service is kept alive; then heal everything.

        Raises what went wrong with a fault itself.
        """
        begin = monotonic()
        try:
            for blow in self._in_time(blows, begin):
                while not self._room.acquire(timeout=_TURN):
                    self._stage.revive()
                thread = threading.Thread(target=self._carry_out, args=(blow,), name=blow.fault)
                thread.start()
                self._threads.append(thread)
        finally:
            self._heal()
        if self._errors:
            raise self._errors[0]

    def _heal(self) -> None:
        """Wait until every fault has undone what outlasts it."""
        self._stage.healing.set()
        while any(thread.is_alive() for thread in self._threads):
            self._stage.revive()
            self._threads[-1].join(_TURN)
            self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._stage.healing.clear()
        self._stage.revive()

    def _in_time(self, blows: Iterable[Blow], begin: float) -> Iterator[Blow]:
        for blow in blows:
            while (left := begin + blow.at - monotonic()) > 0:
                self._stage.revive()
                self._stage.last(min(left, _TURN))
            yield blow

    def _carry_out(self, blow: Blow) -> None:
        try:
            self._faults[blow.fault](self._stage, Random(blow.seed))
        except BaseException as error:  # noqa: BLE001 - told by the thread that waits
            error.add_note(f"in the fault {blow}")
            self._errors.append(error)
        finally:
            self._room.release()

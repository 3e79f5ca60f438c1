"""The pipe between the supervisor and one child: frozen messages, a JSON line each.

::

    supervisor                                 child
        ──── Boot(options, index, protocol) ────>      imports the app, resolves the settings
        <─── Hello(pid, owner, terms) ───────────      or Fatal(exit_code, text)
        ──── Look() ────────────────────────────>      where the lease store knows no plan:
        <─── Found(generations) ─────────────────      looks at the broker
        ──── Open(plan, version, …) ────────────>      connects and declares
        <─── Ready(generation, version) ─────────      or Fatal(exit_code, text); trust comes next
        ──── Take(fences, trusted_until) ───────>      consumes these shards
        ──── Trust(until) ──────────────────────>      at each renewal of their leases
        ──── Give(shards), Lose(shards) ────────>      finishes what runs
        <─── Given(shards) ──────────────────────      nothing of them is left here
        ──── Follow(plan, version) ─────────────>      declares what this plan says from now on
        <─── Followed(version) ──────────────────
        ──── Step(plan, version) ───────────────>      takes the plan's next step on the broker
        <─── Stepped(version, done, error) ──────
        ──── Pause(handlers, version) ──────────>      after Ready, and whenever it changes
        <─── Paused(version) ────────────────────      nothing of these handlers runs here
        <─── Beat(statistics, draining) ─────────      about once a second
        ──── Bury(owners), Dump() ──────────────>      whenever
        ──── Drain(seconds), Stop() ────────────>      a drain gives every shard
        <─── Finished(finish) ───────────────────      then it exits

The end of the stream says that the other side died: the kernel closes what it held, also after
kill -9. Neither side ever blocks on a write, so a stopped child cannot stop its supervisor.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, get_args

from worker.config import mask_url
from worker.errors import QworkerError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from worker.sharding.generations import Plan

#: Rises with every change of the messages. A child of another release of this package, which a
#: replacement after an upgrade is, refuses to speak with a supervisor of this one.
PROTOCOL = 4

#: The longest line, in bytes. A peer that sends more is broken.
MAX_LINE = 1 << 20

#: Exit codes of a child, by how its consumer finished. A child that could not start exits with
#: what its :class:`Fatal` says.
EXIT_CODES = {"DRAINED": 0, "FAILED": 1, "ABANDONED": 75, "STUCK": 76}


class ControlError(QworkerError):
    """The peer said something that is no message of this protocol."""


#: What fresh code cannot change, and what to do instead.
_LASTING = {
    "service": "stop it and start it anew",
    "shards": "change their number by 'qworker reshard', or stop the service and start it anew",
    "single_active": "stop the service everywhere and start it anew",
    "leases": "stop the service everywhere and start it anew",
    "lease_ttl": "stop the service everywhere and start it anew",
}


@dataclass(frozen=True, slots=True)
class Terms:
    """What the supervisor needs to know of a service's settings. Durations are seconds."""

    service: str
    #: What its queues are named after, and its leases are kept under.
    queues: str
    #: Those that it asks for; 0 for those that there are, or one at the first start.
    shards: int
    #: How many processes to start with, and how many there can be at most.
    processes: int
    most_processes: int
    drain_timeout: float
    watchdog: float
    connect_timeout: float
    #: The URL of the lease store; and how long leases live, and the store may take to answer.
    leases: str = field(default="memory://", repr=False)
    #: Where that URL comes from, for errors that name it.
    leases_origin: str = field(default="", repr=False)
    lease_ttl: float = 10.0
    lease_timeout: float = 2.0
    single_active: bool = False
    burst: bool = False
    http: str = ""
    reload: bool = False
    log_format: str = ""
    log_level: str = "info"
    #: The handlers of events that its processes have, with the names or patterns that they observe.
    handlers: Mapping[str, str] = field(default_factory=dict)

    def agree(self, plan: Plan) -> bool:
        """Whether the service has the shards that it asks for, or is on its way to them."""
        return not self.shards or self.shards in plan.shards

    def shards_of(self, plan: Plan) -> int:
        """Return for how many shards there are processes."""
        return self.shards or max(plan.shards)

    def differs(self, other: Terms, shards: Collection[int]) -> str:
        """Return why processes of these and of ``other`` terms cannot serve side by side.

        ``shards`` are the numbers of shards that the service has, or is on its way to.
        """
        for name, hint in _LASTING.items():
            before, after = getattr(self, name), getattr(other, name)
            if before != after and not (name == "shards" and after in {0, *shards}):
                was = "not set" if name == "shards" and not before else repr(before)
                return mask_url(f"{name} was {was} and is now {after!r}: {hint}")
        return ""


@dataclass(frozen=True, slots=True)
class Boot:
    """The options of the command line, and which process of the service this is."""

    options: Mapping[str, object]
    index: int
    protocol: int = PROTOCOL


@dataclass(frozen=True, slots=True)
class Hello:
    """The app is imported. ``owner`` is the id, in hex, that this process's claims carry."""

    pid: int
    owner: str
    terms: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Fatal:
    """The process cannot start, for a reason that starting it again does not mend."""

    exit_code: int
    text: str


@dataclass(frozen=True, slots=True)
class Look:
    """Tell which generations the broker has: the lease store knows no plan."""


@dataclass(frozen=True, slots=True)
class Found:
    """Pairs of number and shards, in their order."""

    generations: Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Open:
    """Connect, declare, and be ready to consume the generation that this plan consumes.

    A process that is ready leaves the generation that it had, of which it holds nothing. ``plan``
    is a :class:`~worker.sharding.generations.Plan` as text, ``version`` that of its document.
    """

    plan: str
    version: int
    #: Until when it may connect, by the ``lease_clock``: later there may be another plan.
    trusted_until: float


@dataclass(frozen=True, slots=True)
class Ready:
    """The process consumes what it is told to take, of this generation.

    ``version`` is that of the plan by which everything is declared; 0 where it still connects, or
    waits for trust to do so.
    """

    generation: int
    version: int


@dataclass(frozen=True, slots=True)
class Follow:
    """From now on declare what this plan says, also at reconnections."""

    plan: str
    version: int


@dataclass(frozen=True, slots=True)
class Followed:
    """What the plan of this version says is declared, and nothing else will be.

    Or, with an ``error``, it could not be declared.
    """

    version: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class Step:
    """Take the next step of this plan on the broker."""

    plan: str
    version: int


@dataclass(frozen=True, slots=True)
class Stepped:
    """The step of the plan of this version is ``done``, or has to be tried again."""

    version: int
    done: bool
    error: str = ""


@dataclass(frozen=True, slots=True)
class Take:
    """Consume these shards: pairs of shard and fence. ``trusted_until`` is for all that is had.

    It is a reading of the ``lease_clock``, which the processes of one machine share.
    """

    fences: Sequence[tuple[int, int]]
    trusted_until: float


@dataclass(frozen=True, slots=True)
class Trust:
    """The leases of all shards that the process has may be trusted until then."""

    until: float


@dataclass(frozen=True, slots=True)
class Give:
    """Give these shards up in order: begin nothing more, finish, acknowledge, close."""

    shards: Sequence[int]


@dataclass(frozen=True, slots=True)
class Lose:
    """Give these shards up at once: somebody else may own them by now."""

    shards: Sequence[int]


@dataclass(frozen=True, slots=True)
class Given:
    """Nothing of these shards is left here; where the process is ``draining`` it takes no more."""

    shards: Sequence[int]
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Pause:
    """Begin nothing of these handlers, and of all others again.

    ``version`` is that of the document that says so.
    """

    handlers: Sequence[str]
    version: int


@dataclass(frozen=True, slots=True)
class Paused:
    """Nothing runs here any more of the handlers that this version pauses."""

    version: int


@dataclass(frozen=True, slots=True)
class Beat:
    """The loop of the child goes round; where it is ``draining`` it takes no more shards.

    A process also drains by itself: at a signal, or since a handler ignored its time limit.
    """

    statistics: Mapping[str, object]
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Bury:
    """These owners are dead: whoever meets their claims takes them over at once."""

    owners: Sequence[str]


@dataclass(frozen=True, slots=True)
class Dump:
    """Write every thread's stack, and what is in flight, to the log."""


@dataclass(frozen=True, slots=True)
class Drain:
    """Start nothing, finish what runs, acknowledge, give each shard, and end within ``seconds``."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Abandon everything and end."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The consumer ended; ``finish`` is the name of its ``Finish``."""

    finish: str


Message = (
    Boot
    | Hello
    | Fatal
    | Look
    | Found
    | Open
    | Ready
    | Follow
    | Followed
    | Step
    | Stepped
    | Take
    | Trust
    | Give
    | Lose
    | Given
    | Pause
    | Paused
    | Beat
    | Bury
    | Dump
    | Drain
    | Stop
    | Finished
)

_KINDS: dict[str, type[Message]] = {kind.__name__.lower(): kind for kind in get_args(Message)}


def encode(message: Message) -> bytes:
    """Return ``message`` as one line. Raises ControlError if it is longer than MAX_LINE."""
    facts = {"kind": type(message).__name__.lower()}
    facts |= {name: getattr(message, name) for name in message.__slots__}  # asdict copies it all
    line = json.dumps(facts, separators=(",", ":"), default=str).encode() + b"\n"
    if len(line) > MAX_LINE:
        raise ControlError(f"a {facts['kind']} message of {len(line)} bytes is too long")
    return line


def decode(line: bytes) -> Message:
    """Return the message of one line. Raises ControlError if it is none."""
    try:
        facts = json.loads(line)
        return _KINDS[facts.pop("kind")](**facts)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ControlError(f"no message of the control pipe: {line[:200]!r} ({error!r})") from None

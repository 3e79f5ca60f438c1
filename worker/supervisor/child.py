"""The child process: import the app, consume what the supervisor assigns, end in order.

1. Say hello: the app is imported, its settings are known.
2. Connect and declare when told the plan of generations; say ready.
3. Run the consumer's loop in this thread. The control pipe and the signals are watched by it.
4. Say how it ended, and exit: no later than told, also where a thread of a handler never ends.

Without its supervisor the process drains by itself, within a share of the length of its leases: it
ends before they do, as they were renewed not long ago. Where they were not, nothing begins past
their trust, as ever, and what runs may outlive them by that drain.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import secrets
import select
import signal
import socket
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, NoReturn, Protocol, TypeVar

from worker.config import mask_url
from worker.errors import ConfigurationError, QworkerError
from worker.leases.base import lease_clock
from worker.logs import configure_early, configure_logging
from worker.sharding.generations import Plan
from worker.supervisor.control import (
    EXIT_CODES,
    PROTOCOL,
    Beat,
    Boot,
    Bury,
    ControlError,
    Drain,
    Dump,
    Fatal,
    Finished,
    Follow,
    Found,
    Give,
    Given,
    Hello,
    Look,
    Lose,
    Open,
    Pause,
    Paused,
    Ready,
    Step,
    Stop,
    Take,
    Terms,
    Trust,
)
from worker.supervisor.pipe import Channel, ControlClosed
from worker.supervisor.signals import Signals
from worker.supervisor.stepper import Stepper, Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
    from enum import Enum

    from worker.sharding.generations import Generation
    from worker.supervisor.control import Message

logger = logging.getLogger("worker.supervisor.child")

#: The most seconds that a process without a supervisor takes to drain, and the most of the length
#: of its leases.
ORPHAN_DRAIN, ORPHAN_SHARE = 8.0, 0.8

#: The same for what it may take past its drain, to close and exit.
_ORPHAN_EXIT, _ORPHAN_EXIT_SHARE = 1.5, 0.15

M = TypeVar("M", bound="Message")


class Runnable(Protocol):
    """What this process runs: ``worker.consumer.Consumer``. See there for what is promised."""

    on_beat: Callable[[], None]
    on_given: Callable[[list[int]], None]
    on_paused: Callable[[], None]

    def open(self, trusted_until: float) -> bool:
        """Connect and declare; tell whether that is done, and not left for when it is trusted."""

    def run(self) -> Enum:
        """Consume until drained, stopped or failed."""

    def follow(self, plan: Plan) -> None:
        """Declare from now on what this plan says."""

    def switch(self, plan: Plan) -> None:
        """Go over to the generation that this plan consumes."""

    def take(self, fences: Mapping[int, int], trusted_until: float) -> None:
        """Consume these shards too; trust all that are consumed until then."""

    def trust(self, until: float) -> None:
        """Trust all shards that are consumed until then."""

    def give(self, shards: Iterable[int]) -> None:
        """Give these shards up in order; ``on_given`` tells when nothing of them is left."""

    def lose(self, shards: Collection[int]) -> None:
        """Give these shards up at once; ``on_given`` tells when nothing of them is left."""

    def pause(self, handlers: Collection[str]) -> None:
        """Begin nothing of these handlers; ``on_paused`` tells when nothing of them runs."""

    def watch(self, fileobj: Channel | Signals, callback: Callable[[], None]) -> None:
        """Call ``callback`` in the loop whenever ``fileobj`` is readable."""

    def unwatch(self, fileobj: Channel | Signals) -> None:
        """No longer watch ``fileobj``."""

    def drain(self, deadline: float) -> None:
        """Begin nothing new; give all shards; finish what runs by this monotonic ``deadline``."""

    @property
    def draining(self) -> bool:
        """Whether it takes no more shards, because it was told to drain or does so by itself."""

    def stop(self) -> None:
        """End now."""

    def bury(self, owners: Iterable[bytes]) -> None:
        """Take over the claims of dead owners."""

    def statistics(self) -> Mapping[str, object]:
        """Return numbers, ready for JSON."""

    def dump(self) -> Iterator[str]:
        """Yield the stack of each thread, and what each run has in flight."""


@dataclass(frozen=True, slots=True)
class Service:
    """An imported app: what the supervisor must know of it, and how to make its consumer."""

    terms: Terms
    #: Called with the plan of generations, and the owner id of this process.
    consumer: Callable[[Plan, bytes], Runnable]
    steps: Steps
    #: Looks for the generations that the broker has; raises Unreachable, ConfigurationError.
    look: Callable[[], Sequence[Generation]] = tuple
    #: What is worth a line at the start.
    about: str = ""


def run_child(descriptor: int, load: Callable[[Boot], Service]) -> NoReturn:
    """Run this process to its end. ``descriptor`` is its end of the control pipe."""
    os.set_inheritable(descriptor, False)  # a handler's own subprocess must not keep it open
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    _ignore_terminal()
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    code = Child(Channel(socket.socket(fileno=descriptor))).run(load)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # whoever read it is gone
            stream.flush()
    if code == EXIT_CODES["DRAINED"]:
        sys.exit(code)
    os._exit(code)  # without waiting for threads that were abandoned


def _ignore_terminal() -> None:
    """Leave Ctrl-C, which reaches every process of a terminal, to the supervisor."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


class Child:
    """This process, between its supervisor and its consumer. Used by the main thread only."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._signals = Signals()
        self._owner = secrets.token_bytes(8)
        self._drain_timeout = self._lease_ttl = 0.0
        self._consumer: Runnable | None = None
        #: Until when the supervisor's last word on leases and the plan holds, by ``lease_clock``.
        self._trusted_until = 0.0
        #: The version of what is paused that it was told of last.
        self._pause_version = 0

    def run(self, load: Callable[[Boot], Service]) -> int:
        """Return the exit code, when everything is done."""
        try:
            return EXIT_CODES[self._run(load)]
        except (ControlClosed, _EndedEarly):
            return EXIT_CODES["DRAINED"]
        except QworkerError as error:
            self._channel.send(Fatal(error.exit_code, mask_url(str(error))))
            self._channel.flush(1.0)
            return error.exit_code
        except Exception:
            logger.exception("the process cannot go on")
            return EXIT_CODES["FAILED"]

    def _run(self, load: Callable[[Boot], Service]) -> str:
        """Go through a whole life; return the name of how it finished."""
        boot = self._await(Boot)
        if boot.protocol != PROTOCOL:
            raise ConfigurationError(
                "this package was replaced by another release while the service runs:"
                " restart the service, a reload is not enough"
            )
        configure_early(boot.options)
        service = load(boot)
        _ignore_terminal()  # whatever the app did to signals
        with self._signals.noted([signal.SIGTERM]):
            return self._serve(service)

    def _serve(self, service: Service) -> str:
        self._greet(service.terms)
        consumer = self._open(service, self._await(Open, service.look))
        if service.about:  # of a start that fails nothing is told but why
            logger.info("%s", service.about)
        return self._end(consumer.run().name)

    def _greet(self, terms: Terms) -> None:
        """Say that the app is imported, and what its settings are."""
        configure_logging(terms.log_format, terms.log_level, service=terms.service)
        self._drain_timeout, self._lease_ttl = terms.drain_timeout, terms.lease_ttl
        self._channel.send(Hello(os.getpid(), self._owner.hex(), asdict(terms)))

    def _open(self, service: Service, told: Open) -> Runnable:
        """Return the consumer, which is connected, or is as soon as it is trusted again."""
        plan = Plan.load(told.plan)
        self._consumer = consumer = service.consumer(plan, self._owner)
        self._trusted_until = told.trusted_until
        self._stepper = Stepper(
            service.steps,
            trusted=lambda: lease_clock() <= self._trusted_until,
            wake=self._signals.wake,
        )
        consumer.on_given = self._tell_given
        consumer.on_paused = self._tell_paused
        connected = consumer.open(told.trusted_until)
        consumer.on_beat = self._beat
        consumer.watch(self._channel, self._listen)
        consumer.watch(self._signals, self._obey)
        self._channel.send(Ready(plan.consumed.number, told.version if connected else 0))
        self._listen()  # to what came meanwhile, and shows on no descriptor
        return consumer

    def _end(self, finish: str) -> str:
        """Say how the consumer ended."""
        self._channel.send(Finished(finish))
        self._beat()  # the last numbers
        self._channel.flush(1.0)
        return finish

    def _await(self, kind: type[M], look: Callable[[], Sequence[Generation]] = tuple) -> M:
        """Wait for a message of this kind; end early if told to, or if nobody is there.

        Whoever asks meanwhile is told what ``look`` finds.
        """
        while True:
            message = self._next(look)
            if isinstance(message, kind):
                return message
            if message is None:
                select.select([self._channel.fileno(), self._signals.fileno()], [], [])

    def _next(self, look: Callable[[], Sequence[Generation]] = tuple) -> Message | None:
        """Return the next message, None where none is there; see :meth:`_await`."""
        message = self._channel.next()
        if isinstance(message, Look):
            self._channel.send(Found([(each.number, each.shards) for each in look()]))
        if isinstance(message, Drain | Stop) or self._signals.take():
            raise _EndedEarly
        return message

    def _beat(self) -> None:
        """Tell the supervisor that the loop goes round, unless it has not read the last beats."""
        self._channel.flush()
        if self._consumer is None or self._channel.pending:
            return
        try:
            self._channel.send(Beat(self._consumer.statistics(), self._consumer.draining))
        except ControlError:  # more numbers than a line may have
            self._channel.send(Beat({}, self._consumer.draining))

    def _tell_given(self, shards: list[int]) -> None:
        draining = self._consumer is not None and self._consumer.draining
        self._channel.send(Given(shards, draining))

    def _tell_paused(self) -> None:
        self._channel.send(Paused(self._pause_version))

    def _listen(self) -> None:
        """Do what the supervisor says; drain if it is gone."""
        if self._consumer is None:
            return
        for message in self._channel.receive():
            match message:
                case Drain(seconds):
                    self._consumer.drain(time.monotonic() + seconds)
                case Stop():
                    self._consumer.stop()
                case Bury(owners):
                    self._consumer.bury([bytes.fromhex(owner) for owner in owners])
                case Dump():
                    for part in self._consumer.dump():
                        logger.info("%s", part)
                case _:
                    self._assign(self._consumer, message)
        if self._channel.closed:
            self._orphaned()

    def _assign(self, consumer: Runnable, message: Message) -> None:
        """Consume what the supervisor says, and as long as it says."""
        match message:
            case Open(text, _, trusted_until):
                plan = Plan.load(text)
                consumer.switch(plan)
                self._trust(consumer, trusted_until)
                self._channel.send(Ready(plan.consumed.number, 0))
            case Follow(text, version):
                consumer.follow(Plan.load(text))
                self._stepper.follow(Plan.load(text), version)
            case Step(text, version):
                self._stepper.step(Plan.load(text), version)
            case Take(fences, trusted_until):
                self._trusted_until = trusted_until
                consumer.take(dict(fences), trusted_until)
            case Trust(until):
                self._trust(consumer, until)
            case Give(shards):
                consumer.give(shards)
            case Lose(shards):
                consumer.lose(shards)
            case Pause(handlers, version):
                self._pause_version = version
                consumer.pause(handlers)
            case _:
                logger.error("the supervisor sent a %s", type(message).__name__)

    def _trust(self, consumer: Runnable, until: float) -> None:
        self._trusted_until = until
        consumer.trust(until)

    def _obey(self) -> None:
        """Tell what a step came to; drain if SIGTERM came."""
        for message in self._stepper.answers():
            self._channel.send(message)
        if self._signals.take() and self._consumer is not None:
            logger.info("got SIGTERM: draining")
            self._consumer.drain(time.monotonic() + self._drain_timeout)
            self._tell_given([])  # another process shall take over

    def _orphaned(self) -> None:
        """Drain, and end in time even if the loop or the interpreter hangs."""
        if self._consumer is None:
            return
        self._consumer.unwatch(self._channel)
        seconds = min(self._drain_timeout, ORPHAN_DRAIN, ORPHAN_SHARE * self._lease_ttl)
        left = min(_ORPHAN_EXIT, _ORPHAN_EXIT_SHARE * self._lease_ttl)
        logger.warning("the supervisor is gone: draining for up to %g s", seconds)
        self._consumer.drain(time.monotonic() + seconds)
        faulthandler.dump_traceback_later(seconds + left, exit=True)


class _EndedEarly(Exception):
    """The process was told to end before it held anything."""

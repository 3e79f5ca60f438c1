"""The supervisor's loop: wait, obey signals, listen, reap, manage, tell.

It imports nothing of the user's, runs no handler, and waits for nobody: the talk with the lease
store (``keeper``) and the answers to probes (``probes``), which are all that it has of a network,
have threads of their own. So there is little that can go wrong in it, and whatever does in a child
is seen from here.
"""

from __future__ import annotations

import logging
import os
import selectors
import signal
import socket
import sys
import time
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from worker.config import mask_url
from worker.errors import ConfigurationError
from worker.logs import configure_early, configure_logging
from worker.sharding.generations import PLAN
from worker.supervisor.control import EXIT_CODES, Fatal
from worker.supervisor.course import RESHARD
from worker.supervisor.facts import Facts
from worker.supervisor.fleet import Fleet
from worker.supervisor.keeper import Keeper
from worker.supervisor.pausing import Pausing
from worker.supervisor.policy import Standstills, stood_still
from worker.supervisor.process import CHILD_COMMAND
from worker.supervisor.reload import CodeWatch
from worker.supervisor.reporter import Reporter
from worker.supervisor.signals import ASKED, Signals, leave_terminal
from worker.supervisor.stage import Stage
from worker.supervisor.status import Status
from worker.supervisor.totals import gauges, outages

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from worker.supervisor.control import Terms

logger = logging.getLogger("worker.supervisor")

EXIT_STOPPED = 130

#: Seconds that the processes get to close their connections when everything stops at once.
_STOP_TIME = 0.5

#: Seconds that the leases get to be given back once all processes have ended.
_LEAVE_TIME = 1.0

#: Seconds between two reports to the other members.
_FACTS = 0.5

_SIGNALS = (*ASKED, signal.SIGCHLD)


class State(Enum):
    """What the supervisor is at."""

    STARTING = "starting"
    RUNNING = "running"
    RELOADING = "reloading"
    DRAINING = "draining"
    STOPPING = "stopping"


def run_supervisor(options: Mapping[str, object], *, command: Sequence[str] = CHILD_COMMAND) -> int:
    """Run a service until it ends; return the exit code of the program.

    ``options`` are the settings that the command line gave. Errors of the start are on standard
    error when this returns. Must be called in the main thread.
    """
    configure_early(options)
    supervisor = Supervisor(options, command)
    try:
        return supervisor.run()
    finally:
        supervisor.close()


class Supervisor:
    """Starts the processes of a service, watches over them, and ends them in order."""

    def __init__(self, options: Mapping[str, object], command: Sequence[str]) -> None:
        self._signals = Signals()
        self._selector = selectors.DefaultSelector()
        self._fleet = Fleet(options, command, self._give_back, self._propose)
        self._pausing = Pausing(self._fleet)
        self._keeper: Keeper | None = None
        #: When to wait no longer for the leases to be given back.
        self._leave_until = float("inf")
        #: When the other members are told again; and which state and pauses they know of.
        self._facts_at, self._told = 0.0, ("", 0)
        #: When the last wait ended.
        self._waited_at, self._standstills = time.monotonic(), Standstills()
        self._broker_seen_at = self._waited_at
        #: Why the lease store gives nothing, or what it waits for.
        self._lease_trouble = ""
        self._reporter = Reporter()
        self._code_watch: CodeWatch | None = None
        self._state = State.STARTING
        self._failure: Fatal | None = None
        self._opened = False
        #: The names of the leases that anybody owns.
        self._owned_by_all: Collection[str] = ()
        #: Every lease is given back.
        self._left = False
        #: A burst ended, and left messages of shards that are halted, or of what is paused.
        self._left_over = False
        self._on_terminal = sys.stderr.isatty()

    def run(self) -> int:
        """Go round until every process has ended and none shall be started again."""
        with self._signals.noted(_SIGNALS):
            while not self._over(time.monotonic()):
                self._turn(self._wait())
        return self._exit_code()

    def _turn(self, now: float) -> None:
        """Go round once."""
        for number in self._signals.take():
            self._obey(number, now)
        self._fleet.listen(now)
        self._fleet.reap(now)
        self._follow_leases()
        self._fleet.manage(now)
        self._decide(now)
        self._tell(now)

    def close(self) -> None:
        """Release everything but the processes, which drain by themselves if any are left."""
        if self._keeper is not None:
            self._keeper.close()
        self._reporter.close()
        if self._code_watch is not None:
            self._code_watch.close()
        self._selector.close()
        self._signals.close()

    @property
    def _ending(self) -> bool:
        return self._state in (State.DRAINING, State.STOPPING)

    def _over(self, now: float) -> bool:
        """Whether every process has ended, and every lease is given back or will expire."""
        if not self._ending or self._fleet.children():
            return False
        if self._keeper is None or self._left:
            return True
        self._leave_until = min(self._leave_until, now + _LEAVE_TIME)
        return now >= self._leave_until

    def _wait(self) -> float:
        """Wait until a signal or a message comes, or a time; return the time that it is then."""
        wanted: dict[int, int] = {self._signals.fileno(): selectors.EVENT_READ}
        for child in self._fleet.children():
            if not child.channel.closed:
                write = selectors.EVENT_WRITE if child.channel.pending else 0
                wanted[child.channel.fileno()] = selectors.EVENT_READ | write
        for descriptor in [*self._selector.get_map()]:
            self._selector.unregister(descriptor)
        for descriptor, events in wanted.items():
            self._selector.register(descriptor, events)
        began = time.monotonic()
        longest = min(max(0.0, self._fleet.next_deadline() - began), self._reporter.interval)
        if self._ending:
            longest = min(longest, _LEAVE_TIME)
        self._selector.select(longest)
        now = time.monotonic()
        # Since the last wait, not this one: whatever it was at, it may have stood in the midst of.
        # So where each round takes a second more than it should (a status file on a disk that
        # stalls), no watchdog ends a process: better than to end all that are well.
        waited, self._waited_at = now - self._waited_at, now
        if stood_still(waited, longest):
            if told := self._standstills.note(waited, now):
                logger.warning("%s", told)
            self._fleet.forgive(waited)
        return now

    def _obey(self, number: int, now: float) -> None:
        """Do what a signal asks for."""
        if number != signal.SIGCHLD:  # the loop reaps in every round
            logger.info("got %s", signal.Signals(number).name)
        match number:
            case signal.SIGTERM | signal.SIGINT if not self._ending:
                self._drain(now)
            case signal.SIGTERM | signal.SIGINT:
                logger.warning("stopping at once: what runs is abandoned")
                self._state = State.STOPPING
                self._fleet.stop(_STOP_TIME, now)
                if self._keeper is not None:
                    self._keeper.leave()
            case signal.SIGUSR1:
                self._fleet.dump(now)
            case signal.SIGHUP if not self._ending:
                if self._on_terminal and not sys.stderr.isatty():
                    leave_terminal()
                    self._drain(now)  # the terminal was closed: nobody asked for fresh code
                else:
                    self._fleet.reload()
            case signal.SIGTTIN if not self._ending:
                self._fleet.resize(1)
            case signal.SIGTTOU if not self._ending:
                self._fleet.resize(-1)

    def _decide(self, now: float) -> None:
        """Go over to another state where the processes' state asks for it."""
        fleet = self._fleet
        if self._ending:
            return
        if fleet.terms is not None and not self._opened:
            self._opened = True
            self._open(fleet.terms, now)
        self._failure = self._failure or fleet.failure
        if self._failure is not None:
            sys.stderr.write(f"qworker: {mask_url(self._failure.text)}\n")
            self._drain(now)
        elif not fleet.booted:
            return
        elif fleet.changing:
            if self._state is State.RUNNING:
                self._reporter.systemd.reloading()
                self._state = State.RELOADING
        elif not fleet.ready:
            return
        elif self._state is not State.RUNNING:
            self._state = State.RUNNING
            self._reporter.systemd.ready()
            number = fleet.processes
            logger.info("ready: %d process%s", number, "" if number == 1 else "es")
        elif self._bursting:
            self._watch_burst(now)

    @property
    def _bursting(self) -> bool:
        return self._fleet.terms is not None and self._fleet.terms.burst

    def _consumes_all(self) -> bool:
        """Whether every shard has an owner, and a process for each of ours consumes it."""
        dealer = self._fleet.dealer
        generation = dealer.generation
        return (
            generation is not None
            and dealer.settled(self._fleet.holders)
            and ({*generation.leases} <= {*self._owned_by_all} or generation.lease in dealer.owned)
        )

    def _watch_burst(self, now: float) -> None:
        if not self._consumes_all():
            self._fleet.burst.clear()
            return
        if not self._fleet.burst.over(child.pid for child in self._fleet.children()):
            return
        left = self._pausing.left_over(gauges(c.statistics for c in self._fleet.children()))
        plan = self._fleet.dealer.plan
        if not left and plan is not None and plan.is_between:
            self._fleet.burst.clear()  # some queues are not empty: those of the next generation
            return
        self._left_over = bool(left)
        if left:
            logger.warning("%s; their messages are left, every other queue is empty", left)
        else:
            logger.info("every queue is empty and all is settled")
        self._drain(now)

    def _follow_leases(self) -> None:
        """Act on what the lease store said."""
        if self._keeper is None:
            return
        dealer, holders = self._fleet.dealer, self._fleet.holders
        for news in self._keeper.news():
            if news.refused is not None:
                self._failure = self._failure or Fatal(news.refused.exit_code, news.refused.text)
            self._lease_trouble = "the lease store" if news.error else ""
            self._fleet.resharder.look(self._fleet.children() if news.blank else ())
            if news.plan is None:
                continue
            if news.view.settling:  # it may have forgotten leases, and grants none
                self._lease_trouble = f"{news.view.settling:.0f} s to pass in the lease store"
            self._left = news.gone
            self._owned_by_all = news.view.leases.keys()
            dealer.follow(news.plan, news.version)
            self._pausing.hear(news.paused, self._keeper.write)
            dealer.lose(news.lost, holders)
            dealer.hear({name: grant.epoch for name, grant in news.take.items()}, news.give)
            dealer.trust(news.trusted_until, self._fleet.children())
            # While the store is settling it does not know all members yet.
            leads = RESHARD in dealer.owned and not news.view.settling
            self._fleet.resharder.hear(news.plan, news.view, news.version, leads=leads)

    def _propose(self, version: int, text: str) -> None:
        """Change the plan, if its version is still this one."""
        if self._keeper is not None:
            self._keeper.write(PLAN, version, text)

    def _give_back(self, lease: str, epoch: int) -> None:
        if self._keeper is not None:
            self._keeper.given(lease, epoch)

    def _open(self, terms: Terms, now: float) -> None:
        """Start what the settings ask for, now that they are known."""
        configure_logging(terms.log_format, terms.log_level, service=terms.service)
        self._keeper = Keeper(terms, self._signals.wake)
        self._fleet.resharder.on_found = self._keeper.found
        self._keeper.start()
        try:
            self._reporter.open(terms, self._status(now))
            if terms.reload:
                reload = partial(self._signals.send, signal.SIGHUP)
                self._code_watch = CodeWatch(Path.cwd(), reload)
        except ConfigurationError as error:
            self._failure = Fatal(error.exit_code, str(error))

    def _drain(self, now: float) -> None:
        """Let every process finish, within the time that the settings allow."""
        seconds = self._fleet.terms.drain_timeout if self._fleet.terms else 0.0
        if any(child.consumes for child in self._fleet.children()):
            logger.info("draining, for up to %g s", seconds)
        self._state = State.DRAINING
        self._reporter.systemd.stopping(seconds)
        self._fleet.drain(seconds, now)
        if self._keeper is not None:
            self._keeper.leave()

    def _tell(self, now: float) -> None:
        """Publish the state."""
        status = self._status(now)
        self._reporter.tell(status)
        told = status.state, self._pausing.carried_out()
        if self._keeper is not None and (now >= self._facts_at or told != self._told):
            facts = self._facts(status, now).dump()
            self._keeper.tell(facts, at_once=told != self._told)
            self._facts_at, self._told = now + _FACTS, told
        if status.live:
            self._reporter.alive(now)

    def _facts(self, status: Status, now: float) -> Facts:
        """Return what the other members may know."""
        fleet = self._fleet
        broker_away = fleet.broker_away
        if not broker_away:
            self._broker_seen_at = now
        ttl = fleet.terms.lease_ttl if fleet.terms else 0.0
        return Facts(
            host=socket.gethostname(),
            pid=status.pid,
            state=status.state,
            able=fleet.booted and not self._ending and now - self._broker_seen_at <= ttl,
            waits=self._waits_for(),
            lease_ttl=ttl,
            at=time.time(),
            paused=self._pausing.carried_out(),
            processes=[
                {"index": child.index, "pid": child.pid, "stage": child.progress.value}
                for child in fleet.children()
            ],
            followed=fleet.resharder.followed,
            drained=fleet.dealer.drained(fleet.holders),
            handlers=fleet.terms.handlers if fleet.terms is not None else {},
            outages=outages(child.statistics for child in fleet.children()),
            shards=fleet.dealer.facts(fleet.holders),
        )

    def _status(self, now: float) -> Status:
        fleet = self._fleet
        ready = sum(child.progress is Stage.READY for child in fleet.children())
        waits = self._waits_for()
        text = f"{self._state.value}, {ready} of {fleet.processes} processes ready"
        statistics = [child.statistics for child in fleet.children()]
        return Status(
            service=fleet.terms.service if fleet.terms else "",
            pid=os.getpid(),
            state=self._state.value,
            live=fleet.responsive(now),
            ready=fleet.ready and not self._ending and not waits,
            at=now,
            text=f"{text}, waiting for {waits}" if waits else text,
            restarts=fleet.restarts,
            processes=[child.facts(now) for child in fleet.children()],
            counters=fleet.totals.counters(statistics),
            gauges=gauges(statistics),
        )

    def _waits_for(self) -> str:
        away = [self._lease_trouble, self._fleet.waits_for()]
        return " and ".join(name for name in away if name)

    def _exit_code(self) -> int:
        if self._state is State.STOPPING:
            return EXIT_STOPPED
        if self._failure is not None:
            return self._failure.exit_code
        work_is_left = self._fleet.abandoned or self._left_over
        return EXIT_CODES["ABANDONED" if work_is_left else "DRAINED"]

"""One trial: a stream of events, a service that is killed again and again, and the verdict.

Everything is real: the service is ``qworker start`` in processes of its own, on the broker and the
dedup store that the scenario names; what kills them is SIGKILL; what judges is the ledger that the
handler wrote.
"""

from __future__ import annotations

import time
from collections import Counter
from random import Random
from time import monotonic
from typing import TYPE_CHECKING
from urllib.parse import quote

from worker.config import environment_name, load_settings
from worker.demo.checker import Checker, story
from worker.demo.handlers import ONCE, STATE, app
from worker.demo.ledger import Ledger
from worker.demo.report import Report
from worker.demo.service import Service
from worker.demo.stream import Flow, Stream
from worker.errors import QworkerError, UsageError
from worker.topology import dead_letter_queue
from worker.transport.capabilities import connect
from worker.transport.inbound import release

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from worker.config import Settings
    from worker.demo.ledger import Kill
    from worker.demo.scenario import Scenario
    from worker.supervisor.status import Status

_TICK = 0.05
#: Kills come at this share of their interval at the earliest, and as much later at the latest.
_EARLIEST = 0.6
#: What of the status may be this old before the service counts as quiet: processes tell their
#: numbers once a second.
_QUIET_SECONDS = 1.2
#: Kills come so often here that a message may meet several of them without being their cause.
_CRASH_LIMIT = 20
#: The handlers of a process write to one file in turn; more of them would only wait.
_CONCURRENCY = 4
_QUIET = ("in_flight", "waiting", "unsettled")


class _GaveUp(QworkerError):
    """The trial cannot go on."""


class Trial:
    """Runs a scenario once. While it runs, its public numbers may be looked at by ``watch``."""

    def __init__(self, scenario: Scenario) -> None:
        """Settle the settings. Raises ConfigurationError where a URL is wrong."""
        self.scenario = scenario
        own = "sqlite:///" + quote(str(scenario.folder.resolve() / "broker.db"))
        broker = scenario.broker or own
        urls = {"broker": broker, "dedup": scenario.dedup or (own if scenario.broker else broker)}
        options = {
            "shards": str(scenario.shards),
            "processes": str(scenario.processes),
            "concurrency": str(_CONCURRENCY),
            "crash_limit": str(_CRASH_LIMIT),
        }
        # Nothing but these: neither the environment nor the files of whoever watches.
        self.settings: Settings = load_settings(urls | options, environ={}, folder=scenario.folder)
        self.topology = app.topology(self.settings)
        random = Random(scenario.seed)
        self._random = Random(random.random())
        flow = Flow(scenario.repository, scenario.duplicates, scenario.rate)
        self.stream = Stream(scenario.changes, flow, self.settings, Random(random.random()))
        revisions = Counter(change.path for change in scenario.changes)
        self.checker = Checker(revisions, has_window=not scenario.once)
        file = scenario.folder / "state.db"
        self.service = Service(
            "worker.demo.handlers",
            scenario.folder,
            [f"--{name.replace('_', '-')}={value}" for name, value in options.items()],
            # URLs may hold passwords, which a command line would show to everybody.
            {environment_name(name): url for name, url in urls.items()}
            | {STATE: str(file.resolve()), ONCE: str(int(scenario.once))},
        )
        self.kills: list[Kill] = []
        self.exit_codes: list[int] = []
        self.status: Status | None = None
        #: How often an event was run again and had no second effect.
        self.repetitions = 0
        #: What it is at, in a word or two.
        self.phase = ""
        self._file = file
        self._counters: dict[int, Mapping[str, float]] = {}
        self._began = self._next_kill = 0.0
        self._watch: Callable[[Trial], None] = lambda _: None

    @property
    def seconds(self) -> float:
        """Seconds since the first event was published; 0 before."""
        return monotonic() - self._began if self._began else 0.0

    def counted(self, name: str) -> int:
        """Return a counter of the runtime, over all supervisors; it may be a second old."""
        return int(sum(counters.get(name, 0) for counters in self._counters.values()))

    def run(self, watch: Callable[[Trial], None] | None = None) -> Report:
        """Do it all and judge it. ``watch`` is called many times a second."""
        self._watch = watch or self._watch
        trouble = ""
        with Ledger.open(self._file) as self._ledger:
            try:
                self._begin()
                self._trouble_it()
                self._settle()
                self._end()
            except QworkerError as error:
                trouble = str(error)
            finally:
                seconds = self.seconds
                try:
                    self.stream.stop()
                finally:
                    self.service.end()
            self._read()
            return self._report(trouble, seconds)

    def _begin(self) -> None:
        self._enter("starting")
        self.service.start()
        self._until(self.service.ready, "all processes consume")
        self._began = monotonic()
        self.stream.start()

    def _trouble_it(self) -> None:
        """Kill, and restart, until everything is published and applied."""
        self._enter("running")
        restart_at = self.scenario.restart_at
        self._plan_kill()
        while not (self.stream.finished and self.checker.complete):
            self._look()
            if monotonic() >= self._next_kill:
                self._kill()
            if restart_at is not None and self.checker.applied >= restart_at * self.checker.wanted:
                restart_at = None
                self._restart()

    def _settle(self) -> None:
        """Wait until no message is left anywhere: late copies, redeliveries."""
        self._enter("settling")
        since = monotonic()
        self._until(lambda: self._quiet(since), "every queue is empty and all is settled")

    def _end(self) -> None:
        self._until(self.service.mourned, "the supervisor notices who was killed")
        self._enter("draining")
        self.service.terminate()
        self._until(lambda: not self.service.running, "the service drains", alive=False)
        self.exit_codes.append(self.service.exit_code or 0)

    def _restart(self) -> None:
        """Drain the whole service and start it anew, while events go on coming."""
        self._end()
        self._enter("restarting")
        self.service.start()
        self._until(self.service.ready, "all processes consume again")
        self._enter("running")
        self._plan_kill()

    def _enter(self, phase: str) -> None:
        self.phase = phase
        self._watch(self)

    def _kill(self) -> None:
        """Kill one process, if one is there; where none is, the blow goes into the air.

        Waiting for the next one to come up would hit every process in its first moments.
        """
        kill = self.service.kill_one(self._random)
        if kill is not None:
            self._ledger.note_kill(kill)
            self.kills.append(kill)
        self._plan_kill()

    def _plan_kill(self) -> None:
        every, most = self.scenario.kill_every, self.scenario.most_kills
        wait = float("inf")
        if every is not None and (most is None or len(self.kills) < most):
            wait = every * self._random.uniform(_EARLIEST, 2 - _EARLIEST)
        self._next_kill = monotonic() + wait

    def _until(self, condition: Callable[[], bool], what: str, *, alive: bool = True) -> None:
        """Look on until ``condition`` holds. Raises _GaveUp in time."""
        while not condition():
            self._look(what, alive=alive)

    def _look(self, what: str = "all is applied", *, alive: bool = True) -> None:
        """Take in what is new, let it be seen, and wait for a moment."""
        self._read()
        status = self.service.status()
        if status is not None:
            self.status = status
            self._counters[status.pid] = status.counters
        self._watch(self)
        if self.stream.error is not None:
            raise _GaveUp(f"the publisher failed: {self.stream.error}")
        if alive and not self.service.running:
            raise _GaveUp(f"the service ended by itself, exit code {self.service.exit_code}")
        if self._began and self.seconds > self.scenario.patience:
            raise _GaveUp(
                f"not within {self.scenario.patience:g} s: {what}. Is this machine at its limits?"
            )
        time.sleep(_TICK)

    def _read(self) -> None:
        self.checker.see(self._ledger.news())
        self.repetitions = self._ledger.repetitions()

    def _quiet(self, since: float) -> bool:
        """Whether the service has had nothing to do, and its queues nothing in them."""
        status = self.service.status()
        if status is None or not status.ready or status.at < since + _QUIET_SECONDS:
            return False
        idle = not any(status.gauges.get(name) for name in _QUIET)
        return idle and not any(self._depths()[queue] for queue in self.topology.shard_queues)

    def _depths(self) -> dict[str, int]:
        """Return how many messages wait in every queue of the service.

        Raises Unreachable; and UsageError where the service never got to declare its queues.
        """
        connection = connect(self.settings.broker, heartbeat=0, timeout=10.0, name="qworker demo")
        try:
            channel = connection.channel()
            return {
                queue.name: channel.queue_declare(queue.name, passive=True).message_count
                for queue in self.topology.queues
            }
        except connection.channel_errors as error:
            raise UsageError(f"the queues cannot be looked at: {error}") from None
        finally:
            release(connection)

    def _report(self, trouble: str, seconds: float) -> Report:
        found = self.checker.findings(self._ledger.kills(), self.scenario.tree, self._ledger.tree())
        lines = [trouble] if trouble else []
        depths: dict[str, int] = {}
        try:
            depths = self._depths()
        except QworkerError as error:
            lines.append(str(error))
            trouble = trouble or str(error)
        left = sum(depths.get(queue, 0) for queue in self.topology.shard_queues)
        report = Report(
            events=len(self.scenario.changes),
            files=len(self.scenario.tree),
            published=self.stream.published,
            # Each message was delivered, and each copy dropped, or it would still be in a queue.
            delivered=max(self.counted("received"), self.stream.published - left),
            duplicates=max(self.counted("duplicates"), self.stream.copies - left),
            findings=found,
            once=self.scenario.once,
            repetitions=self.repetitions,
            kills=self.kills,
            exit_codes=self.exit_codes,
            dead_letters=depths.get(dead_letter_queue(app.name), 0),
            left=left,
            seconds=seconds,
            trouble=trouble,
            story=lines,
        )
        if not report.held:
            lines += story(found, self._ledger.executions)
            lines += [f"the last lines of {self.service.log_file}:", *self.service.log_tail()]
        return report

"""One child process as its supervisor sees it: spawned, spoken to, watched, killed, reaped."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from worker.supervisor.control import (
    Boot,
    ControlError,
    Drain,
    Follow,
    Give,
    Lose,
    Open,
    Stop,
    Take,
    Trust,
)
from worker.supervisor.pipe import Channel
from worker.supervisor.policy import drain_allowance
from worker.supervisor.signals import ASKED
from worker.supervisor.stage import Stage, Watchdog
from worker.supervisor.systemd import without_notify

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from worker.sharding.generations import Plan
    from worker.supervisor.control import Fatal, Message, Terms

logger = logging.getLogger("worker.supervisor")

#: The command that becomes a child. By path, not by ``-m``: that would put the current folder
#: first on the path of modules, where a user's own ``worker.py`` hides this package.
CHILD_COMMAND = (sys.executable, "-P", str(Path(__file__).with_name("bootstrap.py")))

#: Seconds that a drain waits for a process that is still connecting.
_OPEN_GRACE = 1.0
#: Seconds that a process has left after it said that it finished, or closed its pipe.
_EXIT_LIMIT = 5.0
#: Seconds for a hung process to write its stack before it is killed.
_DUMP_TIME = 1.0
#: Seconds of silence that are worth telling.
_LONG_SILENCE = 2.0


class ChildProcess:
    """A spawned child. Times are readings of the monotonic clock that the caller passes."""

    def __init__(
        self, index: int, options: Mapping[str, object], command: Sequence[str], now: float
    ) -> None:
        ours, theirs = socket.socketpair()
        self.index = index
        self.stage = Stage.BOOTING
        self._watchdog = Watchdog(now)
        self._drain_until = now
        self.ready_at: float | None = None
        self.kill_at: float | None = None
        self.owner = ""
        self.finish = ""
        #: The generation whose queues it knows; 0 while it knows none.
        self.generation = 0
        #: The versions of the plan that it was told, and that it follows: all is declared by it.
        self.told = self.followed = 0
        #: All that it shall, once at least.
        self.declared = False
        #: When it is told once more what it could not declare.
        self.follow_at = float("inf")
        #: The shards that it was told to take, until it gave them, with their fences; and those of
        #: them that it was told to give.
        self.shards: dict[int, int] = {}
        self.giving: set[int] = set()
        self.statistics: Mapping[str, object] = {}
        #: The version of what is paused that it carried out last; 0 before it was told of any.
        self.paused = 0
        self.fatal: Fatal | None = None
        #: Drained or killed on purpose: its end is no fault of its own.
        self.dismissed = False
        #: It drains by itself: another takes its place, as if it had ended.
        self.resigned = False
        #: It had a shard once.
        self._has_worked = False
        self._killed = False
        #: Ended by a kill from here, and why, as the log has it.
        self._cut_short = False
        self._reason = ""
        # Blocked until the child has its handlers, so that a Ctrl-C meanwhile is not the end of it.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, ASKED)
        try:
            with theirs:
                self._process = subprocess.Popen(  # noqa: S603 - this very interpreter
                    [*command, str(theirs.fileno())],
                    pass_fds=(theirs.fileno(),),
                    stdin=subprocess.DEVNULL,
                    env=without_notify(os.environ),
                )
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self.pid = self._process.pid
        self.channel = Channel(ours)
        self.say(Boot(options, index))

    def say(self, message: Message) -> None:
        """Send ``message``; a process that cannot take it will be found dead."""
        self.channel.send(message)

    def listen(self, now: float) -> list[Message]:
        """Return what the process said. One that closed its pipe, or babbles, has to go."""
        try:
            messages = self.channel.receive()
        except ControlError as error:
            self.kill(f"it does not speak the protocol of the control pipe: {error}")
            return []
        if self.channel.closed:
            self.kill_by(now + _EXIT_LIMIT)
        return messages

    @property
    def progress(self) -> Stage:
        """How far it has come, for who judges the service: until it has declared once, it connects.

        Who talks to it goes by ``stage``: it takes words as soon as it has a connection.
        """
        waits = self.stage is Stage.READY and not self.declared
        return Stage.OPENING if waits else self.stage

    @property
    def consumes(self) -> bool:
        """Whether the process may hold messages: it has shards and has not ended."""
        return bool(self.shards) and self.stage is not Stage.DEAD

    @property
    def serves(self) -> bool:
        """Whether it may be told of a generation, and to take shards of the one that it knows."""
        return self.stage in (Stage.GREETED, Stage.READY) and not self.dismissed

    def greeted(self, owner: str) -> None:
        """Note that the process imported the app and waits for more."""
        self.owner = owner
        self.stage = Stage.GREETED

    def open(self, plan: Plan, version: int, trusted_until: float) -> None:
        """Make the process connect, and leave a generation of which it holds nothing.

        It connects until then, by the ``lease_clock``: later the plan may be another.
        """
        self.stage = Stage.OPENING
        self._watchdog.opened()
        self.told, self.follow_at = version, float("inf")
        self.say(Open(plan.dump(), version, trusted_until))

    def follow(self, plan: Plan, version: int) -> None:
        """Make the process declare what this plan says."""
        self.told, self.follow_at = version, float("inf")
        self.say(Follow(plan.dump(), version))

    def take(self, fences: Mapping[int, int], trusted_until: float) -> None:
        """Give the process shards, each with its fence."""
        logger.info("process %d takes %s", self.index, _shards(fences))
        self._has_worked = True
        self.shards.update(fences)
        self.say(Take([*fences.items()], trusted_until))

    def give(self, shards: Sequence[int]) -> None:
        """Make the process give shards up, in order."""
        logger.info("process %d gives %s", self.index, _shards(shards))
        self.giving.update(shards)
        self.say(Give(shards))

    def lose(self, shards: Sequence[int]) -> None:
        """Make the process give shards up at once: they may be somebody else's."""
        logger.warning("process %d loses %s: the lease is another's", self.index, _shards(shards))
        self.giving.update(shards)
        self.say(Lose(shards))

    def trust(self, until: float) -> None:
        """Tell the process until when the leases of its shards may be trusted."""
        if self.stage in (Stage.READY, Stage.DRAINING) and not self.channel.pending:
            self.say(Trust(until))

    def resign(self) -> bool:
        """Note that the process drains; return whether it does so by itself, and that is news."""
        if self.stage is not Stage.READY:
            return False
        self.stage, self.resigned = Stage.DRAINING, True
        return True

    def given(self, shards: Sequence[int]) -> None:
        """Note that nothing of these shards is left in the process."""
        for shard in shards:
            self.shards.pop(shard, None)
            self.giving.discard(shard)

    def ready(self, generation: int, version: int, now: float) -> None:
        """Note that the process is ready for this generation, and which plan it has declared.

        One that has not declared any yet is told to follow: its answer says when it has.
        """
        if version:
            self.follows(version)
        else:
            self.follow_at = now
        self._watchdog.beat(now)
        self.ready_at = self.ready_at or now
        self.generation = generation
        self.stage = Stage.READY
        if self.dismissed:
            self.stage = Stage.DRAINING
            self.kill_at = self._drain_until

    def follows(self, version: int) -> None:
        """Note that the process has declared what this version of the plan says."""
        self.followed = version
        if not self.declared:
            logger.info("process %d has declared its queues", self.index)
        self.declared = True

    def drain(self, seconds: float, now: float) -> None:
        """Let the process finish what runs; what is left of it after ``seconds`` is killed.

        It gives each of its shards as soon as nothing of that is left. One that does not consume
        yet holds nothing and is not waited for.
        """
        self.dismissed = True
        self._drain_until = now + seconds
        if self.stage in (Stage.BOOTING, Stage.GREETED):
            self.dismiss()
        elif self.stage is Stage.OPENING:
            self.say(Drain(drain_allowance(seconds)))
            self.kill_by(now + min(seconds, _OPEN_GRACE))
        elif self.stage is Stage.READY or (self.stage is Stage.DRAINING and self.kill_at is None):
            self.giving.update(self.shards)
            self.say(Drain(drain_allowance(seconds)))
            self.stage = Stage.DRAINING
            self.kill_by(self._drain_until)

    def stop(self, seconds: float, now: float) -> None:
        """Make the process abandon everything; it is killed after ``seconds``."""
        self.dismissed = True
        if self.stage in (Stage.BOOTING, Stage.GREETED):
            self.dismiss()
        else:
            self.say(Stop())
            self.kill_by(now + seconds)

    def dismiss(self) -> None:
        """End a process that is no longer wanted and was given nothing."""
        self.dismissed = True
        self.kill("")

    def beat(self, statistics: Mapping[str, object], now: float) -> None:
        """Note a sign of life."""
        self._watchdog.beat(now)
        self.statistics = statistics

    def finished(self, finish: str, now: float) -> None:
        """Note that the consumer of the process ended in this way."""
        self.finish = finish
        self.stage = Stage.FINISHED
        self.kill_by(now + _EXIT_LIMIT)

    def kill_by(self, deadline: float) -> None:
        """Kill the process at ``deadline``, unless an earlier one is set."""
        self.kill_at = deadline if self.kill_at is None else min(self.kill_at, deadline)

    def silent_for(self, now: float) -> float:
        """Return the seconds since the last sign of life of a process that consumes."""
        consumes = self.stage in (Stage.READY, Stage.DRAINING)
        return self._watchdog.silent_for(now) if consumes else 0.0

    def forgive(self, seconds: float) -> None:
        """Move what the watchdog goes by by time in which nobody ran.

        The end of a drain stays: whoever set it counts on the real time.
        """
        self._watchdog.forgive(seconds)

    def watch(self, now: float, terms: Terms | None) -> None:
        """Kill the process if its time is up; if it hangs, first make it show where."""
        if self.channel.pending:
            self.channel.flush()
        if self._killed:
            return
        if self.kill_at is not None:
            if now >= self.kill_at:
                late = "it finished but does not exit: a thread of the app may still run"
                self.kill(late if self.stage is Stage.FINISHED else "its time is up")
        elif complaint := self._watchdog.complaint(self.stage, now, terms):
            logger.error("process %d (pid %d) hangs: %s", self.index, self.pid, complaint)
            self.dump_stack()
            self.kill_by(now + _DUMP_TIME)

    def dump_stack(self) -> None:
        """Make the process write its stack to standard error, even if its interpreter hangs."""
        self._signal(signal.SIGUSR1)

    def kill(self, reason: str) -> None:
        """End the process now (SIGKILL), with a line in the log if there is a reason to tell."""
        if not self._killed:
            self._killed = self._cut_short = True
            self._reason = reason
            if reason:
                logger.warning("killing process %d (pid %d): %s", self.index, self.pid, reason)
            self._signal(signal.SIGKILL)

    def reaped(self, status: int) -> None:
        """Note the wait status that the kernel gave; the pid may be somebody else's from now on."""
        self._process.returncode = os.waitstatus_to_exitcode(status)
        self.stage = Stage.DEAD
        self._killed = True
        self.channel.close()

    @property
    def drained(self) -> bool:
        """Whether the process left nothing behind: it said so, or never held anything."""
        return self.finish == "DRAINED" or not self._has_worked

    @property
    def abandoned(self) -> bool:
        """Whether the process was ended with work under way, by itself as told or by a kill here.

        One that died otherwise left work too, but nobody's patience was at its end.
        """
        return not self.drained and (self._cut_short or self.finish in ("ABANDONED", "STUCK"))

    @property
    def unneeded(self) -> bool:
        """Whether it was ended from here before it held anything: nobody has to hear of that."""
        return self._cut_short and not self._reason

    def lived(self, now: float) -> float | None:
        """Return the seconds since the process was ready, or None if it never was."""
        return None if self.ready_at is None else now - self.ready_at

    def facts(self, now: float) -> dict[str, object]:
        """Return the state of the process for whoever watches the service."""
        return {
            "index": self.index,
            "pid": self.pid,
            "stage": self.progress.value,
            "generation": self.generation,
            "shards": sorted(self.shards),
            "silent_for": round(self.silent_for(now), 3),
            "statistics": self.statistics,
        }

    def describe(self, now: float) -> str:
        """Return the state of the process in one line."""
        text = f"{self.progress.value}, pid {self.pid}, {_shards(self.shards)}"
        silence = self.silent_for(now)
        return f"{text}, silent for {silence:.1f} s" if silence > _LONG_SILENCE else text

    def epitaph(self) -> str:
        """Return how the process ended, in words."""
        code = self._process.returncode
        if self._cut_short and code == -signal.SIGKILL:
            how = "by the supervisor"
        elif code is not None and code < 0:
            known = -code in {*signal.Signals}
            how = f"killed by {signal.Signals(-code).name if known else f'signal {-code}'}"
        else:
            how = f"exit code {code}"
        return f"{how}, {self.finish.lower()}" if self.finish else how

    def _signal(self, number: int) -> None:
        if self.stage is not Stage.DEAD:
            os.kill(self.pid, number)


def _shards(shards: Collection[int]) -> str:
    """Return shards in words."""
    told = ", ".join(map(str, sorted(shards))) or "none"
    return f"shard{'' if len(shards) == 1 else 's'} {told}"

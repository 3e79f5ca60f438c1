"""Commands of the real command line, run as a user would run them, on a pipe or on a terminal."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from waiting import until
from worker.transport.capabilities import connect
from worker.transport.inbound import Inbound

#: The console script of this very environment.
COMMAND = str(Path(sys.executable).with_name("qworker"))
_PATIENCE = 60.0


@dataclass(frozen=True, slots=True)
class Result:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Standard output as JSON."""
        return json.loads(self.out)


class Shell:
    """A folder and an environment to run commands in."""

    def __init__(self, folder: Path, environ: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        rest = {k: v for k, v in os.environ.items() if not k.startswith("QWORKER_")}
        self.environ = {**rest, "QWORKER_RUN_DIR": str(folder / "run"), **(environ or {})}
        self._started: list[subprocess.Popen[bytes]] = []

    def write(self, name: str, text: str) -> Path:
        """Put a file into the folder."""
        file = self.folder / name
        file.write_text(text)
        return file

    def run(self, *arguments: str, stdin: str | bytes = "", code: int | None = 0) -> Result:
        """Run ``qworker ARGUMENTS`` with pipes; fail unless it ends with ``code`` (None: any)."""
        sent = stdin.encode() if isinstance(stdin, str) else stdin
        done = subprocess.run(
            [COMMAND, *arguments],
            cwd=self.folder,
            env=self.environ,
            input=sent,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
        result = Result(done.returncode, done.stdout.decode(), done.stderr.decode())
        assert code in (None, result.code), result
        return result

    def start(self, *arguments: str, log: str = "") -> subprocess.Popen[bytes]:
        """Begin a command with pipes, in a process group of its own; ``close`` ends it.

        ``log``: the file in the folder that its standard error goes to. A pipe that nobody reads
        would stop it once it is full.
        """
        with ExitStack() as stack:
            file = stack.enter_context((self.folder / log).open("ab")) if log else subprocess.PIPE
            process = subprocess.Popen(
                [COMMAND, *arguments],
                cwd=self.folder,
                env=self.environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=file,
                process_group=0,
            )
        self._started.append(process)
        return process

    def close(self) -> None:
        """Kill what is left of the commands that were begun."""
        for process in self._started:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def on_terminal(self, *arguments: str, typed: str = "") -> Result:
        """Run a command on a terminal where ``typed`` is typed ahead; ``out`` is all it says."""
        pid, master = pty.fork()
        if pid == 0:  # the child: becomes the command
            os.chdir(self.folder)
            os.execve(COMMAND, [COMMAND, *arguments], {**self.environ, "TERM": "xterm"})  # noqa: S606 - our own program
        os.write(master, typed.encode())
        shown = b""
        with suppress(OSError):  # how Linux says that the other side of a terminal is closed
            while chunk := os.read(master, 65536):
                shown += chunk
        os.close(master)
        _, status = os.waitpid(pid, 0)
        return Result(os.waitstatus_to_exitcode(status), shown.decode(), "")


def messages(url: str, queue: str) -> list[Any]:
    """Take every message out of a queue, as they arrive."""
    number = depth(url, queue)
    connection = connect(url, heartbeat=0, timeout=10, name="test")
    inbound = Inbound(connection, url, 65_535)
    inbound.consume({0: queue})
    found: list[Any] = []
    try:

        def is_complete() -> bool:
            found.extend(message for _, message in inbound.fetch(1000))
            return len(found) >= number

        until(is_complete)
        (channel,) = inbound.channels
        for message in found:
            channel.settlement.finish(message.tag)
        inbound.settle(everything=True)
        return found
    finally:
        inbound.close()


def depth(url: str, queue: str) -> int:
    """Return how many messages wait in a queue."""
    connection = connect(url, heartbeat=0, timeout=10, name="test")
    try:
        return int(connection.channel().queue_declare(queue, passive=True).message_count)
    finally:
        connection.release()

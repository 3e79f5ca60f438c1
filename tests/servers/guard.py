"""Kills the servers that a killed test run leaves behind.

A fixture's clean-up does not run when pytest itself gets SIGKILL or SIGTERM. So a small process
outside its session waits at a pipe that only pytest holds: the pipe's end is pytest's end,
however that came about. Run as a script, this file is that process.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from typing import Self


class Guard:
    """A watcher process; ``watch`` and ``forget`` tell it which process groups to care for."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            # Nothing but the standard library, whatever the environment and this folder hold.
            [sys.executable, "-I", "-S", __file__],
            stdin=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        # Closes the pipe, whereupon the watcher kills what is left, and waits for it.
        self._process.communicate()

    def watch(self, group: int) -> None:
        """Kill the process group ``group`` when this process is gone."""
        self._tell(f"+ {group}")

    def forget(self, group: int) -> None:
        """Leave ``group`` alone: it has ended, and its number may soon be somebody else's."""
        self._tell(f"- {group}")

    def _tell(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


def main() -> None:
    """Follow what the pipe says until its end; then kill what is still watched."""
    watched: set[int] = set()
    for line in sys.stdin:
        sign, group = line.split()
        if sign == "+":
            watched.add(int(group))
        else:
            watched.discard(int(group))
    for group in watched:
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()

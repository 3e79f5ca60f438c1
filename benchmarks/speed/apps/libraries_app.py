"""The floor of memory: the bare kombu loop in two processes below a third, redis-py in all.

python -m speed.apps.libraries_app

They are started as qworker starts its own, have what it is built on, and nothing of it.
"""

from __future__ import annotations

import subprocess
import sys

import redis

from speed.apps.kombu_app import main as loop
from speed.apps.kombu_app import publish_all

__all__ = ["publish_all", "redis"]
_LOOP = "loop"
_LOOPS = 2


def main() -> None:
    """Start the loops, and wait until a signal ends the process."""
    command = [sys.executable, "-m", "speed.apps.libraries_app", _LOOP]
    for process in [subprocess.Popen(command) for _ in range(_LOOPS)]:
        process.wait()


if __name__ == "__main__":
    if sys.argv[1:] == [_LOOP]:
        loop()
    else:
        main()

"""What tests know of processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from processes import children_of, group_of, is_alive
from waiting import until

_PARENT = """
import subprocess, sys, time
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
time.sleep(60)
"""


def test_who_outlives_its_parent_is_still_of_its_group() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _PARENT], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        try:
            assert sorted(group_of(parent.pid)) == sorted([parent.pid, child])

            os.kill(parent.pid, signal.SIGKILL)
            until(lambda: not is_alive(parent.pid), message="the parent is dead")

            assert children_of(parent.pid) == []
            assert child in group_of(parent.pid)
        finally:
            os.killpg(parent.pid, signal.SIGKILL)

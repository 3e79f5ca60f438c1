"""When the embedded broker takes a process for dead, and when it does not presume to know."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest

from waiting import until
from worker.transport.embedded.process import Process

HERE = Process.current()


@pytest.fixture
def other() -> Iterator[subprocess.Popen[str]]:
    """A process that prints who it is, and waits."""
    program = (
        "from worker.transport.embedded.process import Process; import signal;"
        "print(repr(Process.current()), flush=True); signal.pause()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    ) as process:
        yield process
        process.kill()


def identity(process: subprocess.Popen[str]) -> Process:
    assert process.stdout is not None
    fields = process.stdout.readline()
    found: Process = eval(fields, {"Process": Process})  # noqa: S307 - our own repr
    return found


def test_this_process_lives() -> None:
    assert HERE.pid == os.getpid()
    assert HERE.is_visible(HERE)
    assert not HERE.is_known_dead(HERE)


def test_another_process_lives_until_it_is_killed_even_as_a_zombie(
    other: subprocess.Popen[str],
) -> None:
    there = identity(other)
    assert there.pid == other.pid
    assert not there.is_known_dead(HERE)
    os.kill(other.pid, 9)
    until(lambda: there.is_known_dead(HERE), message="the zombie is dead")
    other.wait()
    assert there.is_known_dead(HERE)


def test_a_number_that_is_used_again_is_another_process(other: subprocess.Popen[str]) -> None:
    there = identity(other)
    assert replace(there, started="1").is_known_dead(HERE)
    assert replace(HERE, started="1").is_known_dead(HERE)
    assert not replace(there, started="").is_known_dead(HERE), "unknown is no proof"


def test_another_boot_is_over() -> None:
    assert replace(HERE, boot="another").is_known_dead(HERE)
    assert not replace(HERE, boot="").is_known_dead(HERE)


def test_another_namespace_cannot_be_judged() -> None:
    nobody = 2**22 + 1  # above the highest number that Linux gives
    gone = replace(HERE, pid=nobody)
    assert gone.is_known_dead(HERE)
    for namespace in ("pid:[1]", ""):
        elsewhere = replace(gone, namespace=namespace)
        assert not elsewhere.is_visible(HERE)
        assert not elsewhere.is_known_dead(HERE)

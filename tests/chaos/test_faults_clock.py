"""A clock that jumps does so for who lives by it, and for nobody else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from chaos.faults.clock import Clock
from chaos.faults.redis_clock import RedisByClock
from servers import Guard

HOUR = 3600.0
#: Seconds that a look at the time may take on a busy machine.
SLACK = 60.0
TESTS = Path(__file__).parents[1]

#: Lives by the clock as a service does, and tells the time of all sorts whenever it is asked.
TELL = """
import os, sys
from chaos.faults import clock
clock.install(os.environ)

import json, sqlite3, time
from datetime import UTC, datetime, timedelta
from time import time_ns
import msgspec, orjson

db = sqlite3.connect(":memory:")
for _ in sys.stdin:
    (days,) = db.execute("SELECT julianday('now')").fetchone()
    moment = datetime.now(UTC)
    assert msgspec.convert(orjson.loads(orjson.dumps(moment)), datetime) == moment
    assert type(moment) is datetime and datetime.now().tzinfo is None
    print(json.dumps({
        "time": time.time(),
        "time_ns": time_ns() / 1e9,
        "datetime": moment.timestamp(),
        "sqlite": (days - 2440587.5) * 86400.0,
        "monotonic": time.monotonic(),
    }), flush=True)
"""


class Teller:
    """A process that tells its time."""

    def __init__(self, clock: Clock) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", TELL],
            env={**os.environ, "PYTHONPATH": str(TESTS), **clock.environment()},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ahead(self) -> dict[str, int]:
        """Return by how many minutes each of its clocks is ahead of this process's."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        told = json.loads(self._process.stdout.readline())
        passing = told.pop("monotonic") - time.monotonic()
        now = time.time()
        ahead = {name: round((moment - now) / SLACK) for name, moment in told.items()}
        return ahead | {"monotonic": round(passing / SLACK)}

    def close(self) -> None:
        self._process.communicate()
        assert self._process.returncode == 0


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path / "clock")


@pytest.fixture
def teller(clock: Clock) -> Iterator[Teller]:
    made = Teller(clock)
    yield made
    made.close()


def minutes(wall: int) -> dict[str, int]:
    """Return what a teller says whose wall clock is ahead."""
    walls = dict.fromkeys(("time", "time_ns", "datetime", "sqlite"), wall)
    return walls | {"monotonic": 0}


def test_a_process_whose_clock_jumps(clock: Clock, teller: Teller) -> None:
    assert teller.ahead() == minutes(0)
    with clock.stepped(HOUR):
        assert teller.ahead() == minutes(60)
        with clock.stepped(-2 * HOUR):
            assert teller.ahead() == minutes(-60)
    assert teller.ahead() == minutes(0)


def test_what_sqlite_says_of_other_moments_is_as_it_was(clock: Clock, tmp_path: Path) -> None:
    program = (
        "import os; from chaos.faults import clock; clock.install(os.environ)\n"
        "import sqlite3; db = sqlite3.connect(':memory:')\n"
        "print(db.execute(\"SELECT julianday('2000-01-01 12:00'), julianday('x')\").fetchone())"
    )
    environment = {**os.environ, "PYTHONPATH": str(TESTS), **clock.environment()}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "(2451545.0, None)"


def test_a_redis_whose_clock_jumps(tmp_path: Path, server_guard: Guard) -> None:
    with (
        RedisByClock(tmp_path, server_guard) as server,
        redis.Redis.from_url(server.url) as client,
    ):

        def ahead() -> int:
            return round((float(client.time()[0]) - time.time()) / SLACK)

        assert ahead() == 0
        client.set("k", "v", ex=600)
        with server.clock.stepped(-HOUR):
            assert ahead() == -60
            assert client.ttl("k") > 600
        with server.clock.stepped(HOUR):
            assert ahead() == 60
            assert client.get("k") is None
        assert ahead() == 0

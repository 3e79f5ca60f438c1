"""A disk that is full refuses to take more, and does again once it is not."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from chaos.faults.disk import SmallDisk, can_mount
from chaos.places import Place
from waiting import until

HOLD = """
import sys
from pathlib import Path
from chaos.faults.disk import SmallDisk
disk = SmallDisk(Path(sys.argv[1]))
print("mounted", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    if not can_mount():
        # What is missing is no server but privileges, as where links are to be cut.
        pytest.skip("a disk that is full needs privileges (root), not a server")
    with SmallDisk(tmp_path / "disk") as made:
        yield made


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_sqlite_on_a_full_disk(disk: SmallDisk, journal: str) -> None:
    def write(times: int) -> None:
        for _ in range(times):
            db.execute("INSERT INTO box VALUES (?)", (os.urandom(10_000),))

    with closing(sqlite3.connect(disk.folder / "box.db", isolation_level=None)) as db:
        db.execute(f"PRAGMA journal_mode = {journal}")
        db.execute("CREATE TABLE box (content BLOB)")
        write(1)
        with disk.full():
            assert disk.free == 0
            with pytest.raises(sqlite3.OperationalError, match="database or disk is full"):
                write(100)

        write(100)
        assert db.execute("SELECT count(*) FROM box").fetchone()[0] > 100
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_the_clock_of_a_place_ticks_on_where_its_disk_is_full(
    disk: SmallDisk, tmp_path: Path
) -> None:
    disk.close()  # there are privileges for the place's own
    with Place.on_a_file(tmp_path) as place:
        assert place.disk is not None
        assert place.clock is not None
        with place.disk.full(), place.clock.stepped(60.0):
            assert place.clock.ahead == 60.0
        assert place.clock.ahead == 0.0


def test_a_disk_goes_with_who_made_it(disk: SmallDisk, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"mounted\n"
    assert os.path.ismount(folder)

    holder.send_signal(signal.SIGKILL)

    holder.communicate()
    until(lambda: not os.path.ismount(folder), message="the disk is gone")

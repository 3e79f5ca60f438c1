"""A Redis that lives by a clock of its own, by means of libfaketime."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from chaos.faults.clock import Clock
from servers import Guard, MissingServer, Redis


class RedisByClock(Redis):
    """``clock`` is what its TIME says, which scripts and the ends of keys go by."""

    def __init__(self, folder: Path, guard: Guard, *, also_at: str = "") -> None:
        super().__init__(folder, guard, also_at=also_at)
        self.clock = Clock(folder / "clock")
        self._library = _library()

    def environment(self) -> Mapping[str, str]:
        """Load libfaketime into the server, and have it look at the clock every time.

        Debian's Redis takes its memory from jemalloc, which asks for the time while libfaketime
        asks it for memory, before either is ready. So the C library's own comes before jemalloc.
        """
        return {
            **super().environment(),
            "LD_PRELOAD": f"{self._library}:libc.so.6",
            "FAKETIME_TIMESTAMP_FILE": str(self.clock.file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }


def _library() -> Path:
    for found in Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"):
        return found
    raise MissingServer(
        "libfaketime is not installed. Run `make servers`, or: apt-get install libfaketime"
    )

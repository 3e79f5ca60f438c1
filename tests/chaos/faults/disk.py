"""A small disk of its own (tmpfs), which can be filled up. That needs privileges, as links do."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOSPC
from functools import cache
from pathlib import Path
from typing import Self

_MEGABYTE = 1 << 20
_BLOCK = 4096


class CannotMount(Exception):
    """This process may not mount anything."""


class SmallDisk:
    """``folder`` is on it while the context lasts. Raises CannotMount where that is not allowed."""

    def __init__(self, folder: Path, megabytes: int = 16) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"
        folder.mkdir(exist_ok=True)
        _mount(folder, megabytes)
        # A process outside of our session takes it away, however this one ends.
        self._holder = subprocess.Popen(
            ["sh", "-c", 'cat; exec umount --lazy "$0"', folder],
            stdin=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    @property
    def free(self) -> int:
        """How many bytes can still be written."""
        facts = os.statvfs(self.folder)
        return facts.f_bavail * facts.f_frsize

    @contextmanager
    def full(self) -> Iterator[None]:
        """Fill it to the last block. What somebody deletes meanwhile can be written once more."""
        try:
            with self._ballast.open("wb", buffering=0) as ballast:
                for size in (_MEGABYTE, _BLOCK):
                    _fill(ballast.fileno(), bytes(size))
            yield
        finally:
            self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """Take it away, with all that is on it; who has a file open keeps that one."""
        self._holder.communicate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


@cache
def can_mount() -> bool:
    """Tell whether this process may make small disks."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            SmallDisk(Path(folder), 1).close()
        except (CannotMount, OSError):
            return False
    return True


def _mount(folder: Path, megabytes: int) -> None:
    options = f"size={megabytes}m,mode=0755"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "qworker", folder],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    if done.returncode:
        raise CannotMount(done.stderr.strip())


def _fill(file: int, piece: bytes) -> None:
    try:
        while True:
            os.write(file, piece)
    except OSError as error:
        if error.errno != ENOSPC:
            raise

"""Looking at files of SQLite that may not be there, and making none of them."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass, replace
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from worker.brokerurl import file_mistake
from worker.config import mask_url
from worker.stores.sqlite import path_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from worker.config import Settings


@dataclass(frozen=True, slots=True)
class View:
    """What to ask, and what to call it."""

    #: To connect by: an empty file elsewhere stands for each that is not there.
    settings: Settings
    #: The URLs of these.
    missing: frozenset[str] = frozenset()

    def lacks(self, url: str) -> str:
        """Return what to tell of a URL whose file is not there; nothing of any other."""
        return f"there is no {mask_url(url)} yet" if url in self.missing else ""


@contextmanager
def looking(settings: Settings, *, makes: bool = False) -> Iterator[View]:
    """Look while the block runs, and leave nothing behind; ``makes``: as whoever makes it.

    What cannot be made either (its folder is not there, say) is left as it is: whoever opens it
    tells why.
    """
    said = settings.broker, settings.dedup_url, settings.leases_url
    paths = {url: _path(url) for url in said if url.startswith("sqlite:") and not file_mistake(url)}
    missing = {url: path for url, path in paths.items() if _can_be_made(path)}
    if makes or not missing:
        yield View(settings)
        return
    with TemporaryDirectory(prefix="qworker-") as folder:
        files = {path: f"sqlite:///{folder}/{n}.db" for n, path in enumerate({*missing.values()})}
        stands = {url: files[path] for url, path in missing.items()}
        named = zip(("broker", "dedup", "leases"), said, strict=True)
        changed: dict[str, Any] = {name: stands[url] for name, url in named if url in stands}
        yield View(replace(settings, **changed), frozenset(missing))


def _path(url: str) -> Path:
    return path_of(url, "the").absolute()


def _can_be_made(path: Path) -> bool:
    return not path.exists() and path.parent.is_dir() and os.access(path.parent, os.W_OK | os.X_OK)

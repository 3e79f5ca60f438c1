"""From what ``--archive`` says to an open store."""

from __future__ import annotations

from typing import TYPE_CHECKING

from worker.archive.base import Archive, ArchiveOptions
from worker.archive.sqlite import SqliteArchive
from worker.errors import ConfigurationError
from worker.stores.catalog import Catalog, Later
from worker.stores.sqlite import path_of

if TYPE_CHECKING:
    from worker.config import Settings

_POSTGRES = Later("worker.archive.postgres", "PostgresArchive", "postgres")
#: Other distributions register the class of their archive here, under its URL scheme.
ENTRY_POINTS = "qworker.archive"

_CATALOG: Catalog[Archive] = Catalog(
    "archive",
    Archive,
    {"sqlite": SqliteArchive, "postgresql": _POSTGRES, "postgres": _POSTGRES},
    ENTRY_POINTS,
    (),
)


def archive_url(settings: Settings) -> str:
    """Return the URL of the archive: where nothing is said, a file beside that of the broker.

    Raises ConfigurationError where the broker is no file.
    """
    if settings.archive:
        return settings.archive
    if settings.broker.startswith("sqlite:"):
        file = path_of(settings.broker.split(";", 1)[0], "broker")
        return f"sqlite:///{file.with_name(f'{file.stem}-archive.db')}"
    raise ConfigurationError(
        "where is the archive? Say --archive sqlite:///file or postgresql://… (QWORKER_ARCHIVE_URL)"
    )


def open_archive(url: str, options: ArchiveOptions | None = None) -> Archive:
    """Open the archive that ``url`` names, as :meth:`Catalog.open` tells.

    Raises ConfigurationError where the text is wrong or the class is no store, and
    ArchiveUnavailable where the database is not there now; NoArchive as the options say.
    """
    return _CATALOG.open(url, options or ArchiveOptions())

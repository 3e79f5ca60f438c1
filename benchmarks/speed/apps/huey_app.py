"""huey, on Redis or on SQLite by ``HUEY_FILE``; it keeps no results, as it has none here."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from huey import RedisHuey, SqliteHuey

from speed.apps.work import work_once

if TYPE_CHECKING:
    from speed.stream import Stream

_file = os.environ.get("HUEY_FILE")
huey = (
    SqliteHuey("speed", filename=_file, results=False)
    if _file
    else RedisHuey("speed", url=os.environ["REDIS_URL"], results=False)
)


@huey.task()
def tick(ident: str, key: str, number: int, padding: str) -> None:  # noqa: ARG001 - each event brings all of these, and is only counted
    """Work."""
    work_once(ident, number)


def publish_all(stream: Stream) -> None:
    """Publish: a command of Redis, or a transaction of SQLite, for each."""
    for message in stream:
        tick(*message)

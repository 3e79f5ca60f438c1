"""The app that archives: ``qworker archive start`` runs it as any other service.

An event is stored after at least one delivery, and its id is unique in the archive: so it is there
once. The order of a key's events is that in which they were consumed, which is the order of
publishing: the handler of the next one begins after this one is committed, also in another process,
and a late commit of a process that has lost the shard finds its id there, and changes nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import msgspec

from worker.app import App
from worker.archive.entry import Unarchivable, entry_of
from worker.archive.open import archive_url, open_archive
from worker.archive.writer import Mark, Writer
from worker.errors import Reject
from worker.patience import patiently
from worker.retry import RetryPolicy

if TYPE_CHECKING:
    from collections.abc import Iterator

    from worker.context import Context

#: The service's name, and so that of its queues.
ARCHIVE = "qw.archive"
#: What the names of documents begin with that tell of barriers.
MARKS = "barrier/"

#: Events that wait for the same commit are what makes it quick.
app = App(ARCHIVE, settings={"concurrency": 256, "prefetch": 1024})


@app.lifespan
def writing() -> Iterator[Writer]:
    """Have a writer for as long as the process lives."""
    settings = app.settings
    url = archive_url(settings)
    archive = patiently(lambda: open_archive(url), settings.connect_timeout)
    writer = Writer(archive, settings.archive_retention)
    yield writer
    writer.close()


#: No retries: the writer waits while the database is away, and nothing else gets better by waiting.
#: So nothing comes back behind a barrier.
@app.on("#", type=msgspec.Raw, name="archive", retry=RetryPolicy(attempts=1))
async def archive(_: Any, context: Context) -> None:
    """Store an event; of a barrier, that everything before it in its queue is stored."""
    if told := context.message.barrier:
        await context.state.store(Mark(f"{MARKS}{told}", context.message_id))
        return
    try:
        entry = entry_of(context.message, time.time_ns() // 1000)
    except Unarchivable as error:
        raise Reject(str(error)) from None
    await context.state.store(entry)

"""Notes in the history what the dedup store has recorded, as each process hears it from the store.

What is noted needs no second effect any more, whatever happens to the process: only a store that
forgets it is an excuse. What was recorded and is not noted, since the process died between the
answer and the line, is judged as though it had not been: that moment is within the honest window.

A line tells all that one answer of the store was about. It is written before the runtime goes by
the answer, and before any crash point behind it: :func:`install` comes before that of
``crashpoints``. Nobody waits for the disk: the thread that writes it is the one that talks to the
broker and the store, and a line that is written outlives its process.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import Any

from chaos.history import Entry, Writer
from chaos.wrapping import when_imported

#: Names the history in the environment of a service under test.
VARIABLE = "CHAOS_RECORDS"
#: What a service has to have on PYTHONPATH, before the tests.
STARTUP = Path(__file__).with_name("startup")
_MODULE = "worker.dialogue"


def install() -> None:
    """Note what this process hears, from when it talks to a store."""
    when_imported(_MODULE, lambda: _wrap(Path(os.environ[VARIABLE])))


def _wrap(history: Path) -> None:
    dialogue = import_module(_MODULE).Dialogue
    answers = import_module("worker.dedup.base").Answer
    original: Callable[..., Any] = dialogue.exchange
    writer = Writer(history, sync=False)

    @wraps(original)
    def exchange(*args: Any, **options: Any) -> Any:
        replies = original(*args, **options)
        if replies is not None:
            recorded = [
                (task.handler.full_name, task.message.id)
                for task, answer in replies.completed
                if answer in (answers.KEPT, answers.ALREADY_DONE)
            ]
            if recorded:
                writer.note("recorded", detail=json.dumps(recorded))
        return replies

    dialogue.exchange = exchange


def recorded(entries: Iterable[Entry]) -> Mapping[tuple[str, str], list[float]]:
    """Return when processes heard of each handler and id that it is recorded, in order."""
    found = defaultdict[tuple[str, str], list[float]](list)
    for entry in entries:
        if entry.what == "recorded":
            for handler, id_ in json.loads(entry.detail):
                found[handler, id_].append(entry.at)
    for times in found.values():
        times.sort()
    return dict(found)

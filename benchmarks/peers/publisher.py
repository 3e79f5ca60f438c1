"""Processes that publish at a steady rate until SIGTERM; each has keys of its own.

    python -m peers.publisher MODULE RATE SEED KEY …

Which key comes next is chance, and half of the time the same one again, as with things that happen
to one account in a row. A key's sequence numbers count from 0. Each message is published until it
is confirmed, under one id, before the next: so the order of publishing is known.
"""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

from peers.history import CONFIRMED, Writer

_log = logging.getLogger("peers.publisher")
_PAUSE_AFTER_FAILURE = 0.2
_ANOTHER_KEY = 0.5


def main() -> None:
    """Publish."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    module, rate, seed, *keys = sys.argv[1:]
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    history = Writer(Path(os.environ["BOOKINGS"]))
    publish = import_module(module).publish
    turn = time.monotonic()
    for key, sequence in stream(random.Random(seed), keys):
        # What an outage kept it from publishing is not made up for: the rate is never higher.
        turn = max(turn + 1 / float(rate), time.monotonic())
        stopped.wait(turn - time.monotonic())
        message = f"{key}-{sequence}", key, sequence
        while not stopped.is_set():
            try:
                publish(*message)
            except Exception as error:  # noqa: BLE001 - each client has its own; all mean: again
                _log.warning("%s: %r", message[0], error)
                stopped.wait(_PAUSE_AFTER_FAILURE)
            else:
                history.note(CONFIRMED, *message)
                break
        if stopped.is_set():
            break
    # Not by the clients' own ends, of which some wait for threads.
    os._exit(0)


def stream(chance: random.Random, keys: Sequence[str]) -> Iterator[tuple[str, int]]:
    """Yield keys with their next sequence numbers, without an end."""
    following = dict.fromkeys(keys, 0)
    key = chance.choice(keys)
    while True:
        yield key, following[key]
        following[key] += 1
        if chance.random() < _ANOTHER_KEY:
            key = chance.choice(keys)


if __name__ == "__main__":
    main()

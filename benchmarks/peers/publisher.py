"""A process that publishes at a steady rate until SIGTERM; its parent says where in argv.

    python -m peers.publisher MODULE RATE KEYS

The keys have their turns, and their sequence numbers count from 0. Each message is published
until it is confirmed, under one id, before the next: so the order of publishing is known.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from importlib import import_module
from itertools import count
from pathlib import Path

from peers.history import CONFIRMED, Writer

_log = logging.getLogger("peers.publisher")
_PAUSE_AFTER_FAILURE = 0.2


def main() -> None:
    """Publish."""
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    module, rate, keys = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    history = Writer(Path(os.environ["BOOKINGS"]))
    publish = import_module(module).publish
    turn = time.monotonic()
    for number in count():
        # What an outage kept it from publishing is not made up for: the rate is never higher.
        turn = max(turn + 1 / rate, time.monotonic())
        stopped.wait(turn - time.monotonic())
        message = f"{number % keys}-{number // keys}", f"key-{number % keys}", number // keys
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


if __name__ == "__main__":
    main()

"""Publishes a load by the publisher of an app, in a process of its own; prints what it took.

    python -m speed.fill MODULE

``SPEED_LOAD`` is the load. Where ``SPEED_SENT`` names a file, it notes there when each event left.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import import_module
from pathlib import Path

from speed.load import Load
from speed.sharedmemory import Moments
from speed.stream import Stream


def main() -> None:
    """Publish."""
    sent = os.environ.get("SPEED_SENT")
    stream = Stream(Load.read(os.environ["SPEED_LOAD"]), sent=Moments(Path(sent)) if sent else None)
    import_module(sys.argv[1]).publish_all(stream)
    seconds = time.monotonic() - stream.began
    cpu = time.process_time() - stream.began_cpu
    print(json.dumps({"events": stream.counted, "seconds": seconds, "cpu": cpu}), flush=True)
    # Not by the clients' own ends, of which some wait for threads.
    os._exit(0)


if __name__ == "__main__":
    main()

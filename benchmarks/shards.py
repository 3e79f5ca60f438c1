"""Throughput by the number of shards: the scenario ``shards`` of ``speed``, which needs no peers.

    .venv/bin/python benchmarks/shards.py [--events 40000] [--rounds 3] [--only '8 *' '256 *']

In every round each number of shards has its turn on the same servers, in a virtual host and a
database of its own, so that a noisy machine shows in all of them; what counts is the ratio.
"""

from __future__ import annotations

import sys
from pathlib import Path

_HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(_HERE), str(_HERE.parent / "tests")]

from speed.__main__ import main

if __name__ == "__main__":
    main(["shards", *sys.argv[1:]])

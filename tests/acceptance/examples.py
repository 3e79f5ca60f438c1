"""Runs a program of the examples as its reader would, and gives back what it said."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PATIENCE = 110.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a program ended, and everything that it printed."""

    exit_code: int
    output: str


def run(
    module: str,
    *arguments: str,
    broker: str = "",
    dedup: str = "",
    variables: Mapping[str, str] | None = None,
    folder: Path = ROOT,
) -> Outcome:
    """Run ``python -m MODULE`` to its end. Without servers it uses its own SQLite files."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("QWORKER_")}
    environ |= {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **(variables or {})}
    environ |= {"QWORKER_BROKER_URL": broker} if broker else {}
    environ |= {"QWORKER_DEDUP_URL": dedup} if dedup else {}
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output, _ = process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)  # it ends what it started
        output, _ = process.communicate(timeout=30)
        raise AssertionError(f"not done within {PATIENCE:g} s:\n{output}") from None
    return Outcome(process.returncode, output)

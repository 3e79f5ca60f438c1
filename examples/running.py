"""What the stories of the examples have in common: services that run, and waiting for something."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from worker.demo.service import Service, clean_environment

ROOT = Path(__file__).resolve().parents[1]
BROKER, DEDUP = "QWORKER_BROKER_URL", "QWORKER_DEDUP_URL"


@contextmanager
def story_folder() -> Iterator[Path]:
    """Give a folder for databases and logs; it stays where something went wrong."""
    folder = Path(tempfile.mkdtemp(prefix="qworker-example-"))
    try:
        yield folder
    except BaseException:
        print(f"databases and logs are in {folder}")
        raise
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()


def servers(folder: Path) -> dict[str, str]:
    """Return where broker and ids are: as the environment says, else in a file of the folder."""
    broker = os.environ.get(BROKER) or f"sqlite:///{folder / 'broker.db'}"
    found = {BROKER: broker}
    if dedup := os.environ.get(DEDUP):
        found[DEDUP] = dedup
    return found


def service(app: str, folder: Path, environ: Mapping[str, str], *options: str) -> Service:
    """Return ``qworker start --app examples.APP``, not started yet."""
    found = {"PYTHONPATH": str(ROOT), **servers(folder), **environ}
    return Service(f"examples.{app}", folder, options, found)


def start(*services: Service) -> None:
    """Start services and wait until all their processes consume."""
    for each in services:
        each.start()
    for each in services:
        until(partial(is_up_or_dead, each), f"{each.app} is ready")
        if not each.running:
            raise SystemExit("\n".join([f"{each.app} ended by itself:", *each.log_tail()]))


def is_up_or_dead(started: Service) -> bool:
    return started.ready() or not started.running


@contextmanager
def program(
    folder: Path, name: str, *arguments: str, environ: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``python ARGUMENTS`` while the block runs; its output goes to ``folder/NAME.log``."""
    found = {**clean_environment(), "PYTHONPATH": str(ROOT), **servers(folder), **environ}
    with (
        (folder / f"{name}.log").open("ab") as log,
        subprocess.Popen(  # noqa: S603 - our own programs
            [sys.executable, *arguments],
            cwd=folder,
            env=found,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,  # Ctrl-C is for the one who watches
        ) as process,
    ):
        try:
            yield process
        finally:
            process.terminate()


def until_listening(process: subprocess.Popen[bytes], port: int, name: str) -> None:
    """Wait until a program takes connections."""
    until(lambda: listens(port) or process.poll() is not None, f"{name} listens")
    if process.poll() is not None:
        raise SystemExit(f"{name} ended by itself, with exit code {process.returncode}")


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def until(condition: Callable[[], object], what: str, seconds: float = 60.0) -> None:
    """Wait until ``condition`` holds; end the story where that takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {seconds:g} s: {what}")
        time.sleep(0.05)

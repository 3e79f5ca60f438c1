"""What the tests of replays have beside a service: the archive, and commands that can be killed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from acceptance.conftest import Place
from acceptance.running import COMMAND, PATIENCE, Service
from waiting import until
from worker.archive.journal import Journal, Replay, State
from worker.archive.open import open_archive

ARCHIVE = "worker.archive.service"
Serve = Callable[..., Service]


def archive_url_of(place: Place, request: pytest.FixtureRequest, folder: Path) -> str:
    """Return where the archive is: PostgreSQL beside servers, SQLite beside SQLite."""
    if place.broker.startswith("sqlite:"):
        return f"sqlite:///{folder}/archive.db"
    found: str = request.getfixturevalue("postgres_url")
    return found


def archiving(serve: Serve, place: Place, url: str, **settings: Any) -> Service:
    """Return the archive's service, not started yet."""
    service = serve(place, "", folder="archive", archive_url=url, **settings)
    service.app = ARCHIVE
    return service


class Command:
    """A ``qworker replay`` beside a service, in the service's place."""

    def __init__(self, service: Service, url: str) -> None:
        self._service = service
        self._environ = {**service.environ, "QWORKER_ARCHIVE_URL": url}
        self._process: subprocess.Popen[bytes] | None = None
        self._url = url
        self._starts = 0

    def begin(self, *arguments: str) -> None:
        """Begin it."""
        self._starts += 1
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                [*COMMAND, "replay", "--app", self._service.app, *arguments],
                cwd=self._service.folder,
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def run(self, *arguments: str, code: int = 0) -> str:
        """Run it to its end; return what it said."""
        self.begin(*arguments)
        assert self.ended() == code, self.said
        return self.said

    def ended(self) -> int:
        """Wait for its end; return the exit code."""
        assert self._process is not None
        return self._process.wait(PATIENCE)

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Kill it, and wait until it is gone."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait(10)

    @property
    def log_file(self) -> Path:
        """What the last start said."""
        return self._service.folder / f"replay.{self._starts}"

    @property
    def said(self) -> str:
        """What the last start said, as text."""
        return self.log_file.read_text()

    def replay(self, replay_id: str) -> Replay:
        """Return how far a replay is, by the archive."""
        with closing(open_archive(self._url)) as archive:
            return Journal(archive, lambda: 0.0).find(replay_id)[1]

    def is_done(self, replay_id: str) -> bool:
        """Tell whether all is sent."""
        return self.replay(replay_id).state is State.DONE

    def has_sent(self, replay_id: str, number: int) -> bool:
        """Tell whether so many are known to be sent."""
        with suppress(Exception):  # it may not be there yet
            return self.replay(replay_id).sent >= number
        return False

    def wait_sent(self, replay_id: str, number: int) -> None:
        """Wait until so many are known to be sent, or it has ended."""
        until(
            lambda: self.has_sent(replay_id, number) or not self.running,
            PATIENCE,
            f"{number} are sent",
        )

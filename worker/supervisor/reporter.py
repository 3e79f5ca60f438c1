"""Tells the world how the service goes: probes, status file, systemd. Never fails for it."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from worker.errors import QworkerError
from worker.supervisor.status import StatusFile
from worker.supervisor.systemd import from_environment

if TYPE_CHECKING:
    from worker.supervisor.control import Terms
    from worker.supervisor.probes import Probes
    from worker.supervisor.status import Status

logger = logging.getLogger("worker.supervisor")

#: Seconds between two statuses when nothing changed.
_INTERVAL = 1.0
#: Seconds between two files that say the same: a new file each second was half of what a supervisor
#: costs that has nothing to do. Readers doubt the one that is older than ``STALE_AFTER``.
_SELDOM = 4.0


class Reporter:
    """Publishes one status after the other, to whoever asked for it."""

    def __init__(self) -> None:
        self.systemd = from_environment()
        self._status: Status | None = None
        self._probes: Probes | None = None
        self._file: StatusFile | None = None
        self._filed: Status | None = None
        self._alive_at = float("-inf")
        #: Seconds within which :meth:`tell` wants to be called again.
        self.interval = min(_INTERVAL, self.systemd.interval or _INTERVAL)

    def open(self, terms: Terms, status: Status) -> None:
        """Begin, now that the settings are known. Raises ConfigurationError for a wrong address."""
        self._status = status
        if terms.http:
            from worker.supervisor.probes import Probes  # noqa: PLC0415 - some megabytes, for these alone

            self._probes = Probes(terms.http, self._latest)
            logger.info("probes and metrics on http://%s", self._probes.address)
        try:
            self._file = StatusFile(terms.service)
        except (QworkerError, OSError) as error:
            logger.warning("no status file, so `qworker check --live` knows nothing: %s", error)

    def tell(self, status: Status) -> None:
        """Publish ``status`` if it says something new, or a second has passed since the last."""
        last = self._status
        news = (status.text, status.live, status.ready)
        if last is None or (
            status.at - last.at < _INTERVAL and news == (last.text, last.live, last.ready)
        ):
            return
        self._status = replace(status, http=self._probes.address if self._probes else "")
        self.systemd.status(status.text)
        filed = self._filed
        if (
            filed is None
            or status.at - filed.at >= _SELDOM
            or not filed.says_the_same(self._status)
        ):
            self._write(self._status)

    def _write(self, status: Status) -> None:
        self._filed = status
        if self._file is not None:
            try:
                self._file.write(status)
            except OSError as error:
                logger.warning("cannot write %s any more: %s", self._file.path, error)
                self._file.remove()
                self._file = None

    def alive(self, now: float) -> None:
        """Tell systemd that everything is well, as often as it wants to hear it."""
        interval = self.systemd.interval
        if interval is not None and now - self._alive_at >= interval:
            self._alive_at = now
            self.systemd.alive()

    def close(self) -> None:
        """Stop serving, and remove the status file."""
        if self._probes is not None:
            self._probes.close()
        if self._file is not None:
            self._file.remove()

    def _latest(self) -> Status:
        if self._status is None:
            raise RuntimeError("asked before the first status")
        return self._status

"""One lease that one process has: whoever has it is the only one that does some job of a service.

A thread renews it, or asks for it until it is free. The lease is trusted until the time that its
last renewal gave it (``leases/base.py``); so a process that was paused, or cut off from the store,
does not take itself for the owner when it goes on.
"""

from __future__ import annotations

import logging
import secrets
import threading
from typing import TYPE_CHECKING, Self

from worker.errors import QworkerError
from worker.leases.base import STEP_SHARE, Held, Sync, lease_clock, trusted_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.leases.base import LeaseStore

logger = logging.getLogger("worker.leases")

_MEMBER_BYTES = 8
#: Seconds that the end waits for a store that hangs: the lease then expires by itself.
_FAREWELL = 3.0


class SoleLease:
    """Keeps the lease ``name``. A context manager, used once; ``is_mine`` is for any thread.

    ``open_store`` is called when the block is entered, and raises what it raises there;
    ``service`` is what the store keeps the lease under, and ``ttl`` its length in seconds.
    """

    def __init__(
        self, open_store: Callable[[], LeaseStore], service: str, name: str, ttl: float
    ) -> None:
        self._open = open_store
        self._service = service
        self._name = name
        self._ttl = ttl
        self._member = secrets.token_hex(_MEMBER_BYTES)
        self._epoch: int | None = None
        self._trusted_until = float("-inf")
        self._ends = threading.Event()
        self._away = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        """Connect, and ask for the lease for the first time."""
        store = self._open()
        try:
            self.turn(store)
        except BaseException:
            store.close()
            raise
        self._thread = threading.Thread(
            target=self._keep, args=(store,), name=f"qworker-lease-{self._name}", daemon=True
        )
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Give the lease back."""
        self._ends.set()
        if self._thread is not None:
            self._thread.join(_FAREWELL)

    def is_mine(self) -> bool:
        """Tell whether this process has the lease, and may begin something by it."""
        return not self._ends.is_set() and lease_clock() <= self._trusted_until

    def turn(self, store: LeaseStore) -> None:
        """Renew the lease or ask for it, once. Raises what the store raises."""
        asked_at = lease_clock()
        mine = self._epoch is not None and asked_at <= self._trusted_until
        renew = (Held(self._name, self._epoch),) if mine and self._epoch is not None else ()
        acquire = () if renew else (self._name,)
        view = store.sync(self._service, Sync(self._member, renew=renew, acquire=acquire))
        lease = view.leases.get(self._name)
        was_mine = self._epoch is not None
        if lease is not None and lease.owner == self._member:
            self._epoch = lease.epoch
            self._trusted_until = trusted_until(asked_at, self._ttl)
        else:
            self._epoch, self._trusted_until = None, float("-inf")
        if was_mine != (self._epoch is not None):
            told = "has the lease" if self._epoch is not None else "lost the lease"
            logger.info("this process %s %s", told, self._service)

    def _keep(self, store: LeaseStore) -> None:
        while not self._ends.wait(self._ttl / STEP_SHARE):
            try:
                self.turn(store)
            except QworkerError as error:
                if not self._away:
                    logger.warning("the lease store is away: %s", error)
                self._away = True
            except Exception:  # whoever waits for the lease must not wait for a thread that is gone
                logger.exception("the talk with the lease store failed")
            else:
                if self._away:
                    logger.info("the lease store is back")
                self._away = False
        try:
            held = () if self._epoch is None else (Held(self._name, self._epoch),)
            store.sync(self._service, Sync(self._member, release=held, leaving=True))
        except QworkerError as error:
            logger.warning("the lease %s expires by itself: %s", self._name, error)
        finally:
            store.close()

"""The lease of a relay, which who has no database does not keep from the others.

The lease is renewed by a thread that knows nothing of the rows. So a relay whose database does not
answer, or does not answer it, would have it for ever. After some time without any answer it gives
the lease back, and asks for it again once there is one.

Where the database answers, and does not do one thing (a role may not DELETE, say), the lease stays
where it is: for the others it would not do that either, and each would send the same rows again.
"""

from __future__ import annotations

import logging
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any, Self

from worker import QworkerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from contrib.outbox.answering import Answering
    from worker import App

logger = logging.getLogger("worker.outbox")

_LEASE = "outbox"
#: Seconds between two looks at the database's silence.
_LOOK = 0.2
#: Seconds that the end waits for a lease store that hangs.
_FAREWELL = 2.0


class Holding:
    """A lease of ``app``, while the database of ``store`` answers. A context manager, used once.

    It is given back where nothing has been answered for ``limit`` seconds. ``name`` is that of the
    outbox, where the service has several. Entering the block raises what ``app.lease`` raises;
    ``is_mine`` is for any thread.
    """

    def __init__(
        self,
        app: App,
        store: Answering,
        limit: float,
        *,
        name: str = "",
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._app = app
        self._store = store
        #: Its name, in the lease store of the service.
        self.lease_name = f"{_LEASE}:{name}" if name else _LEASE
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._lease: Any = None
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="qworker-outbox-lease", daemon=True)
        #: What kept it from asking for the lease again; told once.
        self._trouble = ""

    def __enter__(self) -> Self:
        """Ask for the lease for the first time."""
        self._take()
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Give the lease back."""
        self._ends.set()
        self._thread.join(_FAREWELL)
        self._give_back()

    def is_mine(self) -> bool:
        """Tell whether this process has the lease, and may begin something by it."""
        lease = self._lease
        return lease is not None and bool(lease.is_mine())

    def tend(self) -> None:
        """Give the lease back, or ask for it again, where it is time to."""
        since = self._store.silent_since
        if self._lease is None:
            if since is None:
                self._ask_again()
        elif since is not None and self._clock() - since >= self._limit:
            logger.warning(
                "the database of the outbox has not answered for %.0f seconds: until it does, the"
                " lease is left to other relays",
                self._clock() - since,
            )
            self._give_back()

    def _keep(self) -> None:
        while not self._ends.wait(_LOOK):
            self.tend()

    def _ask_again(self) -> None:
        try:
            self._take()
        except QworkerError as error:
            if str(error) != self._trouble:
                logger.warning("the database answers again, but the lease store is away: %s", error)
            self._trouble = str(error)
        except Exception:  # the next look tries again; a thread that is gone would not
            logger.exception("the talk with the lease store failed")
        else:
            self._trouble = ""

    def _take(self) -> None:
        lease = self._app.lease(self.lease_name)
        lease.__enter__()
        with self._lock:
            if not self._ends.is_set():
                self._lease = lease
                return
        lease.__exit__(None, None, None)  # the end has not waited for it

    def _give_back(self) -> None:
        with self._lock:
            lease, self._lease = self._lease, None
        if lease is not None:
            lease.__exit__(None, None, None)

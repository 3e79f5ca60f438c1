"""The app's own start and end in one process, around everything that its handlers do."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from worker.errors import ConfigurationError, Unreachable

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from worker.app import App

logger = logging.getLogger("worker")


class Lifespan:
    """Enters and leaves what ``app.lifespan`` registered; nothing, where nothing was."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._manager: AbstractContextManager[Any] | None = None

    def enter(self) -> Any:
        """Return the handlers' ``context.state``. Raises ConfigurationError where it raises.

        That a server is away (Unreachable) is passed on, and so is a ConfigurationError of its own.
        """
        if self._app.lifespan_manager is None:
            return None
        try:
            manager = self._app.lifespan_manager()
            enter = getattr(manager, "__enter__", _not_a_manager)
            state = enter()
        except (Unreachable, ConfigurationError):  # each says what it is, and has its exit code
            raise
        except Exception as error:
            raise ConfigurationError(
                f"the lifespan of App({self._app.name!r}) raised {type(error).__name__}: {error}"
            ) from error
        self._manager = manager
        return state

    def leave(self) -> None:
        """End it. All is settled by then, so what it raises is logged and changes nothing."""
        manager, self._manager = self._manager, None
        if manager is None:
            return
        try:
            manager.__exit__(None, None, None)
        except Exception:
            logger.exception("the lifespan of App(%r) raised at its end", self._app.name)


def _not_a_manager() -> None:
    raise TypeError("it has no 'yield', and returned no context manager")

"""How a function of the user's is called: in which pool it runs, and with which arguments."""

from __future__ import annotations

import inspect
from typing import Any

from worker.errors import ConfigurationError

_WITH_CONTEXT = 2  # arguments: event and context


def is_async(call: Any) -> bool:
    """Tell whether calling it gives something to await."""
    return inspect.iscoroutinefunction(call) or inspect.iscoroutinefunction(
        getattr(call, "__call__", None)  # noqa: B004 - an object whose __call__ is async
    )


def takes_context(call: Any, told: str, *, bound: bool) -> bool:
    """Tell whether a handler takes (event, context) rather than (event).

    Raises ConfigurationError, which begins with ``told``, where it takes neither.
    """
    try:
        parameters = list(inspect.signature(call).parameters.values())
    except (ValueError, TypeError):
        return True
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if any(p.kind is p.VAR_POSITIONAL for p in parameters):
        return True
    if not bound:
        positional = positional[1:]  # self
    needed = [p for p in positional if p.default is p.empty]
    keywords = [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if not positional or len(needed) > _WITH_CONTEXT or keywords:
        raise ConfigurationError(f"{told}: a handler takes (event) or (event, context)")
    if len(needed) == _WITH_CONTEXT:
        return True
    return len(positional) > 1 and positional[1].name in ("ctx", "context")

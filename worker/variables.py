"""Which environment variables look like settings and are none. Pure."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

PREFIX = "QWORKER_"

#: No settings: where the status file and the outbox are, and what the demonstration and the tests
#: tell themselves.
_BESIDE = frozenset(("RUN_DIR", "OUTBOX_URL", "DEMO_ONCE", "DEMO_STATE", "HISTORY_DATA", "FUZZ"))

#: What Kubernetes puts into every container where a Service is called ``qworker`` or
#: ``qworker-…`` (its documentation, "Service", "Environment variables").
_KUBERNETES = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?$")


def unknown_variables(environ: Mapping[str, str], known: Iterable[str]) -> list[str]:
    """Return a line for each variable of ours in ``environ`` that is none of the ``known``.

    An empty one says nothing, whatever its name.
    """
    names = {variable.removeprefix(PREFIX) for variable in known}
    mistakes = []
    for variable in sorted(name for name, value in environ.items() if value):
        name = variable.removeprefix(PREFIX)
        if name == variable or name in names or name in _BESIDE or _KUBERNETES.search(variable):
            continue
        near = get_close_matches(name.upper(), names, n=1)
        hint = f"did you mean {PREFIX}{near[0]}?" if near else f"{PREFIX}* is for settings"
        mistakes.append(f"the environment: there is no setting {variable}; {hint}")
    return mistakes

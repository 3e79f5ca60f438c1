"""From what ``--dedup`` says to an open store."""

from __future__ import annotations

import importlib
import re
from difflib import get_close_matches
from importlib.metadata import entry_points
from inspect import getattr_static
from types import FunctionType
from typing import TYPE_CHECKING, cast

from worker.config import mask_url
from worker.dedup.base import DedupStore, StoreOptions
from worker.dedup.memory import MemoryStore
from worker.dedup.redis import RedisStore
from worker.dedup.sqlite import SqliteStore
from worker.errors import ConfigurationError, DedupUnavailable

if TYPE_CHECKING:
    from worker.config import Settings

#: Other distributions register the class of their store here, under its URL scheme.
ENTRY_POINTS = "qworker.dedup"

_BUILT_IN: dict[str, type[DedupStore]] = {
    "memory": MemoryStore,
    "sqlite": SqliteStore,
    "redis": RedisStore,
    "rediss": RedisStore,
    "unix": RedisStore,
}
_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*)://")
_CLASS = re.compile(r"(?P<module>[^\W\d]\w*(?:\.\w+)*):(?P<name>[^\W\d]\w*)(?:\?.*)?", re.DOTALL)
_METHODS = tuple(
    name
    for name, member in vars(DedupStore).items()
    if not name.startswith("_") and isinstance(member, FunctionType | classmethod)
)
_FACTS = ("tier", "shared")


def open_settled(settings: Settings) -> DedupStore:
    """Open the store that the settings name, as they say. Raises as :func:`open_store` does."""
    options = StoreOptions(settings.claim_ttl, settings.retention, settings.dedup_timeout)
    try:
        return open_store(settings.dedup_url, options)
    except (ConfigurationError, DedupUnavailable) as error:
        if settings.dedup:
            raise
        hint = f"--dedup is not set, and this goes with the broker {mask_url(settings.broker)}"
        raise type(error)(f"{error}; {hint}") from None


def open_store(url: str, options: StoreOptions) -> DedupStore:
    """Open the store that ``url`` names.

    ``memory://NAME``, ``sqlite:///file``, ``redis(s)://…``, ``unix:///socket``, the scheme of an
    entry point of the group ``qworker.dedup``, or ``package.module:Class``, which may be followed
    by ``?`` and whatever the class makes of it. The class is given the whole text.

    Raises ConfigurationError where the text is wrong or the class is no store, and
    DedupUnavailable where the store is not there now.
    """
    store_class = _find(url)
    shown = mask_url(url)
    for name in _METHODS:
        found = getattr_static(store_class, name, None)
        # One that was only inherited from the protocol does nothing.
        if found is None or found is getattr_static(DedupStore, name):
            raise ConfigurationError(
                f"dedup store {shown}: the class {store_class.__qualname__} has no method"
                f" {name!r}; see worker.dedup.base.DedupStore for what it must do"
            )
    store = store_class.open(url, options)
    for name in _FACTS:
        if not hasattr(store, name):
            store.close()
            raise ConfigurationError(
                f"dedup store {shown}: a {store_class.__qualname__} has no attribute {name!r};"
                " see worker.dedup.base.DedupStore for what it must tell"
            )
    return store


def _find(url: str) -> type[DedupStore]:
    scheme = _SCHEME.match(url)
    if scheme is not None:
        return _by_scheme(scheme["scheme"].lower(), url)
    named = _CLASS.fullmatch(url)
    if named is not None:
        return _by_name(named["module"], named["name"], url)
    _, at, host = url.rpartition("@")  # a URL with a slash missing has a password too
    shown = mask_url(f"***@{host}" if at else url)
    raise ConfigurationError(
        f"dedup store {shown!r}: neither a URL ({_known_schemes()}) nor the name of a"
        " class (package.module:Class)"
    )


def _by_scheme(scheme: str, url: str) -> type[DedupStore]:
    if scheme in _BUILT_IN:
        return _BUILT_IN[scheme]
    for entry in entry_points(group=ENTRY_POINTS, name=scheme):
        return _by_name(entry.module, entry.attr, url)
    others = [entry.name for entry in entry_points(group=ENTRY_POINTS)]
    near = get_close_matches(scheme, [*_BUILT_IN, *others], 1)
    hint = f"did you mean {near[0]}://?" if near else f"there are {_known_schemes(others)}"
    raise ConfigurationError(f"dedup URL {mask_url(url)}: no store is called {scheme}; {hint}")


def _known_schemes(others: list[str] | None = None) -> str:
    return ", ".join(f"{scheme}://" for scheme in [*_BUILT_IN, *(others or ())])


def _by_name(module_name: str, name: str, url: str) -> type[DedupStore]:
    where = f"dedup store {mask_url(url)}"
    try:
        found = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigurationError(
            f"{where}: the module {module_name} cannot be imported: {error}"
        ) from error
    store_class = getattr(found, name, None)
    if store_class is None:
        near = get_close_matches(name, vars(found), 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ConfigurationError(f"{where}: the module {module_name} has no {name}{hint}")
    if not isinstance(store_class, type):
        raise ConfigurationError(f"{where}: {name} is not a class")
    return cast("type[DedupStore]", store_class)

"""From what an option says (a URL, or a class) to an open store: built in, registered, or named."""

from __future__ import annotations

import importlib
import re
from dataclasses import dataclass
from difflib import get_close_matches
from importlib.metadata import entry_points
from inspect import getattr_static
from types import FunctionType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from worker.config import mask_url
from worker.errors import ConfigurationError
from worker.extras import how_to_install

if TYPE_CHECKING:
    from collections.abc import Mapping

_SCHEME = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]*)://")
_CLASS = re.compile(r"(?P<module>[^\W\d]\w*(?:\.\w+)*):(?P<name>[^\W\d]\w*)(?:\?.*)?", re.DOTALL)

S = TypeVar("S")


class Later(NamedTuple):
    """A store whose module is imported when a URL asks for it: its client takes long to load."""

    #: Its module and its class.
    module: str
    name: str
    #: The extra of this distribution that has to be installed; empty: none.
    extra: str = ""


@dataclass(frozen=True, slots=True)
class Catalog(Generic[S]):
    """The stores of one kind, and where others of it are found."""

    #: As errors call it, and its URL: ``dedup``.
    kind: str
    #: What every store of the kind implements.
    protocol: type[Any]
    #: By the scheme of their URLs.
    built_in: Mapping[str, type[S] | Later]
    #: Other distributions register the class of their store in this group of entry points, under
    #: its URL scheme.
    group: str
    #: Attributes that every store has.
    facts: tuple[str, ...]

    def open(self, url: str, options: object) -> S:
        """Open the store that ``url`` names.

        ``memory://NAME``, ``sqlite:///file``, ``redis(s)://…``, ``unix:///socket``, the scheme of
        an entry point, or ``package.module:Class``, which may be followed by ``?`` and whatever the
        class makes of it. The class is given the whole text.

        Raises ConfigurationError where the text is wrong or the class is no store, and what the
        store raises where it is not there now.
        """
        store_class: Any = self._find(url)
        where = f"{self.kind} store {mask_url(url)}"
        protocol = f"{self.protocol.__module__}.{self.protocol.__name__}"
        for name, member in vars(self.protocol).items():
            if name.startswith("_") or not isinstance(member, FunctionType | classmethod):
                continue
            found = getattr_static(store_class, name, None)
            # One that was only inherited from the protocol does nothing.
            if found is None or found is member:
                raise ConfigurationError(
                    f"{where}: the class {store_class.__qualname__} has no method {name!r}; see"
                    f" {protocol} for what it must do"
                )
        store: S = store_class.open(url, options)
        for name in self.facts:
            if not hasattr(store, name):
                store.close()  # type: ignore[attr-defined] # every protocol has it
                raise ConfigurationError(
                    f"{where}: a {store_class.__qualname__} has no attribute {name!r}; see"
                    f" {protocol} for what it must tell"
                )
        return store

    def _find(self, url: str) -> type[Any]:
        scheme = _SCHEME.match(url)
        if scheme is not None:
            return self._by_scheme(scheme["scheme"].lower(), url)
        named = _CLASS.fullmatch(url)
        if named is not None:
            return self._by_name(named["module"], named["name"], url)
        _, at, host = url.rpartition("@")  # a URL with a slash missing has a password too
        shown = mask_url(f"***@{host}" if at else url)
        raise ConfigurationError(
            f"{self.kind} store {shown!r}: neither a URL ({self._known_schemes()}) nor the name of"
            " a class (package.module:Class)"
        )

    def _by_scheme(self, scheme: str, url: str) -> type[Any]:
        built_in = self.built_in.get(scheme)
        if isinstance(built_in, Later):
            module, name, extra = built_in
            try:
                store_class: type[Any] = getattr(importlib.import_module(module), name)
            except ImportError as error:
                if not extra:
                    raise
                raise ConfigurationError(
                    f"{self.kind} URL {mask_url(url)}: {scheme}:// needs the extra {extra!r}:"
                    f" {how_to_install(extra)} ({error})"
                ) from error
            return store_class
        if built_in is not None:
            return built_in
        for entry in entry_points(group=self.group, name=scheme):
            return self._by_name(entry.module, entry.attr, url)
        others = tuple(entry.name for entry in entry_points(group=self.group))
        near = get_close_matches(scheme, [*self.built_in, *others], 1)
        known = self._known_schemes(others)
        hint = f"did you mean {near[0]}://?" if near else f"there are {known}"
        raise ConfigurationError(
            f"{self.kind} URL {mask_url(url)}: no store is called {scheme}; {hint}"
        )

    def _known_schemes(self, others: tuple[str, ...] = ()) -> str:
        return ", ".join(f"{scheme}://" for scheme in (*self.built_in, *others))

    def _by_name(self, module_name: str, name: str, url: str) -> type[Any]:
        where = f"{self.kind} store {mask_url(url)}"
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
        return store_class

"""The hosts of a PostgreSQL URL, with their addresses, as libpq is told of them.

psycopg would look names up by itself, and has no limit for that.
"""

from __future__ import annotations

import os
from ipaddress import ip_address
from typing import TYPE_CHECKING

from worker.stores.resolving import Names

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


class Hosts:
    """Of one URL: ``said`` is what that says."""

    def __init__(self, said: Mapping[str, Any]) -> None:
        hosts, addresses, ports = (
            str(said.get(name) or os.environ.get(f"PG{name.upper()}", "")).split(",")
            for name in ("host", "hostaddr", "port")
        )
        if len(ports) == 1:
            ports *= len(hosts)
        self._names = Names()
        #: None where libpq needs no addresses, or refuses what is said.
        self._places: list[tuple[str, str]] | None = None
        if addresses == [""] and len(ports) == len(hosts) and any(map(_is_name, hosts)):
            self._places = list(zip(hosts, ports, strict=True))

    def parameters(self, seconds: float) -> dict[str, str]:
        """Return what a connection needs besides; raises OSError where none is found in time.

        The names stay with their addresses, because certificates are checked by them.
        """
        if self._places is None:
            return {}
        found = self._names.find([host for host, _ in self._places if _is_name(host)], seconds)
        known = [
            (host, address, port)
            for host, port in self._places
            for address in (found.get(host, []) if _is_name(host) else [_address(host)])
        ]
        hosts, addresses, ports = (",".join(column) for column in zip(*known, strict=True))
        return {"host": hosts, "hostaddr": addresses, "port": ports}


def _is_name(host: str) -> bool:
    return host != "" and not host.startswith("/") and not _address(host)


def _address(host: str) -> str:
    """Return the host if it is an address, and else nothing: it is the folder of a socket, say."""
    try:
        ip_address(host)
    except ValueError:
        return ""
    return host

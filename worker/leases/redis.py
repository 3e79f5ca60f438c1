"""Leases in Redis, for supervisors on any number of machines: one script call a sync.

The script (``redis.lua``) holds the rules and tells the keys, all of which carry the service as
their hash tag: in a cluster a service lives on one server.

A server that was started lately may have forgotten leases whose holders still trust them. For the
length of a lease it grants nothing new, and whoever owns something renews it meanwhile. One that
was emptied while it ran looks like a new one here; members find that out themselves
(``worker.sharding.ownership``). One that drops keys as it likes is refused.
"""

from __future__ import annotations

import logging
from hashlib import sha1
from importlib import resources
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import ResponseError

from worker.errors import LeasesUnavailable, StoreCorrupt
from worker.leases.base import Document, Lease, LeaseStore, View, check_text
from worker.stores.redis import Kind, Servers, checked, encoded

if TYPE_CHECKING:
    from collections.abc import Callable

    from worker.leases.base import LeaseOptions, Sync

logger = logging.getLogger("worker.leases")

_Value = TypeVar("_Value")

_KIND = Kind("lease", "qw:", LeasesUnavailable, "leases", "two members consume the same shard")
_SCRIPT = resources.files("worker.leases").joinpath("redis.lua").read_bytes()
_SCRIPT_SHA = sha1(_SCRIPT).hexdigest()  # noqa: S324 - the name that Redis gives to a script
#: What each of a service's keys is for, and their last parts.
_CLOCK, _MEMBERS, _LEASES, _DOCUMENTS = _KINDS = "clock", "members", "leases", "documents"
#: What the script says before the kind and the name of what it cannot read.
_UNREADABLE = "UNREADABLE "


class RedisLeases(LeaseStore):
    """Leases of ``redis(s)://…``; as many machines see them as reach the server.

    A failover to a replica may lose the last calls; then two members may own a lease until the
    next renewal of the first, each with a fence of its own.
    """

    reach = "redis: for every supervisor that reaches the server"

    def __init__(self, url: str, options: LeaseOptions) -> None:
        self._servers = Servers(url, _KIND, options.timeout, _SCRIPT)
        self._ttl = round(options.ttl * 1000)
        settles = self._servers.options.get("settle", "1") == "1"
        #: How long a server must have been up before it grants a lease, in milliseconds.
        self._settle = self._ttl + 1000 if settles else 0

    @classmethod
    def open(cls, url: str, options: LeaseOptions) -> RedisLeases:
        """Open ``redis(s)://[[user]:password@]host[:port][/db]`` or ``unix:///path[?db=0]``.

        Options: ``prefix`` of every key, ``cluster=1``, ``settle=0`` (grant leases as soon as the
        server is up, because it never forgets), ``client_name``, and redis-py's ``ssl_…`` as for
        the dedup store.
        """
        store = cls(url, options)
        with store._servers.talking(opening=True):
            store._servers.check_cluster()
            for warning in store._servers.check_policy():
                logger.warning("%s", warning)
            store._ask("-", "look")  # tells whether this user may run scripts
        return store

    def sync(self, service: str, sync: Sync) -> View:
        """Apply ``sync`` and return what is known after it."""
        check_text(sync.facts, "a member's facts")
        held = [part for name, epoch in (*sync.release, *sync.renew) for part in (name, epoch)]
        counts = len(sync.release), len(sync.renew), len(sync.acquire)
        says = (sync.member, sync.facts, int(sync.leaving), *counts, *held, *sync.acquire)
        return self._view(service, self._run(service, "sync", *says))

    def look(self, service: str) -> View:
        """Return what is known."""
        return self._view(service, self._run(service, "look"))

    def write(self, service: str, name: str, version: int, text: str) -> bool:
        """Change a document by compare-and-set."""
        check_text(text, f"the document {name}")
        return bool(self._run(service, "write", name, version, text))

    def services(self) -> list[str]:
        """Return the services that are known; of a cluster none, since that asks all its servers.

        Goes through all keys of the server, a thousand at a time.
        """
        if self._servers.cluster:
            return []
        begin, end = self._key("\0", _DOCUMENTS).split("\0")
        found, cursor = [], b"0"
        with self._servers.talking():
            while True:
                call = ("SCAN", cursor, "MATCH", f"{begin}*{end}", "COUNT", 1000)
                ((cursor, keys),) = checked(self._servers.ask_all(call))
                found += [_decoded(key).removeprefix(begin).removesuffix(end) for key in keys]
                if int(cursor) == 0:
                    return found

    def close(self) -> None:
        """Close the connections; the next call opens them again."""
        self._servers.close()

    def _run(self, service: str, command: str, *arguments: str | int) -> Any:
        """Run the script for a service. Raises StoreCorrupt for what it cannot read."""
        with self._servers.talking():
            try:
                return self._ask(service, command, *arguments)
            except ResponseError as error:
                said = str(error)
                if not said.startswith(_UNREADABLE):
                    raise
                kind, _, name = said.removeprefix(_UNREADABLE).partition(" ")
                raise self._spoilt(service, kind, name, "no such value is ours") from None

    def _ask(self, service: str, command: str, *arguments: str | int) -> Any:
        keys = [encoded(self._key(service, kind)) for kind in _KINDS]
        told = [encoded(each) if isinstance(each, str) else each for each in arguments]
        call = ("EVALSHA", _SCRIPT_SHA, len(keys), *keys, command, self._ttl, self._settle, *told)
        return checked(self._servers.exchange([(keys[0], call)]))[0]

    def _key(self, service: str, kind: str) -> str:
        return f"{self._servers.prefix.decode('utf-8', 'surrogatepass')}leases:{{{service}}}:{kind}"

    def _view(self, service: str, reply: list[Any]) -> View:
        watched = int(reply[0])
        members = self._read(service, _MEMBERS, reply[2], _member)
        leases = self._read(service, _LEASES, reply[3], _lease)
        return View(
            {id_: facts for id_, (until, facts) in members.items() if until > watched},
            {
                name: Lease(owner, epoch, (ends - watched) / 1000)
                for name, (ends, epoch, owner) in leases.items()
                if owner and ends > watched
            },
            self._read(service, _DOCUMENTS, reply[4], _document),
            int(reply[1]) / 1000,
            watched / 1000,
        )

    def _read(
        self, service: str, kind: str, flat: list[bytes], read: Callable[[str], _Value]
    ) -> dict[str, _Value]:
        """Return what a key holds, by name. Raises StoreCorrupt."""
        found = {}
        for name, value in zip(flat[::2], flat[1::2], strict=True):
            try:
                found[_decoded(name)] = read(_decoded(value))
            except ValueError as error:  # bytes that are no UTF-8 too
                shown = name.decode("utf-8", "backslashreplace")
                raise self._spoilt(service, kind, shown, str(error)) from None
        return found

    def _spoilt(self, service: str, kind: str, name: str, reason: str) -> StoreCorrupt:
        """Return the error that tells what cannot be read, and how it is mended."""
        key = self._key(service, kind)
        if kind == _CLOCK:  # how long what is owned lasts is told by it, so that goes too
            keys = " ".join(self._key(service, each) for each in (_CLOCK, _MEMBERS, _LEASES))
            remove = f"DEL {keys}"
        else:
            remove = f'HDEL {key} "{name}"'
        text = (
            f'{key} "{name}" cannot be read ({reason}): after {self._ttl / 1000:g} s, when nobody'
            f" trusts a lease any more, remove it ({remove}); whoever runs writes it anew"
        )
        return StoreCorrupt(self._servers.told(text))


def _member(text: str) -> tuple[int, str]:
    until, _, facts = text.partition(" ")
    return int(until), facts


def _lease(text: str) -> tuple[int, int, str]:
    ends, epoch, owner = text.split(" ", 2)
    return int(ends), int(epoch), owner


def _document(text: str) -> Document:
    version, _, content = text.partition(" ")
    return Document(int(version), content)


def _decoded(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")

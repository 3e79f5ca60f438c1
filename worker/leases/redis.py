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
from typing import TYPE_CHECKING, Any

from worker.errors import LeasesUnavailable
from worker.leases.base import Document, Lease, LeaseStore, View, check_text
from worker.stores.redis import Kind, Servers, checked, encoded

if TYPE_CHECKING:
    from worker.leases.base import LeaseOptions, Sync

logger = logging.getLogger("worker.leases")

_KIND = Kind("lease", "qw:", LeasesUnavailable, "leases", "two members consume the same shard")
_SCRIPT = resources.files("worker.leases").joinpath("redis.lua").read_bytes()
_SCRIPT_SHA = sha1(_SCRIPT).hexdigest()  # noqa: S324 - the name that Redis gives to a script


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
            store._run("-", "look")  # tells whether this user may run scripts
        return store

    def sync(self, service: str, sync: Sync) -> View:
        """Apply ``sync`` and return what is known after it."""
        check_text(sync.facts, "a member's facts")
        held = [part for name, epoch in (*sync.release, *sync.renew) for part in (name, epoch)]
        counts = len(sync.release), len(sync.renew), len(sync.acquire)
        says = (sync.member, sync.facts, int(sync.leaving), *counts, *held, *sync.acquire)
        with self._servers.talking():
            return _view(self._run(service, "sync", *says))

    def look(self, service: str) -> View:
        """Return what is known."""
        with self._servers.talking():
            return _view(self._run(service, "look"))

    def write(self, service: str, name: str, version: int, text: str) -> bool:
        """Change a document by compare-and-set."""
        check_text(text, f"the document {name}")
        with self._servers.talking():
            return bool(self._run(service, "write", name, version, text))

    def close(self) -> None:
        """Close the connections; the next call opens them again."""
        self._servers.close()

    def _run(self, service: str, command: str, *arguments: str | int) -> Any:
        tag = self._servers.prefix + b"leases:{" + encoded(service) + b"}:"
        keys = [tag + kind for kind in (b"clock", b"members", b"leases", b"documents")]
        told = [encoded(each) if isinstance(each, str) else each for each in arguments]
        call = ("EVALSHA", _SCRIPT_SHA, len(keys), *keys, command, self._ttl, self._settle, *told)
        return checked(self._servers.exchange([(keys[0], call)]))[0]


def _view(reply: list[Any]) -> View:
    watched = int(reply[0])
    members, leases, documents = map(_pairs, reply[2:])
    living = {}
    for member, value in members:
        until, _, facts = value.partition(" ")
        if int(until) > watched:
            living[member] = facts
    owned = {}
    for name, value in leases:
        ends, epoch, owner = value.split(" ", 2)
        if owner and int(ends) > watched:
            owned[name] = Lease(owner, int(epoch), (int(ends) - watched) / 1000)
    texts = {}
    for name, value in documents:
        version, _, text = value.partition(" ")
        texts[name] = Document(int(version), text)
    return View(living, owned, texts, int(reply[1]) / 1000, watched / 1000)


def _pairs(flat: list[bytes]) -> list[tuple[str, str]]:
    told = [part.decode("utf-8", "surrogatepass") for part in flat]
    return list(zip(told[::2], told[1::2], strict=True))

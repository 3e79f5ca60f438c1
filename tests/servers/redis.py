"""A private Redis that keeps its data through restarts and evicts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from uuid import uuid4

import redis

from servers.certificates import certify
from servers.guard import Guard
from servers.process import Server, find_program, free_ports

_DATABASES = 1024


class Redis(Server):
    """``fresh_url`` gives each test an empty database of its own.

    Scripts, configuration and INFO belong to the whole server.
    """

    def __init__(self, folder: Path, guard: Guard, *, also_at: str = "") -> None:
        super().__init__(folder, guard, also_at=also_at)
        self._program = find_program("redis-server", package="redis-server")
        self._numbers = cycle(range(1, _DATABASES))
        (self._tls_port,) = free_ports(1)

    @property
    def url(self) -> str:
        """Database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def fresh_url(self) -> str:
        """Return the URL of an empty database that no other test uses."""
        self.start()
        url = f"redis://127.0.0.1:{self.port}/{next(self._numbers)}"
        with redis.Redis.from_url(url) as client:
            client.flushdb()
        return url

    def over_tls(self, url: str) -> str:
        """Return the URL of a database by TLS; the certificate is for ``localhost``."""
        database = url.rpartition("/")[2]
        authority = certify(self.folder).authority
        return f"rediss://localhost:{self._tls_port}/{database}?ssl_ca_certs={authority}"

    def prepare(self) -> None:
        """Redis needs little but its folder."""
        certify(self.folder)

    def command(self) -> Sequence[str | Path]:
        """Every write is in the kernel's hands before its answer leaves: SIGKILL loses nothing."""
        options = {
            "port": str(self.port),
            "tls-port": str(self._tls_port),
            "tls-ca-cert-file": "authority.pem",
            "tls-cert-file": "server.pem",
            "tls-key-file": "server.pem",
            "tls-auth-clients": "optional",
            "protected-mode": "no",  # it would serve loopback alone
            "dir": str(self.folder),
            "databases": str(_DATABASES),
            "appendonly": "yes",
            # By default a write is put off while the kernel is busy with the fsync of before.
            "appendfsync": "no",
            "save": "",
            "maxmemory-policy": "noeviction",
        }
        settings = [word for key, value in options.items() for word in (f"--{key}", value)]
        return [self._program, *settings, "--bind", *self.addresses]

    def answers(self) -> bool:
        """Ping; a server that still loads its data answers with an error."""
        try:
            with redis.Redis.from_url(self.url, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


class ClusterOfOne(Redis):
    """A Redis Cluster whose one server has every hash slot."""

    def command(self) -> Sequence[str | Path]:
        """The one database of a cluster."""
        return [*super().command(), "--cluster-enabled", "yes", "--databases", "1"]

    def fresh_url(self) -> str:
        """Return a URL under whose prefix nothing is known."""
        self.start()
        return f"redis://127.0.0.1:{self.port}/?cluster=1&prefix={uuid4()}:"

    def answers(self) -> bool:
        """A cluster's server answers before it serves."""
        if not super().answers():
            return False
        with redis.Redis(port=self.port) as client:
            if client.cluster("info")["cluster_slots_assigned"] == "0":
                client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
            return bool(client.cluster("info")["cluster_state"] == "ok")

"""What befalls Redis: it forgets, refuses to write, makes everybody wait, or is busy.

All but the first belong to the running server: one that is restarted meanwhile is healthy.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from servers import Redis
from servers.process import free_ports
from waiting import until

_PATIENCE = 30.0
_HOUR = 3_600_000  # in milliseconds


@contextmanager
def emptied(server: Redis) -> Iterator[None]:
    """Kill it; at the end it is there again and knows nothing, no scripts either."""
    server.kill()
    try:
        for entry in server.folder.glob("appendonly*"):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        yield
    finally:
        server.start()


def flush_scripts(server: Redis) -> None:
    """Forget the scripts, as an operator does or a failover to a fresh server."""
    with _client(server) as client:
        client.script_flush()


def close_connections(server: Redis) -> None:
    """Close the connections of all clients."""
    with _client(server) as client:
        client.execute_command("CLIENT KILL", "TYPE", "normal", "SKIPME", "yes")


@contextmanager
def paused(server: Redis) -> Iterator[None]:
    """Let every write and every script wait; the rest is answered.

    (A pause of everything would keep even its own end waiting; ``Server.standing_still`` is that.)
    """
    with _client(server) as client:
        client.client_pause(_HOUR, all=False)
    try:
        yield
    finally:
        with _running(server) as client:
            client.client_unpause()


@contextmanager
def out_of_memory(server: Redis) -> Iterator[None]:
    """Refuse commands that may need memory: OOM."""
    with _configured(server, "maxmemory", "1"):
        yield


@contextmanager
def without_replicas(server: Redis) -> Iterator[None]:
    """Refuse to write, for want of a replica: NOREPLICAS."""
    with _configured(server, "min-replicas-to-write", "1"):
        yield


@contextmanager
def demoted(server: Redis, *, stale: bool = True) -> Iterator[None]:
    """Make it a replica of a server that is not there, as in the midst of a failover.

    It refuses to write (READONLY); where it may not be ``stale``, to read too (MASTERDOWN).
    """
    (nobody,) = free_ports(1)
    with _configured(server, "replica-serve-stale-data", "yes" if stale else "no"):
        with _client(server) as client:
            client.replicaof("127.0.0.1", str(nobody))
        try:
            yield
        finally:
            with _running(server) as client:
                client.replicaof("NO", "ONE")


@contextmanager
def busy(server: Redis) -> Iterator[None]:
    """Run somebody's endless script: BUSY. It takes all of a processor."""

    def run() -> None:
        with _client(server, None) as other, suppress(redis.RedisError):
            other.eval("while true do end", 0)

    def is_busy() -> bool:
        try:
            return not client.ping()
        except redis.ResponseError:
            return True

    script = threading.Thread(target=run, name="an endless script")
    with _configured(server, "lua-time-limit", "1"), _client(server) as client:
        client.ping()  # connects while that goes undisturbed
        script.start()
        try:
            until(is_busy, message="Redis is busy")
            yield
        finally:
            with suppress(redis.RedisError):  # it was restarted
                client.script_kill()
            script.join(_PATIENCE)


@contextmanager
def _configured(server: Redis, name: str, value: str) -> Iterator[None]:
    with _client(server) as client:
        before = client.config_get(name)[name]
        client.config_set(name, value)
    try:
        yield
    finally:
        with _running(server) as client:
            client.config_set(name, before)


@contextmanager
def _running(server: Redis) -> Iterator[redis.Redis]:
    """Give a client to undo something; where the server is away, that is undone already."""
    with _client(server) as client, suppress(redis.ConnectionError):
        yield client


def _client(server: Redis, timeout: float | None = _PATIENCE) -> redis.Redis:
    # What is asked while a server is away is answered at once, and not after attempts.
    retry = Retry(NoBackoff(), 0)
    return redis.Redis.from_url(server.url, socket_timeout=timeout, retry=retry)

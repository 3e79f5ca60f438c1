"""A Redis that may drop keys is refused by every store in it, in words of that store."""

from __future__ import annotations

import pytest

from worker.errors import ConfigurationError, LeasesUnavailable
from worker.stores.redis import Kind, Servers

KIND = Kind("lease", "qw:", LeasesUnavailable, "leases", "two members own a shard")


@pytest.fixture
def servers() -> Servers:
    """Servers that nobody reaches."""
    return Servers("redis://user:word@127.0.0.1:1", KIND, 0.1, b"")


def asked(servers: Servers, monkeypatch: pytest.MonkeyPatch, *memories: bytes) -> list[str]:
    """Return what is told where the servers answer this."""
    monkeypatch.setattr(servers, "info", lambda section: {"memory": memories}[section])
    return servers.check_policy()


def test_a_server_that_keeps_everything_is_fine(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    keeps = b"maxmemory:0\r\nmaxmemory_policy:noeviction\r\n"

    assert asked(servers, monkeypatch, keeps, keeps) == []


def test_one_of_them_that_evicts_is_refused(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = (b"maxmemory_policy:noeviction\r\n", b"maxmemory_policy:volatile-lru\r\n")
    with pytest.raises(ConfigurationError) as told:
        asked(servers, monkeypatch, *answers)

    assert str(told.value) == (
        "lease store redis://user:***@127.0.0.1:1: its maxmemory-policy is volatile-lru, so it may"
        " drop leases at any moment, and then two members own a shard; set it to noeviction"
    )


def test_those_that_do_not_tell_are_warned_of_once(
    servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    (warning,) = asked(servers, monkeypatch, b"", b"")

    assert "MAKE SURE that it is noeviction" in warning
    assert "forgets leases, and two members own a shard" in warning

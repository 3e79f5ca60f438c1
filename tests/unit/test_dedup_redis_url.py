"""What a Redis URL may say; no server is asked."""

from __future__ import annotations

import pytest

from worker.dedup.base import StoreOptions
from worker.dedup.redis import RedisStore
from worker.errors import ConfigurationError, DedupUnavailable

OPTIONS = StoreOptions(timeout=0.2)
#: Nothing listens there: a URL that is understood is not reachable, and one that is not is told.
AWAY = "127.0.0.1:1"


@pytest.mark.parametrize(
    "url",
    [
        f"redis://{AWAY}",
        f"redis://{AWAY}/",
        f"redis://{AWAY}/3?prefix=a:b:&slots=4096&client_name=me",
        f"redis://:word@{AWAY}/0",
        f"redis://{AWAY}?cluster=1",
        f"rediss://user:word@{AWAY}/0?ssl_cert_reqs=none&ssl_check_hostname=false",
        "unix:///nowhere/socket?db=2",
        "unix://user:word@/nowhere/socket",
    ],
)
def test_a_url_that_is_understood_leads_to_a_server_that_is_away(url: str) -> None:
    with pytest.raises(DedupUnavailable) as told:
        RedisStore.open(url, OPTIONS)
    assert "word" not in str(told.value)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://host", "cannot be read"),
        ("redis://host:port", "cannot be read"),
        ("redis://:se/cret@host", "%2F for /"),
        (f"redis://{AWAY}/three", "/NUMBER of the database"),
        (f"redis://{AWAY}/1#top", "/NUMBER of the database"),
        (f"redis://{AWAY}?colour=red", "no option colour; there are client_name, cluster"),
        (f"redis://{AWAY}?socket_timeout=60", "no option socket_timeout"),
        (f"redis://{AWAY}?slots=1000", "slots can be 4096, 32768"),
        (f"redis://{AWAY}?slots=many", "slots can be"),
        (f"redis://{AWAY}?cluster=yes", "cluster can be 0 or 1"),
        (f"redis://{AWAY}?prefix=a{{b}}", "no braces"),
        (f"redis://{AWAY}?ssl_ca_certs=/ca.pem", "are for rediss://"),
    ],
)
def test_a_url_that_cannot_be_meant_is_refused(url: str, told: str) -> None:
    with pytest.raises(ConfigurationError, match=told) as raised:
        RedisStore.open(url, OPTIONS)
    assert "cret" not in str(raised.value)

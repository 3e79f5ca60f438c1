"""Handlers that go wrong in every way, each through the real command line."""

from __future__ import annotations

import pytest

from acceptance.conftest import Place
from acceptance.running import Load, Service, eventually, letters, steps


def test_smoke(place, serve, load):
    service = serve(place, "steps")
    service.start_ready("--shards", "4", "--processes", "2")
    ids = load.publish(steps(10, 10))
    eventually(lambda: len(service.ledger.effects()) == 200, "all")
    assert service.drain() == 0
    assert service.ledger.out_of_order() == {}
    assert set(service.ledger.effects().values()) == {1}
    assert service.ledger.overlaps() == []

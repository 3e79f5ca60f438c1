"""Whom ``qworker pause`` waits for, by what the members of a service tell."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from worker.cli.leasing import Known
from worker.cli.pause import _Members
from worker.leases.base import View
from worker.supervisor.facts import Facts


def waiting(version: int, *, current: int, **members: Facts) -> tuple[_Members, list[str]]:
    """Return who is waited for, of a document that has the version ``current`` now."""
    view = View({name: facts.dump() for name, facts in members.items()})
    store: Any = SimpleNamespace(look=lambda: Known(view, version=current))
    asked = _Members(store, version)
    return asked, asked.wait(0.0)


def test_who_has_carried_it_out_or_a_later_one_is_not_waited_for() -> None:
    ann, bob, eve = (Facts(host=name, pid=1, paused=n) for n, name in enumerate("abe", 4))

    _, late = waiting(5, current=6, ann=ann, bob=bob, eve=eve)

    assert late == ["a:1"]


def test_who_speaks_of_versions_that_the_store_forgot_is_waited_for() -> None:
    _, late = waiting(1, current=1, ann=Facts(host="a", pid=1, paused=5))

    assert late == ["a:1"]


def test_how_long_a_member_may_be_silent_goes_by_the_length_of_its_own_leases(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = [1000.0]
    monkeypatch.setattr("worker.cli.pause.monotonic", lambda: clock[0])
    ann, bob = Facts(host="a", pid=1, lease_ttl=60.0), Facts(host="b", pid=2, lease_ttl=3.0)
    asked, late = waiting(1, current=1, ann=ann, bob=bob)
    assert late == ["a:1", "b:2"]

    clock[0] += 30.0
    assert asked.wait(0.0) == ["a:1"]
    asked.tell(["a:1"], 0.0)
    assert "b:2 has given no sign of life for 3 s: it begins nothing" in capsys.readouterr().err

    clock[0] += 31.0
    assert asked.wait(0.0) == []

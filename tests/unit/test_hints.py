"""What somebody may have meant instead of a service that a lease store does not know."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from worker.cli.leasing import leasing
from worker.cli.loading import Target
from worker.config import load_settings
from worker.leases.base import LeaseOptions
from worker.leases.open import open_leases


def near(url: str, service: str) -> str:
    settings = load_settings({"broker": "amqp://host", "leases": url}, {})
    with leasing(Target(service, settings)) as store:
        assert store.look().is_unknown
        return store.near()


def test_nobody_means_what_was_said_already(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/leases.db"
    with closing(open_leases(url, LeaseOptions())) as store:
        store.write("bank", "note", 0, "of no member, and no plan")

    assert near(url, "bank") == ""
    assert near(url, "bnak") == "bank"
    with closing(open_leases(url, LeaseOptions())) as store:
        store.write("banks", "note", 0, "of no member, and no plan")
    assert near(url, "bank") == "banks"

"""The bank's library of events: two versions, whose services understand each other."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from decimal import Decimal
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from acceptance.examples import ROOT
from worker import App
from worker.testing import TestWorker

LIBRARY = ROOT / "examples" / "bank_events"


def version(number: int) -> ModuleType:
    """Return that version of ``bank_events``, beside the other one."""
    file = LIBRARY / f"v{number}" / "bank_events" / "__init__.py"
    spec = spec_from_file_location(f"bank_events_{number}", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[module.__name__] = module  # where annotations are looked up
    spec.loader.exec_module(module)
    return module


OLD, NEW = version(1), version(2)


def received(observed: Any, *published: Any) -> list[Any]:
    """Return what a handler of ``observed`` gets of what is published."""
    app, found = App("observer"), []

    @app.on(observed)
    def note(event: Any) -> None:
        found.append(event)

    with TestWorker(app) as worker:
        for event in published:
            worker.publish(event)
        worker.run()
        assert worker.dead_letters == []
    return found


def test_version_2_reads_what_version_1_publishes() -> None:
    (event,) = received(NEW.UserDeposited, OLD.UserDeposited(user_id="alice", amount=Decimal(5)))

    assert (event.user_id, event.amount, event.note) == ("alice", 5, "")


def test_version_1_reads_what_version_2_publishes() -> None:
    deposited = NEW.UserDeposited(user_id="alice", amount=Decimal(5), note="rent")
    (event,) = received(OLD.UserDeposited, deposited)

    assert (event.user_id, event.amount) == ("alice", 5)
    assert not hasattr(event, "note")


def test_a_field_that_is_missing_and_has_no_default_makes_a_dead_letter() -> None:
    app = App("observer")

    @app.on(NEW.TransactionCreated)
    def note(event: Any) -> None:
        raise AssertionError(event)

    with TestWorker(app) as worker:
        body = '{"user_id": "alice", "amount": "5"}'
        worker.publish_raw(body, name="transaction.created", id="1")
        worker.run()
        (letter,) = worker.dead_letters

    assert "deposit_id" in letter.reason


def test_one_handler_of_both_names_has_the_events_of_a_key_in_order() -> None:
    app, found = App("observer"), []

    @app.on(NEW.TransactionCreated)
    @app.on(NEW.DepositRecorded, name="note_1")
    def note(event: Any) -> None:
        found.append(event.deposit_id)

    with TestWorker(app) as worker:
        for number, kind in enumerate([OLD.DepositRecorded, NEW.TransactionCreated] * 5):
            worker.publish(kind(user_id="alice", amount=Decimal(5), deposit_id=str(number)))
        worker.run()

    assert found == [*map(str, range(10))]


def test_who_has_version_1_has_all_that_was_renamed_by_the_bridge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(LIBRARY / "v2"))
    monkeypatch.syspath_prepend(str(ROOT))
    from examples.bank.bridge import app  # noqa: PLC0415 - it needs the path of above

    created = NEW.TransactionCreated(
        user_id="alice", amount=Decimal(5), deposit_id="d1", note="rent"
    )
    with TestWorker(app) as worker:
        worker.publish(created)
        worker.run()
        (message,) = worker.published

    assert message.name == OLD.DepositRecorded.name
    assert message.key == "alice"
    assert message.payload == {"user_id": "alice", "amount": "5", "deposit_id": "d1"}


@pytest.mark.parametrize("number", [1, 2])
def test_a_version_is_installed_by_pip(number: int, tmp_path: Path) -> None:
    # Elsewhere, since a build leaves folders of its own behind.
    source = shutil.copytree(LIBRARY / f"v{number}", tmp_path / "source")
    install = (sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps")
    where = ("--no-build-isolation", "--target", str(tmp_path / "installed"))
    subprocess.run([*install, *where, str(source)], check=True, timeout=100)
    program = (
        "import bank_events, importlib.metadata as m; print(bank_events.__file__);"
        " print(m.version('bank-events'), hasattr(bank_events, 'TransactionCreated'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "installed")},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )

    file, _, told = done.stdout.partition("\n")
    assert Path(file).is_relative_to(tmp_path)
    assert (Path(file).parent / "py.typed").exists()
    assert told.split() == [f"{number}.0.0", str(number == 2)]

"""How a child imports an app, and what it says where that fails."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from worker.errors import ConfigurationError, UsageError
from worker.supervisor.control import Boot
from worker.supervisor.service import load_service

APP = """
from worker import App

app = App("bank", broker="sqlite:///bank.db", settings={"shards": 4, "processes": 8})


@app.on("user.*")
def audit(event):
    pass
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own for each test, as the current one, its modules forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    monkeypatch.setattr(sys, "modules", sys.modules.copy())
    return tmp_path


def boot(**options: object) -> Boot:
    return Boot({"app": "handlers", **options}, 0)


def test_the_terms_come_from_every_source_the_app_included(folder: Path) -> None:
    (folder / "handlers.py").write_text(APP)
    (folder / "qworker.toml").write_text("drain_timeout = 7\n")

    terms = load_service(boot(watchdog=9)).terms

    assert (terms.service, terms.shards) == ("bank", 4)
    assert terms.processes == terms.most_processes == 4, "never more processes than shards"
    assert (terms.drain_timeout, terms.watchdog) == (7, 9)


def test_more_processes_than_shards_are_told(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "handlers.py").write_text(APP)

    load_service(boot())

    assert "8 processes were asked for" in caplog.text


@pytest.mark.parametrize(("index", "times"), [(0, 1), (1, 0)])
def test_an_app_without_handlers_is_told_of_once(
    folder: Path, caplog: pytest.LogCaptureFixture, index: int, times: int
) -> None:
    (folder / "handlers.py").write_text("from worker import App\n\napp = App('bank')\n")

    load_service(Boot({"app": "handlers", "broker": "sqlite:///bank.db"}, index))

    assert caplog.text.count("bank has no handlers: it consumes nothing") == times


@pytest.mark.parametrize("store", ["broker", "dedup"])
def test_what_lives_in_memory_lives_in_one_process(folder: Path, store: str) -> None:
    (folder / "handlers.py").write_text(APP.replace(', "processes": 8', ""))

    assert load_service(boot(**{store: "memory://"})).terms.most_processes == 1


def test_an_exception_of_the_users_module_shows_the_users_frames_alone(folder: Path) -> None:
    (folder / "handlers.py").write_text("from helper import x\n")
    (folder / "helper.py").write_text("def load():\n    return {}['port']\n\nx = load()\n")

    with pytest.raises(ConfigurationError) as caught:
        load_service(boot())

    text = str(caught.value)
    assert "importing it raised KeyError" in text
    assert 'helper.py", line 2, in load' in text
    assert "importlib" not in text
    assert "worker/app.py" not in text


def test_a_module_that_ends_the_program_is_told(folder: Path) -> None:
    (folder / "handlers.py").write_text("raise SystemExit(0)\n")

    with pytest.raises(ConfigurationError, match=r"called sys.exit\(0\)"):
        load_service(boot())


def test_a_missing_module_needs_no_traceback() -> None:
    with pytest.raises(ConfigurationError, match="no module 'handlers'") as caught:
        load_service(boot())

    assert "Traceback" not in str(caught.value)


@pytest.mark.parametrize("reference", ["worker", "worker:app", "worker.handlers"])
def test_a_module_named_like_this_package_is_told(folder: Path, reference: str) -> None:
    (folder / "worker.py").write_text(APP)

    with pytest.raises(ConfigurationError, match="has the name of qworker's own package"):
        load_service(boot(app=reference))


def test_only_the_chosen_handlers_run_and_a_wrong_name_is_told(folder: Path) -> None:
    (folder / "handlers.py").write_text(APP)

    with pytest.raises(UsageError, match="did you mean audit"):
        load_service(boot(handlers=["audti"]))

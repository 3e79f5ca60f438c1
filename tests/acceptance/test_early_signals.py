"""Signals that come before a command can act on them: while it imports, and while its app does.

They are sent from within, at the moment in which a module is looked for, so that they never come
late. What is sent before Python itself is up has its default action; no program can help that.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from acceptance.commands import Shell
from acceptance.running import Service, eventually

#: Python imports it by itself, before anything of ours.
SENDER = """\
import os, signal, sys

class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == os.environ["AT_IMPORT_OF"] and "bootstrap" not in sys.argv[0]:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), int(os.environ["SEND"]))

sys.meta_path.insert(0, Sender())
"""
APP = """\
import os
from pathlib import Path

from worker import App

Path("imported").touch()
if os.path.exists("never"):
    os.mkfifo("fifo")
    open("fifo").read()
app = App("mine")

@app.on("#")
def handle(event):
    pass
"""
#: The first module that takes time, and one that comes near the end.
MOMENTS = ["click", "worker.supervisor.supervisor"]


def send(service: Service, number: int, moment: str) -> None:
    """Have the next start send itself this signal at that moment."""
    (service.folder / "sitecustomize.py").write_text(SENDER)
    service.environ |= {"AT_IMPORT_OF": moment, "SEND": str(int(number))}
    service.environ["PYTHONPATH"] = f"{service.folder}:{service.environ['PYTHONPATH']}"


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_that_is_told_to_end_ends_having_begun_nothing(
    project: Service, number: int, moment: str
) -> None:
    send(project, number, moment)

    project.start()

    assert project.exit_code() == 0
    assert "Traceback" not in project.log
    assert f"got {signal.Signals(number).name}" in project.log
    assert not (project.folder / "imported").exists()


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGTTIN])
def test_a_start_that_is_asked_for_something_else_goes_on(
    project: Service, number: int, moment: str
) -> None:
    send(project, number, moment)

    project.start_ready()

    assert f"got {signal.Signals(number).name}" in project.log
    assert project.drain() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_start_whose_app_is_being_imported_ends_at_once(project: Service, number: int) -> None:
    (project.folder / "never").touch()
    project.start()
    eventually((project.folder / "fifo").exists, "the app is being imported")

    project.signal(number)

    assert project.exit_code() == 0
    assert "Traceback" not in project.log
    assert "SIGKILL" not in project.log


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_start_whose_app_is_being_imported_survives_what_is_no_end(
    project: Service, number: int
) -> None:
    (project.folder / "never").touch()
    project.start()
    eventually((project.folder / "fifo").exists, "the app is being imported")

    project.signal(number)
    eventually(lambda: "got SIG" in project.log, "it has come")
    (project.folder / "fifo").write_text("go on")

    eventually(lambda: project.status().get("ready") or not project.running, "it is ready")
    assert project.drain() == 0


def test_ctrl_c_while_another_command_is_imported_is_no_traceback(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    shell.write("sitecustomize.py", SENDER)
    shell.environ |= {
        "PYTHONPATH": str(tmp_path), "AT_IMPORT_OF": "click", "SEND": str(int(signal.SIGINT)),
    }  # fmt: skip

    result = shell.run("topology", "--help", code=130)

    assert "Traceback" not in result.err

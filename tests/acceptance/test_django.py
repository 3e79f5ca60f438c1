"""A Django project: ``manage.py qworker`` runs its service and its relay."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from acceptance.commands import Result, Shell
from databases import Database
from django_settings import configuration

_MANAGE = """
import os, sys

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "site_settings")
# As templates of projects have it: apps in a folder of their own.
sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "apps"))

from django.core.management import execute_from_command_line

execute_from_command_line(sys.argv)
"""
_SETTINGS = """
import pymysql

pymysql.install_as_MySQLdb()  # the name that Django looks for

INSTALLED_APPS = ["worker.contrib.django", "bank"]
DATABASES = {{"default": {database!r}}}
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
SECRET_KEY = "of a test"
QWORKER_APP = "bank.events"
"""
_MODELS = """
from django.db import models


class Account(models.Model):
    user_id = models.CharField(max_length=50, primary_key=True)
    balance = models.IntegerField(default=0)
"""
_EVENTS = """
from django.db.models import F

from worker import App, Context, Event
from worker.contrib.django import Inbox, Outbox

from bank.models import Account

app = App("bank")
inbox = Inbox()
# What a process that dies right after the commit leaves to the relay.
outbox = Outbox(app, sends=False)


class Deposited(Event, name="deposited", key="user_id"):
    user_id: str
    amount: int


class Told(Event, name="told", key="user_id"):
    user_id: str
    balance: int


@app.on(Deposited)
def deposit(event: Deposited, context: Context) -> None:
    with inbox.transaction(context):
        Account.objects.get_or_create(user_id=event.user_id)
        Account.objects.filter(user_id=event.user_id).update(balance=F("balance") + event.amount)
        account = Account.objects.get(user_id=event.user_id)
        outbox.publish_on_commit(Told(user_id=account.user_id, balance=account.balance), context)


@app.on(Told)
def hear(event: Told) -> None:
    print(f"{event.user_id} has {event.balance}", flush=True)
"""


class Project(Shell):
    """A folder as ``startproject`` and ``startapp`` make it; commands run from another one."""

    def __init__(self, folder: Path, database: Database) -> None:
        broker = f"sqlite:///{folder / 'broker.db'}"
        super().__init__(folder, {"QWORKER_BROKER_URL": broker, "QWORKER_LEASE_TTL": "1"})
        self.manage = str(self.write("manage.py", _MANAGE))
        self.write("site_settings.py", _SETTINGS.format(database=configuration(database.url)))
        bank = folder / "apps" / "bank"
        bank.mkdir(parents=True)
        for name, text in (("__init__", ""), ("models", _MODELS), ("events", _EVENTS)):
            (bank / f"{name}.py").write_text(text)
        self.elsewhere = folder / "elsewhere"
        self.elsewhere.mkdir()
        self.django("migrate", "--run-syncdb")

    def django(self, *words: str, code: int = 0) -> Result:
        """Run a command of the project to its end."""
        done = subprocess.run(
            [sys.executable, self.manage, *words],
            cwd=self.elsewhere,
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        result = Result(done.returncode, done.stdout, done.stderr)
        assert done.returncode == code, result
        return result


@pytest.fixture
def project(tmp_path: Path, database: Database) -> Iterator[Project]:
    project = Project(tmp_path, database)
    yield project
    project.close()


on_sqlite = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def test_a_service_its_relay_and_its_memory(project: Project) -> None:
    project.django("qworker", "topology", "--declare")
    project.django("qworker", "publish", "deposited", "user_id=u1", "amount:=10")
    assert "has" not in project.django("qworker", "start", "--burst").out
    project.django("qworker", "outbox", "--burst")
    assert "u1 has 10" in project.django("qworker", "start", "--burst").out
    assert project.django("qworker_purge", "--days", "1").out == "0 ids forgotten\n"
    assert "zero or more" in project.django("qworker_purge", "--days", "-5", code=1).err
    assert project.django("qworker_purge", "--days", "0").out == "1 ids forgotten\n"


@on_sqlite
def test_the_command_becomes_qworker_and_takes_its_signals(project: Project) -> None:
    process = subprocess.Popen(
        [sys.executable, project.manage, "qworker", "--settings=site_settings", "outbox"],
        cwd=project.elsewhere,
        env=project.environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        lines = iter(process.stderr.readline, "")
        assert any("relaying the outbox of bank" in line for line in lines)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


@on_sqlite
def test_help_is_that_of_qworker(project: Project) -> None:
    assert "qworker start --app" in project.django("qworker", "start", "--help").out
    assert "settings.QWORKER_APP" in project.django("help", "qworker").out


@on_sqlite
class TestMistakes:
    """Told in words, with the exit codes of qworker."""

    @pytest.mark.parametrize(
        ("setting", "said"),
        [
            ("", "Django's settings have no QWORKER_APP"),
            ('QWORKER_APP = "bank.models"', "bank.models has no App named 'app'"),
            (
                'QWORKER_APP = "bank.nothing"',
                "QWORKER_APP = 'bank.nothing': there is no module 'bank.nothing'",
            ),
            ('QWORKER_APP = "missing"', "it imports 'bank.missing', which is not installed"),
        ],
    )
    def test_an_app_that_is_not_there(self, project: Project, setting: str, said: str) -> None:
        settings = project.folder / "site_settings.py"
        lines = settings.read_text().splitlines()[:-1]
        settings.write_text("\n".join([*lines, setting]))
        project.write("apps/missing.py", "import bank.missing\n")
        result = project.django("qworker", "check", code=3)
        assert said in result.out
        assert "Traceback" not in result.out + result.err

    def test_tables_that_are_not_there(self, project: Project) -> None:
        project.django("migrate", "qworker", "zero")
        told = project.django("qworker", "outbox", "--burst", code=3).err
        assert "run 'manage.py migrate qworker'" in told

    def test_an_alias_that_is_not_there(self, project: Project) -> None:
        told = project.django("qworker", "outbox", "--database", "django://other", code=3).err
        assert "have no database 'other'; they have default" in told

    def test_a_relay_without_settings(self, project: Project) -> None:
        project.write("plain.py", 'from worker import App\n\napp = App("plain")\n')
        told = project.run("outbox", "--app", "plain", "--database", "django://default", code=3)
        assert "manage.py qworker outbox" in told.err
        assert "Traceback" not in told.err

    def test_a_call_from_a_program(self, project: Project) -> None:
        program = "from django.core.management import call_command; call_command('qworker')"
        result = project.django("shell", "-c", program, code=1)
        assert "call it from a command line" in result.err

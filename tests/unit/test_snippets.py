"""The Python that the pages show can be copied: it is complete, and what defines an app loads."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from importlib import import_module
from inspect import signature
from pathlib import Path

import pytest

from worker.app import App
from worker.importing import load_app
from worker.testing import TestWorker

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
#: A name that nothing defines, one that nobody uses, and what does not parse.
COMPLETE = "F,E9"
#: What stands above the settings that a page adds to those of ``startproject``.
_STARTED = "builtins = ['INSTALLED_APPS']"


@dataclass(frozen=True, slots=True)
class Snippet:
    """A block of Python on a page."""

    page: Path
    line: int
    text: str

    @property
    def module(self) -> str:
        """The name under which the page tells its reader to keep it, in a comment at the top."""
        named = re.match(r"# (\w+)\.py\n", self.text)
        return named[1] if named else f"{self.page.stem.replace('-', '_')}_{self.line}"

    @property
    def place(self) -> str:
        """Where it is in a Django project, by the same comment; empty where it is in none."""
        named = re.match(r"# (\w+/\w+\.py)\b", self.text)
        return named[1] if named else ""

    @property
    def defines_an_app(self) -> bool:
        """Whether ``--app`` may name it."""
        return re.search(r"^app = App\(", self.text, re.MULTILINE) is not None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def snippets() -> Iterator[Snippet]:
    for page in PAGES:
        text = page.read_text()
        for found in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            yield Snippet(page, text.count("\n", 0, found.start()) + 1, found[1])


ALL = [*snippets()]
SNIPPETS = [snippet for snippet in ALL if not snippet.place]
PROJECT = [snippet for snippet in ALL if snippet.place]
each = pytest.mark.parametrize("snippet", SNIPPETS, ids=str)


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Be where every snippet is a file of its own."""
    names = [snippet.module for snippet in SNIPPETS]
    for snippet in SNIPPETS:
        (tmp_path / f"{snippet.module}.py").write_text(snippet.text)
    for name in names:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setenv("ACCOUNTS_DATABASE", "sqlite:///accounts.db")  # a test on a page changes it
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in names:
        sys.modules.pop(name, None)


def test_the_first_pages_show_python() -> None:
    shown = {snippet.page.name for snippet in SNIPPETS}

    assert {"README.md", "relays.md", "wire-format.md"} <= shown


@pytest.mark.parametrize("snippet", ALL, ids=str)
def test_a_snippet_defines_or_imports_all_that_it_uses(snippet: Snippet) -> None:
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", COMPLETE]
    if snippet.place.endswith("/settings.py"):
        ruff += ["--config", _STARTED]
    told = subprocess.run(
        [*ruff, "--quiet", "-"],
        input=snippet.text,
        capture_output=True,
        text=True,
        check=False,
    )

    assert told.returncode == 0, told.stdout + told.stderr


@each
def test_what_a_snippet_imports_is_there(snippet: Snippet) -> None:
    for node in ast.walk(ast.parse(snippet.text)):
        if isinstance(node, ast.Import):
            for name in node.names:
                import_module(name.name)
        elif isinstance(node, ast.ImportFrom):
            module = import_module(node.module or "")
            assert [n.name for n in node.names if not hasattr(module, n.name)] == []


@pytest.mark.parametrize("snippet", [s for s in SNIPPETS if s.defines_an_app], ids=str)
def test_an_app_of_a_snippet_loads(snippet: Snippet) -> None:
    app = load_app(snippet.module)

    assert isinstance(app, App)
    assert app.handlers


@pytest.mark.parametrize("snippet", [s for s in SNIPPETS if "\ndef test_" in s.text], ids=str)
def test_a_test_of_a_snippet_passes(snippet: Snippet, request: pytest.FixtureRequest) -> None:
    module = import_module(snippet.module)
    tests = [value for name, value in vars(module).items() if name.startswith("test_")]

    assert tests
    for test in tests:
        test(**{name: request.getfixturevalue(name) for name in signature(test).parameters})


def test_the_test_of_accounts_finds_nothing_of_its_last_run_nor_of_the_service(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_accounts.py"]
    for _ in ("the first run", "the next one"):
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        assert told.returncode == 0, told.stdout + told.stderr
    assert not (tmp_path / "accounts.db").exists()


def test_the_money_of_accounts_has_two_digits_behind_the_point() -> None:
    accounts = import_module("accounts")
    accounts.prepare()
    with TestWorker(accounts.app) as worker:
        for _ in range(2):
            worker.publish(accounts.UserDeposited(user_id="u1", amount=Decimal("10.00")))
        worker.run()
        assert accounts.outbox.flush()
        told = [message.payload["balance"] for message in worker.published]
    assert told == ["10.00", "20.00"]


def test_the_django_project_of_a_page_passes_its_own_tests(tmp_path: Path) -> None:
    environ = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "DJANGO_SETTINGS_MODULE": "mysite.settings",
    }

    def manage(*words: str) -> str:
        told = subprocess.run(
            [sys.executable, "-W", "error", "-m", "django", *words],
            cwd=tmp_path,
            env=environ,
            capture_output=True,
            text=True,
            check=False,
        )
        assert told.returncode == 0, told.stdout + told.stderr
        return told.stderr

    manage("startproject", "mysite", ".")
    manage("startapp", "bank")
    for snippet in PROJECT:
        file = tmp_path / snippet.place
        settings = file.read_text() if file.name == "settings.py" else ""
        file.write_text(settings + snippet.text)
    manage("makemigrations", "bank")
    manage("migrate")
    assert "Ran 1 test" in manage("test", "bank")

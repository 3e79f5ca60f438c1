"""What the story needs: the programs of the bank, each with its version of bank_events."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from examples.bank.books import Deposit
from examples.running import ROOT, free_port, program, servers, service, until, until_listening
from worker.demo.service import Service, clean_environment


class Web:
    """The web server of finance, as its users see it."""

    def __init__(self, process: subprocess.Popen[bytes], port: int) -> None:
        self._process = process
        self._url = f"http://127.0.0.1:{port}"

    def take(self, deposit: Deposit, **headers: str) -> None:
        form = urlencode({"amount": deposit.amount, "note": deposit.note}).encode()
        request = Request(f"{self._url}/{deposit.user}", form, headers)  # noqa: S310 - our own URL
        with urlopen(request, timeout=30):  # noqa: S310 - as above
            pass

    def take_and_die(self, deposit: Deposit) -> None:
        """Be killed (SIGKILL) when the deposit is committed, before anything else happens."""
        with suppress(ConnectionError, URLError):
            self.take(deposit, Accident="yes")
        until(lambda: self._process.poll() is not None, "the web server is dead")


class Stage:
    """The programs of the bank, in a folder; none of them is started yet."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.databases = {
            name: os.environ.get(name) or f"sqlite:///{folder / name.lower()}.db"
            for name in ("FINANCE_DATABASE", "TRANSACTIONS_DATABASE")
        }
        self.notifications = self._service("notifications", "--shards=2", version=1)
        self.transactions = self._service("transactions", "--shards=2", version=2)
        self.statements = self._service("statements", "--processes=1", version=2)
        self.bridge = self._service("bridge", "--processes=1", version=2)
        self.services = (self.notifications, self.transactions, self.statements, self.bridge)

    def make_tables(self) -> None:
        self._run("-m", "django", "migrate", "--verbosity=0", version=2)
        self._run("-m", "examples.bank.transactions", version=2)

    def take_at_the_desk(self, deposits: list[Deposit]) -> None:
        words = [word for each in deposits for word in (each.user, str(each.amount))]
        self._run("-m", "examples.bank.deposit", *words, version=1)

    @contextmanager
    def web(self) -> Iterator[Web]:
        """Run the web server while the block runs."""
        port = free_port()
        command = ("-m", "django", "runserver", "--noreload", f"127.0.0.1:{port}")
        environ = {**self._environ(2), "DJANGO_SETTINGS_MODULE": "examples.bank.accident"}
        with program(self._folder, "web", *command, environ=environ) as process:
            until_listening(process, port, "the web server")
            yield Web(process, port)

    def relay_of_finance(self) -> AbstractContextManager[object]:
        """Send what the web server has left in its outbox, while the block runs."""
        command = ("-m", "django", "qworker", "outbox")
        return program(self._folder, "finance-outbox", *command, environ=self._environ(2))

    def relay_of_transactions(self) -> AbstractContextManager[object]:
        """Send what processes of ``transactions`` have left in theirs."""
        command = ("-m", "worker.cli", "outbox", "--app=examples.bank.transactions")
        where = f"--database={self.databases['TRANSACTIONS_DATABASE']}"
        environ = self._environ(2)
        return program(self._folder, "transactions-outbox", *command, where, environ=environ)

    def _service(self, name: str, *options: str, version: int) -> Service:
        return service(f"bank.{name}", self._folder, self._environ(version), *options)

    def _run(self, *arguments: str, version: int) -> None:
        """Run ``python ARGUMENTS`` to its end; end the story where it fails."""
        done = subprocess.run(  # noqa: S603 - our own programs
            [sys.executable, *arguments],
            cwd=self._folder,
            env={**clean_environment(), **servers(self._folder), **self._environ(version)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr}")

    def _environ(self, version: int) -> Mapping[str, str]:
        """Return the environment of a program that has this version of bank_events."""
        library = ROOT / "examples" / "bank_events" / f"v{version}"
        return {
            "PYTHONPATH": os.pathsep.join([str(library), str(ROOT)]),
            "BANK_FOLDER": str(self._folder),
            "DJANGO_SETTINGS_MODULE": "examples.bank.finance.settings",
            **self.databases,
        }

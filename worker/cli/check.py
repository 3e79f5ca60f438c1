"""``qworker check``: could a service run here; and the probes ``--live`` and ``--ready``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from worker.cli.options import SettingsCommand, example, json_option, settings_options
from worker.cli.output import clean, emit, emit_json
from worker.supervisor.status import is_live, is_ready, read_status

if TYPE_CHECKING:
    from worker.cli.checks import Finding

_COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}
_EXIT_NOT = 1


@click.command(
    cls=SettingsCommand,
    epilog=example(
        "qworker check --app handlers --shards 8",
        "qworker check --ready      # as a probe, beside a running service",
    ),
)
@settings_options()
@click.option("--live", is_flag=True, help="Only tell whether the service here is alive.")
@click.option("--ready", is_flag=True, help="Only tell whether the service here consumes.")
@click.option("--service", metavar="NAME", help="Of --live and --ready: only this service.")
@json_option
def check(
    options: dict[str, Any], *, live: bool, ready: bool, service: str | None, as_json: bool
) -> int:
    """Tell whether a service could run here, with the options that start would get.

    Imports the app, validates its settings, connects to broker, dedup store and lease store, and
    compares what they have and can do with what the app asks for. Nothing is declared.

    Exit codes: 0 all is well, maybe with warnings; 2 usage; 3 the app or its settings are wrong;
    4 broker, dedup store or lease store not reachable. The probes --live and --ready, which read
    the status file of the supervisors on this machine and nothing else: 0 yes, 1 no.
    """
    if live or ready:
        return _probe(service, live=live, ready=ready, as_json=as_json)
    if service is not None:
        raise click.UsageError("--service belongs to --live and --ready; say --app")
    # A probe runs every few seconds: it goes without the broker's client.
    from worker.cli.checks import check_service

    findings = []
    for finding in check_service(options):
        findings.append(finding)
        if not as_json:
            _show(finding)
    codes = {finding.exit_code for finding in findings} - {0}
    if as_json:
        told = [{"check": f.check, "level": f.level.value, "text": f.text} for f in findings]
        emit_json({"ok": not codes, "checks": told})
    # Of several troubles, the one that waiting does not mend.
    return min(codes, default=0)


def _show(finding: Finding) -> None:
    level = finding.level.value
    first, *rest = finding.text.splitlines() or [""]
    head = click.style(level.ljust(7), fg=_COLOURS[level])
    emit(f"{head}  {finding.check.ljust(13)}  {clean(first)}")
    for line in rest:
        emit(f"{'':24}{clean(line)}")


def _probe(service: str | None, *, live: bool, ready: bool, as_json: bool) -> int:
    statuses, now = read_status(service), time.monotonic()
    asked = [("live", is_live)] * live + [("ready", is_ready)] * ready
    verdicts = [(name, ask(statuses, now, service)) for name, ask in asked]
    ok = all(verdict.ok for _, verdict in verdicts)
    if as_json:
        emit_json({"ok": ok, **{name: {"ok": v.ok, "text": v.text} for name, v in verdicts}})
    else:
        for text in dict.fromkeys(verdict.text for _, verdict in verdicts):
            emit(text)
    return 0 if ok else _EXIT_NOT

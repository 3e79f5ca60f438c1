"""How a trial looks while it runs: live on a terminal, in lines on a pipe; and its result."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from rich.console import Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from worker.demo.service import processes_of

if TYPE_CHECKING:
    from typing import Self

    from rich.console import Console, RenderableType

    from worker.demo.report import Report
    from worker.demo.trial import Trial

#: Seconds over which a rate is measured, and between two lines on a pipe.
_RATE_SECONDS = 2.0
_LINE_SECONDS = 2.0
_FRAMES = 10
_BAR = 36
#: Seconds for which a kill is shown.
_RECENT = 1.5


class View(Protocol):
    """Shows a trial. A context manager; called with the trial many times a second."""

    def __enter__(self) -> Self:
        """Begin to show."""
        ...

    def __exit__(self, *exc_info: object) -> None:
        """Leave the last state on the screen."""
        ...

    def __call__(self, trial: Trial) -> None:
        """Show what is new."""
        ...


class Rate:
    """How fast a number grows, over the last moments."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def __call__(self, number: int, now: float) -> float:
        """Take a new reading and return the rate a second."""
        self._seen.append((now, number))
        while len(self._seen) > 2 and now - self._seen[1][0] >= _RATE_SECONDS:  # noqa: PLR2004 - first and last
            self._seen.popleft()
        since, before = self._seen[0]
        return (number - before) / (now - since) if now > since else 0.0


class Plain:
    """A line every two seconds and for all that happens."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._phase = ""
        self._kills = 0
        self._next = 0.0
        self._rate = Rate()

    def __enter__(self) -> Self:
        """Nothing is to be prepared."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Every line is complete."""

    def __call__(self, trial: Trial) -> None:
        """Print what happened."""
        now = monotonic()
        rate = self._rate(trial.checker.applied, now)
        for kill in trial.kills[self._kills :]:
            self._say(trial, f"kill -9 {kill.pid}")
        self._kills = len(trial.kills)
        if trial.phase != self._phase:
            self._phase = trial.phase
            self._say(trial, trial.phase)
        elif now >= self._next and trial.seconds:
            self._say(
                trial,
                f"published {trial.stream.published:,}, applied {trial.checker.applied:,}"
                f" ({rate:,.0f}/s), second effects {trial.checker.repeated},"
                f" out of order {trial.checker.out_of_order}",
            )
        else:
            return
        self._next = now + _LINE_SECONDS

    def _say(self, trial: Trial, text: str) -> None:
        self._console.print(f"{trial.seconds:5.1f} s  {text}", highlight=False, soft_wrap=True)


class Moving:
    """A small picture that is drawn anew ten times a second."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)
        self._next = 0.0
        self._published, self._applied = Rate(), Rate()
        self._since: dict[int, float] = {}
        self._trial: Trial | None = None

    def __enter__(self) -> Self:
        """Take the terminal."""
        self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Draw the last state and give the terminal back."""
        if self._trial is not None:
            self._live.update(self._picture(self._trial, monotonic()), refresh=True)
        self._live.stop()

    def __call__(self, trial: Trial) -> None:
        """Draw it, if it is time to."""
        now = monotonic()
        self._trial = trial
        if now >= self._next:
            self._next = now + 1 / _FRAMES
            self._live.update(self._picture(trial, now), refresh=True)

    def _picture(self, trial: Trial, now: float) -> RenderableType:
        published, applied = trial.stream.published, trial.checker.applied
        bars = Table.grid(padding=(0, 2))
        for name, number, size, rate in (
            ("published", published, trial.stream.size, self._published(published, now)),
            ("applied", applied, trial.checker.wanted, self._applied(applied, now)),
        ):
            bar = ProgressBar(
                total=size,
                completed=number,
                width=_BAR,
                complete_style="cyan",
                finished_style="green",
            )
            bars.add_row(name, bar, f"{number:,} of {size:,}", Text(f"{rate:,.0f}/s", "dim"))
        head = Text.assemble((trial.phase, "bold"), (f"  {trial.seconds:.1f} s", "dim"))
        return Group(head, Text(), bars, Text(), self._processes(trial, now), Text(), _facts(trial))

    def _processes(self, trial: Trial, now: float) -> RenderableType:
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 3, 0, 0))
        for column in ("process", "pid", "shards", "state"):
            table.add_column(column)
        killed = {kill.pid for kill in trial.kills}
        processes = {process.index: process for process in processes_of(trial.status)}
        for index in range(trial.scenario.processes):
            process = processes.get(index)
            if process is None:
                table.add_row(str(index), "", "", Text("waits to be started", "yellow"))
                continue
            since = self._since.setdefault(process.pid, now)
            if process.pid in killed:
                state = Text("killed", "bold red")
            elif process.stage == "ready":
                state = Text.assemble(("consumes", "green"), (f"  {now - since:.1f} s", "dim"))
            else:
                state = Text(process.stage, "yellow")
            shards = " ".join(map(str, process.shards))
            table.add_row(str(index), str(process.pid), shards, state)
        return table


def _facts(trial: Trial) -> RenderableType:
    facts = Table.grid(padding=(0, 2))
    last = trial.kills[-1] if trial.kills else None
    recent = last is not None and monotonic() - last.at < _RECENT
    blow = Text(f"kill -9 {last.pid}", "bold red") if last is not None and recent else Text()
    facts.add_row("processes killed", f"{len(trial.kills):,}", blow)
    dropped = trial.counted("duplicates")
    facts.add_row("duplicates dropped", f"{dropped:,}", "")
    second = trial.checker.repeated
    if trial.scenario.once:
        facts.add_row("run again, no effect", f"{trial.repetitions:,}", "")
        facts.add_row("second effects", _good(second), "")
    else:
        facts.add_row("second effects", f"{second:,}", Text("in the crash window", "dim"))
    facts.add_row("out of order", _good(trial.checker.out_of_order), "")
    return facts


def _good(wrong: int) -> Text:
    """Return a number that should be 0."""
    return Text(f"{wrong:,}", "bold red" if wrong else "bold green")


def result(report: Report) -> RenderableType:
    """Return the short table at the end."""
    found = report.findings
    twice = report.published - report.events
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column()
    table.add_column(justify="right")
    table.add_column(style="dim", overflow="fold")
    for name, number, note in (
        (
            "published",
            f"{report.published:,}",
            f"{report.events:,} events, {twice:,} of them twice",
        ),
        ("delivered", f"≥ {report.delivered:,}", "what a killed process held comes again"),
        ("duplicates dropped", f"≥ {report.duplicates:,}", "copies, and what came again"),
        ("processes killed", f"{len(report.kills):,}", "by kill -9"),
        _window(report),
        ("applied", f"{found.applied:,}", "different (path, revision)"),
    ):
        table.add_row(name, number, note)
    for name, wrong, note in (
        _not_allowed(report),
        ("out of order", len(found.out_of_order), "revisions of each path rise by one"),
        ("lost", len(found.lost), ""),
        ("dead letters", report.dead_letters, ""),
        ("wrong files", len(found.differences), "the table against the history"),
    ):
        table.add_row(name, _good(wrong), note)
    return table


def _window(report: Report) -> tuple[str, str, str]:
    """Return what the kills between an effect and its record led to."""
    if report.once:
        note = "killed before their record; the effect was there"
        return "run again, no effect", f"{report.repetitions:,}", note
    explained = len(report.findings.explained)
    milliseconds = 1000 * report.longest_window
    note = f"killed before their record, within {milliseconds:.0f} ms"
    return (
        "second effects",
        f"{explained:,}",
        note if explained else "no kill fell between an effect and its record",
    )


def _not_allowed(report: Report) -> tuple[str, int, str]:
    """Return the second effects that break a promise."""
    if report.once:
        return "second effects", report.second_effects, "an effect and its id are one transaction"
    return "other second effects", len(report.findings.unexplained), "no kill explains them"

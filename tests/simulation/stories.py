"""The shortest story of something wrong: what befell its messages, in the words of the trace."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from simulation.ledger import Finding

_MOST_LINES = 16
#: Seconds before its first line in which what befell a process belongs to a story.
_BEFORE = 1.0
_PROCESS = re.compile(r"\bm\d+(?:\.\d+)?\b")
_SHARD = re.compile(r"\bshard (\d+)")


class Line(NamedTuple):
    """A line of the trace that tells of something."""

    at: float
    text: str

    def names(self, names: Iterable[str]) -> bool:
        """Tell whether one of these is among its words."""
        return not {*names}.isdisjoint(self.text.replace(",", " ").split())


def story(found: Finding, trace: Sequence[str]) -> list[str]:
    """Return what is wrong and how it came, up to where it was seen."""
    lines = _up_to(found, [*_told(trace)])
    mine = [line for line in lines if line.names(found.ids)]
    since = mine[0].at if mine else -1.0
    own = mine
    if found.key is not None and mine:
        of_key = f" key {found.key} "
        lines = lines[: lines.index(mine[-1]) + 1]
        own = [line for line in lines if line in mine or (line.at >= since and of_key in line.text)]
    concerned = {name for line in own for name in _PROCESS.findall(line.text)}
    concerned |= {*_PROCESS.findall(found.text)}
    concerned |= {name.partition(".")[0] for name in concerned}
    shards = {
        f".{n}" for text in (found.text, *(e.text for e in own)) for n in _SHARD.findall(text)
    }
    kept = [
        line
        for line in lines
        if line in own
        or (
            line.at >= since - _BEFORE
            and " key " not in line.text
            and _is_near(line, concerned, shards)
        )
    ]
    return [found.text, *_timed(kept or lines)]


def _told(trace: Iterable[str]) -> Iterable[Line]:
    """Return the lines but those that only tell of a call at a seam."""
    for line in trace:
        if line[0].isdigit():
            at, _, text = line.partition(" ")
            yield Line(float(at), text)


def _up_to(found: Finding, lines: Sequence[Line]) -> Sequence[Line]:
    """Return the lines up to the one that says so; all of them where it was seen at the end."""
    said = [number for number, line in enumerate(lines) if line.text == f"WRONG {found.text}"]
    return lines[: said[0]] if said else lines


def _is_near(line: Line, concerned: set[str], shards: set[str]) -> bool:
    """Tell whether it is of the change of shards, of these shards' leases, or a trouble."""
    subject, _, rest = line.text.partition(" ")
    if subject == "plan":
        return True
    if subject == "lease":
        return any(rest.partition(" ")[0].endswith(shard) for shard in shards)
    return subject in concerned


def _timed(lines: Sequence[Line]) -> list[str]:
    shown = lines[-_MOST_LINES:]
    began = shown[0].at if shown else 0.0
    left_out = len(lines) - len(shown)
    head = [f"  … {left_out} lines before"] if left_out else []
    return [*head, *(f"  {line.at - began:+8.3f} s  {line.text}" for line in shown)]

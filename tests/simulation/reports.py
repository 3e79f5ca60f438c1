"""What is shown of a schedule that went wrong, and how it is replayed."""

from __future__ import annotations

from simulation.schedule import Result

_MOST_LINES = 80


def told(course: str, result: Result) -> str:
    """Return what was found, the part of the trace that concerns it, and how to see it again."""
    lines = [f"{course}, seed {result.seed}:"]
    lines += [f"  {found.text}" for found in result.findings[:5]]
    if result.findings[5:]:
        lines.append(f"  … {len(result.findings)} in all")
    keys = {found.key for found in result.findings if found.key is not None}
    lines += ["", "what happened to its keys, and around them:", *shortened(result.trace, keys)]
    command = f".venv/bin/python -m pytest tests/simulation -k 'held and {course}'"
    lines += [
        "",
        "again, with all of the trace in the captured output:",
        f"  SIMULATION_SEED={result.seed} {command}",
    ]
    return "\n".join(lines)


def shortened(trace: list[str], keys: set[str]) -> list[str]:
    """Return the lines that tell of these keys, of everybody's troubles and of what is wrong."""
    names = [f" key {key} " for key in keys]
    kept = []
    for line in trace:
        if not line[0].isdigit():
            continue  # a call at a seam
        is_of_a_handler = " key " in line
        if "WRONG" in line or not is_of_a_handler or any(name in line for name in names):
            kept.append(line)
    left_out = len(kept) - _MOST_LINES
    return kept if left_out <= 0 else [f"… {left_out} lines", *kept[-_MOST_LINES:]]

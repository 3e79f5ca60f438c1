"""The first lines of a child process: find this package, and no other of its name.

Run by its path, with the descriptor of the control pipe as its argument. A user's own module
``worker`` that comes first on the path of modules is told in plain words instead of failing at the
next import.
"""

import json
import os
import sys
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def find_package() -> str:
    """Make ``import worker`` find this package. Return what stands in the way, or nothing."""
    try:
        import worker  # the point of this file
    except ImportError:
        sys.path.append(str(_PACKAGE.parent))
        import worker
    folders = [Path(folder).resolve() for folder in getattr(worker, "__path__", [])]
    if _PACKAGE in folders:
        return ""
    found = getattr(worker, "__file__", None) or ", ".join(map(str, folders))
    return (
        f"`import worker` finds {found} instead of the package of qworker in {_PACKAGE}:"
        " rename that module, or take its folder off PYTHONPATH"
    )


def main() -> None:
    """Become a child of the supervisor."""
    descriptor = int(sys.argv.pop())
    problem = find_package()
    if problem:
        line = json.dumps({"kind": "fatal", "exit_code": 3, "text": problem})
        os.write(descriptor, line.encode() + b"\n")
        sys.exit(3)
    from worker.supervisor.child import run_child  # found by now
    from worker.supervisor.service import load_service

    run_child(descriptor, load_service)


if __name__ == "__main__":
    main()

"""Runs a supervisor whose processes are stand-ins. The argument: the terms, as JSON."""

import json
import sys
from pathlib import Path

from worker.supervisor.supervisor import run_supervisor

CHILD = Path(__file__).with_name("child.py")

if __name__ == "__main__":
    terms = json.loads(sys.argv[1])
    options = {"terms": terms, "log_format": "text", "log_level": "debug"}
    sys.exit(run_supervisor(options, command=[sys.executable, "-P", str(CHILD)]))

"""``python -m worker.cli`` is ``qworker``."""

import sys

from worker.cli import main

sys.exit(main())

"""``python -m worker.cli`` is ``qworker``."""

import sys

from worker.cli.entry import main

sys.exit(main())

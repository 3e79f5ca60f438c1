"""What Python runs first in each process of a service under test.

The harness puts this folder, and that of the tests, on PYTHONPATH.
"""

import os

if "CHAOS_RECORDS" in os.environ:
    from chaos import clerk

    clerk.install()  # before the crash points: what is recorded is noted before the first of them
if "CHAOS_POINTS" in os.environ:
    from chaos import crashpoints

    crashpoints.install()
if "CHAOS_CLOCK" in os.environ:
    from chaos.faults import clock

    clock.install(os.environ)
if "CHAOS_GATE" in os.environ:
    from chaos import gate

    gate.install()

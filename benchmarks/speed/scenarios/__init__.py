"""Every scenario by its name, one file for each kind of question."""

from speed.scenarios import ends, growth, throughput
from speed.scenarios.bodies import BODIES
from speed.scenarios.failures import FAILURES
from speed.scenarios.footprint import FOOTPRINT
from speed.scenarios.history import HISTORY, IDS
from speed.scenarios.latency import LATENCY
from speed.scenarios.order import ORDER
from speed.scenarios.publishing import PUBLISHING
from speed.scenarios.stages import STAGES

SCENARIOS = {
    each.name: each
    for each in (
        *throughput.SCENARIOS,
        LATENCY,
        STAGES,
        PUBLISHING,
        ORDER,
        *growth.SCENARIOS,
        HISTORY,
        IDS,
        BODIES,
        FAILURES,
        FOOTPRINT,
        *ends.SCENARIOS,
    )
}

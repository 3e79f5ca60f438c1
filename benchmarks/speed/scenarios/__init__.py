"""Every scenario by its name, one file for each kind of question."""

from speed.scenarios import throughput

SCENARIOS = {each.name: each for each in (*throughput.SCENARIOS,)}

"""One mechanism of the product broken at a time: the simulation must notice each of them.

Each is a context manager; what it breaks stays broken for as long as the block runs. A mutation
that stays green shows a trouble, or a check, that the simulation lacks.
"""

from __future__ import annotations

from simulation import (
    broken_claims,
    broken_drains,
    broken_fates,
    broken_leases,
    broken_revisions,
)
from simulation.breaking import MUTATIONS, Mutation

#: Where they are written down.
PLACES = (broken_claims, broken_revisions, broken_fates, broken_drains, broken_leases)

__all__ = ["MUTATIONS", "Mutation"]

"""What the service has agreed upon, against what this supervisor was started with.

The agreement is a document in the lease store: the plan of generations, and whether the service is
consumed by one process at a time. The first supervisor of a service writes it; every other has to
fit, because two that go by different ones could consume the same messages.

Where there is none, the store may have forgotten it. So whoever went by one writes that again, and
a supervisor that knows of none writes what follows from the queues that the broker has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from worker.errors import ConfigurationError
from worker.sharding.generations import PLAN, Generation, Plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from worker.leases.base import View
    from worker.supervisor.control import Terms

#: The lease of whoever takes the steps from one generation to the next.
RESHARD = "reshard"


@dataclass(frozen=True, slots=True)
class Refused:
    """This supervisor cannot take part, and what the program exits with."""

    exit_code: int
    text: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """The agreement should be this, if its version is still that one."""

    version: int
    text: str


class Course:
    """Follows the agreement of one service for one of its members."""

    def __init__(self, terms: Terms, member: str) -> None:
        self._terms = terms
        self._member = member
        #: The plan that was followed last; None until the first.
        self._accepted: Plan | None = None
        #: The generations that the broker has; None while that is not known.
        self.found: Sequence[Generation] | None = None

    def asks(self, view: View) -> bool:
        """Tell whether there is no plan, and ``found`` has to be told before there can be."""
        return PLAN not in view.documents and self._accepted is None and self.found is None

    def forgotten(self, view: View) -> bool:
        """Tell whether the store forgot the plan that was followed, and so perhaps all else."""
        return PLAN not in view.documents and self._accepted is not None

    def follow(self, view: View) -> Plan | Proposal | Refused:
        """Return the plan to go by, or what stands in the way. Raises StoreCorrupt."""
        document = view.documents.get(PLAN)
        terms = self._terms
        if document is None:
            return self._first()
        plan = Plan.load(document.text)
        if self._accepted is not None and plan.progress < self._accepted.progress:
            # The store went back to what it was before; the broker did not.
            return Proposal(document.version, self._accepted.dump())
        if plan.single_active != terms.single_active:
            if self._accepted is None and is_free(view, self._member):
                changed = replace(plan, single_active=terms.single_active)
                return Proposal(document.version, changed.dump())
            return self._refuse(other_mode(terms.service, there=plan.single_active))
        if self._accepted is None and not terms.agree(plan):
            return self._refuse(other_shards(terms.service, terms.shards, plan))
        self._accepted = plan
        return plan

    def _first(self) -> Proposal | Refused:
        """Return the plan to begin with."""
        terms = self._terms
        if self._accepted is not None:
            return Proposal(0, self._accepted.dump())
        begun = self.found or (Generation(1, terms.shards or 1),)
        try:
            plan = Plan.found(begun, single_active=terms.single_active)
        except ConfigurationError as error:
            return self._refuse(str(error))
        if not terms.agree(plan):
            return self._refuse(other_shards(terms.service, terms.shards, plan))
        return Proposal(0, plan.dump())

    def leases(self, plan: Plan, view: View) -> list[str]:
        """Return the leases that the members share out.

        None for as long as somebody consumes in the other way: it took its lease right before the
        plan was changed, and drains.
        """
        generation = plan.consumed
        ways = [generation.lease], generation.leases
        ours, others = ways if plan.single_active else reversed(ways)
        owners = {view.leases[name].owner for name in others if name in view.leases}
        return ours if owners <= {self._member} else []

    def jobs(self, plan: Plan) -> list[str]:
        """Return the leases of what one member at a time does for all."""
        return [RESHARD] if plan.target is not None else []

    def _refuse(self, text: str) -> Refused:
        return Refused(ConfigurationError.exit_code, text)


def is_free(view: View, member: str = "") -> bool:
    """Whether nobody but ``member`` runs the service, so that it may go over to the other mode."""
    others = [*view.members, *(lease.owner for lease in view.leases.values())]
    return {member}.issuperset(others)


def other_mode(service: str, *, there: bool) -> str:
    """Return what to tell somebody who starts a service in another mode than it runs in."""
    here, other = ("without", "with") if there else ("with", "without")
    return (
        f"{service} runs {other} --single-active elsewhere: start it in the same way here, or stop"
        f" it everywhere before it starts {here} that"
    )


def other_shards(service: str, asked: int, plan: Plan) -> str:
    """Return what to tell somebody who asks for another number of shards than there is."""
    number, verb = plan.current.shards, "is" if asked == 1 else "are"
    told = (
        f"{service} has {plan.current.counted}, and {asked} {verb} asked for: start with --shards"
        f" {number}. To change their number, while it runs: qworker reshard --to {asked}"
    )
    if plan.target is not None:
        told += f" (it is on its way to {plan.target.counted})"
    return told

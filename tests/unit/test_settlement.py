"""Settlement acknowledges exactly what is finished, each once, in as few frames as it can."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from worker.settlement import Acks, Settlement

SLACK = 3


def settlement(delivered: int) -> Settlement:
    """Return a settlement to which the tags 1 to ``delivered`` were delivered."""
    made = Settlement()
    for tag in range(1, delivered + 1):
        made.deliver(tag)
    return made


def test_what_is_finished_without_a_gap_goes_out_in_one_frame() -> None:
    tags = settlement(5)
    for tag in (2, 1, 3):
        tags.finish(tag)

    assert tags.take(SLACK) == Acks(upto=3, singles=[])


def test_nothing_finished_is_nothing_to_send() -> None:
    assert settlement(5).take() == Acks(upto=None, singles=[])


def test_what_lies_behind_a_gap_waits() -> None:
    tags = settlement(5)
    tags.finish(2)

    assert tags.take(SLACK) == Acks(upto=None, singles=[])
    tags.finish(1)
    assert tags.take(SLACK) == Acks(upto=2, singles=[])


def test_a_long_hold_does_not_use_up_the_prefetch() -> None:
    tags = settlement(10)
    for tag in range(2, 6):
        tags.finish(tag)

    assert tags.take(SLACK) == Acks(upto=None, singles=[2, 3, 4, 5])


def test_the_frame_after_a_gap_does_not_name_what_went_out_one_by_one() -> None:
    tags = settlement(6)
    for tag in (2, 3):
        tags.finish(tag)
    assert tags.take(1).singles == [2, 3]
    tags.finish(1)

    assert tags.take(1) == Acks(upto=1, singles=[])
    tags.finish(4)
    assert tags.take(1) == Acks(upto=4, singles=[])


def test_a_drain_takes_everything_that_is_finished() -> None:
    tags = settlement(5)
    for tag in (1, 3, 5):
        tags.finish(tag)

    assert tags.take() == Acks(upto=1, singles=[3, 5])
    assert tags.unsettled == 2


class Broker:
    """What a broker makes of acks: it closes the channel for one that it does not expect."""

    def __init__(self) -> None:
        self.unacked: set[int] = set()

    def take(self, acks: Acks) -> set[int]:
        """Return the tags that ``acks`` settle."""
        settled: set[int] = set()
        if acks.upto is not None:
            assert acks.upto in self.unacked, "PRECONDITION_FAILED - unknown delivery tag"
            settled |= {tag for tag in self.unacked if tag <= acks.upto}
        for tag in acks.singles:
            assert tag in self.unacked - settled, "PRECONDITION_FAILED - unknown delivery tag"
            settled.add(tag)
        self.unacked -= settled
        return settled


class SettlementMachine(RuleBasedStateMachine):
    """Deliveries, in order, that finish in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags = Settlement()
        self.broker = Broker()
        self.delivered = 0
        self.running: set[int] = set()
        self.finished: set[int] = set()

    @rule(number=st.integers(1, 5))
    def deliveries_come(self, number: int) -> None:
        for _ in range(number):
            self.delivered += 1
            self.tags.deliver(self.delivered)
            self.running.add(self.delivered)
            self.broker.unacked.add(self.delivered)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def one_is_finished(self, data: st.DataObject) -> None:
        tag = data.draw(st.sampled_from(sorted(self.running)))
        self.running.remove(tag)
        self.finished.add(tag)
        self.tags.finish(tag)

    @rule(slack=st.integers(0, 5))
    def a_tick_ends(self, slack: int) -> None:
        settled = self.broker.take(self.tags.take(slack))
        assert settled <= self.finished, "acknowledged what is not finished"
        self.finished -= settled
        first_gap = min(self.running, default=self.delivered + 1)
        assert all(tag > first_gap for tag in self.finished), "held back without need"
        assert len(self.finished) <= slack

    @invariant()
    def the_counts_are_right(self) -> None:
        assert self.tags.unsettled == len(self.broker.unacked)
        assert self.tags.finished == len(self.finished)

    def teardown(self) -> None:
        for tag in self.running:
            self.tags.finish(tag)
        self.broker.take(self.tags.take())
        assert not self.broker.unacked


SettlementMachine.TestCase.settings = settings(
    max_examples=200, stateful_step_count=50, deadline=None, derandomize=True
)
TestAgainstABroker = SettlementMachine.TestCase

"""What the shop tells of. A library that it shares with whoever listens."""

from worker import Event


class PointsEarned(Event, name="customer.points_earned", key="customer"):
    customer: str
    #: Counts the events of a customer, so that the story can look at the order.
    number: int
    points: int

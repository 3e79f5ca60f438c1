"""What was set aside finds its shard after the number of shards was changed."""

from __future__ import annotations

from collections import Counter

from acceptance.commands import depth
from acceptance.conftest import long_on
from acceptance.desk import PATIENCE, Desk, step
from waiting import until

ALL = ["k0-0", "k1-1", "k2-2", "k3-3", "k4-4"]


def test_dead_letters_return_to_the_shards_that_have_their_keys_now(desk: Desk) -> None:
    desk.reshard(3)
    desk.mend()

    assert {letter["queue"] for letter in desk.dlq("list", "--json").json} <= {
        "once.g1.0", "once.g1.1",
    }  # fmt: skip
    assert "would go to once.g2." in desk.dlq("replay", "--dry-run").out
    assert desk.dlq("replay").out == "5 messages sent back\n"

    until(lambda: len(desk.effects("count")) == 6, PATIENCE, "all are done")
    desk.stop()
    assert Counter(desk.effects("count")) == Counter([*ALL, "k9-9"])
    assert Counter(desk.effects("observe")) == Counter([*ALL, "k9-9"])
    assert desk.dead() == 0


@long_on("servers")
def test_dead_letters_that_return_are_where_new_messages_of_their_keys_come(desk: Desk) -> None:
    desk.reshard(3)
    desk.stop()

    desk.dlq("replay")
    before = [depth(desk.broker, f"once.g2.{shard}") for shard in range(3)]
    desk.publish(*(step(f"k{number}", number + 10) for number in range(5)))

    assert sum(before) == 5
    assert [depth(desk.broker, f"once.g2.{shard}") for shard in range(3)] == [2 * n for n in before]


def test_dead_letters_return_while_the_shards_change(desk: Desk) -> None:
    """Nobody runs, so that the change stays where it is: the old queues are published to still."""
    desk.stop()
    desk.run("reshard", "--to", "3", "--no-wait")

    desk.dlq("replay", "k0-0", "k1-1")
    assert sum(depth(desk.broker, f"once.g1.{shard}") for shard in range(2)) == 2

    desk.mend()
    desk.serve(3)
    desk.reshard(3)
    desk.dlq("replay")
    until(lambda: len(desk.effects("count")) == 6, PATIENCE, "all are done")
    desk.stop()
    assert Counter(desk.effects("count")) == Counter([*ALL, "k9-9"])
    assert Counter(desk.effects("observe")) == Counter([*ALL, "k9-9"])


def test_a_key_stays_parked_in_its_order_and_returns_so(patient: Desk) -> None:
    patient.reshard(3)
    patient.publish(step("k", 4), step("other", 1), step("k", 5))
    until(lambda: patient.parked() == 5, PATIENCE, "what comes to the new shards is parked behind")
    assert patient.listed("--parked") == [f"k-{number}" for number in range(1, 6)]
    assert patient.of_k() == ["k-0"]
    patient.mend()

    result = patient.dlq("replay", "--key", "k")

    assert "5 parked messages sent back" in result.out
    assert result.out.endswith("'k' is free\n")
    patient.publish(step("k", 6))
    until(lambda: "k-6" in patient.of_k(), PATIENCE, "the key is handled as before")
    assert patient.of_k() == [f"k-{number}" for number in range(7)]
    assert patient.parked() == 0


@long_on("servers")
def test_a_key_that_fails_again_after_the_change_stays_parked(patient: Desk) -> None:
    patient.reshard(3)

    result = patient.dlq("replay", "--key", "k", code=1)

    assert "'k' stays parked: k-1 (test.step) failed again" in result.err
    until(lambda: patient.parked() == 3, PATIENCE, "all are parked again")
    patient.mend()
    patient.dlq("replay", "--key", "k")
    assert patient.of_k() == [f"k-{number}" for number in range(4)]


@long_on("servers")
def test_a_key_whose_messages_were_purged_is_freed_in_its_new_shard(patient: Desk) -> None:
    patient.reshard(3)
    patient.dlq("purge", "--parked", "--key", "k", "--yes")

    assert "'k' is free" in patient.dlq("replay", "--key", "k").out

    patient.publish(step("k", 4))
    until(lambda: patient.of_k() == ["k-0", "k-4"], PATIENCE, "the key is handled as before")


@long_on("servers")
def test_what_is_sent_back_when_the_change_begins_comes_first(patient: Desk) -> None:
    """It waits in the old queues, and goes before what the new ones get meanwhile."""
    patient.stop()
    patient.mend()
    patient.dlq("replay", "--key", "k", "--wait", "0.1", code=1)
    patient.publish(step("k", 4))
    patient.run("reshard", "--to", "3", "--no-wait")
    patient.serve(3)
    patient.publish(step("k", 5))
    patient.reshard(3)

    patient.dlq("replay", "--key", "k", code=None)
    patient.dlq("replay", "--key", "k")
    until(lambda: "k-5" in patient.of_k(), PATIENCE, "all are done")
    assert patient.of_k() == [f"k-{number}" for number in range(6)]


def test_a_key_returns_in_order_while_the_shards_change(patient: Desk) -> None:
    patient.mend()
    stream = patient.start("publish", "-")

    changing = patient.start("reshard", "--to", "3")
    returning = patient.start("dlq", "replay", "--key", "k")
    # Slowly, so that some come to the old queues, some to both, some to the new ones.
    patient.trickle(stream, (step("k", number) for number in range(4, 200)), pause=0.02)
    out, err = changing.communicate(timeout=PATIENCE)
    assert changing.returncode == 0, (out, err)
    returning.communicate(timeout=PATIENCE)

    patient.dlq("replay", "--key", "k")  # what it may have left over
    until(lambda: len(patient.of_k()) == 200, PATIENCE, "all are done")
    assert patient.of_k() == [f"k-{number}" for number in range(200)]
    assert patient.parked() == 0

"""Topic patterns select the same names here as on the broker."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import chain, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import App
from worker.routing import is_pattern, matches, overlap


@pytest.mark.parametrize(
    ("pattern", "name", "taken"),
    [
        ("user.deposited", "user.deposited", True),
        ("user.deposited", "user.withdrew", False),
        ("user.*", "user.deposited", True),
        ("user.*", "user", False),
        ("user.*", "user.account.opened", False),
        ("*.deposited", "user.deposited", True),
        ("*", "user", True),
        ("*", "", False),
        ("#", "user.deposited", True),
        ("#", "", True),
        ("user.#", "user", True),
        ("user.#", "user.account.opened", True),
        ("user.#", "order.placed", False),
        ("#.opened", "opened", True),
        ("#.opened", "user.account.opened", True),
        ("user.#.opened", "user.opened", True),
        ("user.#.opened", "user.a.b.opened", True),
        ("#.#", "", True),
        ("#.*", "", False),
        ("#.*", "a", True),
        ("user..opened", "user..opened", True),
        ("user.*.opened", "user..opened", True),
        ("us*", "user", False),
        ("us*", "us*", True),
    ],
)
def test_a_pattern_takes_what_rabbitmq_takes(pattern: str, name: str, taken: bool) -> None:
    assert matches(pattern, name) is taken


words = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=6)
names = st.lists(st.sampled_from(["a", "b", "c"]), max_size=6)


@lru_cache
def by_definition(pattern: tuple[str, ...], name: tuple[str, ...]) -> bool:
    """AMQP's definition, as a recursion that tries everything."""
    if not pattern:
        return not name
    if pattern[0] == "#":
        return any(by_definition(pattern[1:], name[skip:]) for skip in range(len(name) + 1))
    return bool(name) and pattern[0] in ("*", name[0]) and by_definition(pattern[1:], name[1:])


@given(words, names)
def test_every_pattern_takes_what_the_definition_says(pattern: list[str], name: list[str]) -> None:
    taken = matches(".".join(pattern), ".".join(name))

    assert taken is by_definition(tuple(pattern), tuple(name))


#: Every name that tells patterns of up to three of these words apart.
NAMES = [".".join(name) for name in chain(*(product("abx", repeat=n) for n in range(1, 7)))]
few_words = st.lists(st.sampled_from(["a", "b", "*", "#"]), min_size=1, max_size=3)


@given(few_words, few_words)
def test_patterns_overlap_where_a_name_is_taken_by_both(one: list[str], two: list[str]) -> None:
    pattern, other = ".".join(one), ".".join(two)
    shared = any(matches(pattern, name) and matches(other, name) for name in ["", *NAMES])
    assert overlap(pattern, other) == overlap(other, pattern) == shared


def test_a_pattern_of_many_wildcards_is_quick() -> None:
    assert not matches("#." * 200 + "end", "a." * 400 + "a")


@pytest.mark.parametrize("name", ["user.*", "#", "user.#.opened"])
def test_a_name_with_a_wildcard_word_is_a_pattern(name: str) -> None:
    assert is_pattern(name)


@pytest.mark.parametrize("name", ["user.deposited", "us*r", "a#", ""])
def test_a_star_within_a_word_is_no_wildcard(name: str) -> None:
    assert not is_pattern(name)


def test_an_app_routes_to_every_handler_that_observes_a_name_in_order_of_registration() -> None:
    app = App("bank")
    for pattern in ("user.deposited", "user.*", "#", "order.placed"):
        app.on(pattern, name=re.sub(r"\W", "_", f"on_{pattern}"))(lambda event: None)

    assert [h.name for h in app.route("user.deposited")] == [
        "on_user_deposited",
        "on_user__",
        "on__",
    ]
    assert [h.name for h in app.route("weather.changed")] == ["on__"]


def test_routes_are_remembered_without_bound_on_the_names_from_outside() -> None:
    app = App("bank")
    app.on("user.*", name="audit")(lambda event: None)
    for number in range(20_000):
        assert app.route(f"stranger.{number}") == ()

    assert [h.name for h in app.route("user.last")] == ["audit"]

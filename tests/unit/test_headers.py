"""What ends a broker's connection is refused before it is sent."""

from __future__ import annotations

from typing import Any

import pytest

from worker import Event
from worker.codec import Codec
from worker.config import Settings
from worker.headers import check_headers

NAN, INFINITE = float("nan"), float("-inf")


class Deposited(Event, name="user.deposited"):
    user_id: str = ""


@pytest.mark.parametrize(
    "headers",
    [{"rate": NAN}, {"rate": INFINITE}, {"of": [1, [NAN]]}, {"of": {"rate": (1.0, INFINITE)}}],
    ids=repr,
)
def test_numbers_that_are_not_finite(headers: dict[str, Any]) -> None:
    (name,) = headers
    with pytest.raises(ValueError, match=f"header '{name}' is .* not finite"):
        check_headers(headers)
    with pytest.raises(ValueError, match=f"user.deposited: the header '{name}' is"):
        Codec.of("bank", Settings()).encode(Deposited(), headers=headers)


@pytest.mark.parametrize("value", ["queue", [1], ("queue",), {}], ids=repr)
@pytest.mark.parametrize("name", ["CC", "BCC"])
def test_copies_that_are_no_list_of_texts(name: str, value: object) -> None:
    with pytest.raises(TypeError, match=f"header {name} is"):
        check_headers({name: value})


def test_everything_else() -> None:
    check_headers({"a": 1.5, "b": [1, {"c": None}], "d": "nan", "CC": ["queue"], "BCC": None})

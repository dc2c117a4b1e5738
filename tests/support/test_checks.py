import re
from dataclasses import dataclass
from typing import Any

import pytest

from onnxpq.errors import ConfigError
from onnxpq.support.checks import choice, integer, real, sentence


@dataclass
class Knob:
    turn: Any


def refused(wanted: str, value: object) -> str:
    return "^" + re.escape(f"The 'turn' parameter of Knob must be {wanted}. Got {value!r} instead.") + "$"


def test_the_sentence() -> None:
    assert re.match(refused("a number", "x"), sentence(Knob(0), "turn", "a number", "x"))


@pytest.mark.parametrize("bad", [0, 5, 2.0, True, "2", None])
def test_integers(bad: Any) -> None:
    integer(Knob(1), "turn", 1, 4)
    integer(Knob(4), "turn", 1, 4)
    with pytest.raises(ConfigError, match=refused("an integer in [1, 4]", bad)):
        integer(Knob(bad), "turn", 1, 4)


@pytest.mark.parametrize("bad", [-0.1, 4.5, float("nan"), False, "2", None])
def test_numbers(bad: Any) -> None:
    real(Knob(0), "turn", 0, 4)
    real(Knob(4.0), "turn", 0, 4)
    with pytest.raises(ConfigError, match=refused("a number in [0, 4]", bad)):
        real(Knob(bad), "turn", 0, 4)


def test_names() -> None:
    choice(Knob("a"), "turn", ("a", "b"))
    with pytest.raises(ConfigError, match=refused("one of 'a', 'b'", "c")):
        choice(Knob("c"), "turn", ("a", "b"))

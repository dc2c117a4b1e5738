"""The axes that users name."""

import re

import pytest

from onnxpq.config import Config
from onnxpq.config.axes import BatchAxes, parse_axes
from onnxpq.errors import ConfigError

FORMS = {
    None: BatchAxes(),
    1: BatchAxes(1),
    "1": BatchAxes(1),
    "past_*=1": BatchAxes(None, (("past_*", 1),)),
    " past_*=1 , 0, a=b=2": BatchAxes(0, (("past_*", 1), ("a=b", 2))),
    "none": BatchAxes(whole=True),
}


@pytest.mark.parametrize("value", FORMS)
def test_forms(value: int | str | None) -> None:
    assert parse_axes(value) == FORMS[value]
    assert Config(batch_axis=value).batch_axes == FORMS[value]


@pytest.mark.parametrize("value", [-1, "-1", "x=", "x", "", "1,,2", True, 1.0, "x=1=y"])
def test_other_forms_are_refused(value: object) -> None:
    message = f"The 'batch_axis' parameter of Config must be an axis such as 1, .* Got {re.escape(repr(value))} instead"
    with pytest.raises(ConfigError, match=message):
        Config(batch_axis=value)  # type: ignore[arg-type]


def test_the_axis_of_an_array() -> None:
    axes = parse_axes("1,past_*=2,past_0=0")
    assert [axes.of(name, 3) for name in ("x", "past_0", "past_1")] == [1, 2, 2]  # the first match counts
    # Lengths [N] beside steps [T, N, C].
    assert axes.of("lengths", 1) == 0
    assert BatchAxes().of("x", 3) is None


def test_a_name_that_nothing_has_is_refused() -> None:
    parse_axes("past_*=1,y=0").check(["past_0", "y"])
    with pytest.raises(
        ConfigError, match=r"The batch axis of 'pats_\*' was given, which matches no input: .* 'ids', 'y'"
    ):
        parse_axes("pats_*=1").check(["ids", "y"])

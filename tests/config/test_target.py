import dataclasses
import re
from typing import Any

import pytest

from onnxpq.config.target import TargetConfig
from onnxpq.errors import ConfigError


def test_without_limits_there_is_no_target() -> None:
    assert not TargetConfig().is_set
    assert not TargetConfig(metric="mse", attempts=2, max_codewords=16).is_set
    for name, value in (("ratio", 2), ("fc_ratio", 2.5), ("size", 1), ("max_drop", 0.0)):
        assert TargetConfig(**{name: value}).is_set
        assert TargetConfig(**{name: value}).limits_bytes == (name != "max_drop")


@pytest.mark.parametrize(
    ("name", "wanted", "bad"),
    [
        ("ratio", "a number in [1, 1e+06]", 0.5),
        ("fc_ratio", "a number in [1, 1e+06]", "2"),
        ("size", f"an integer in [1, {2**50}]", 0),
        ("size", f"an integer in [1, {2**50}]", "2MB"),
        ("max_drop", "a number in [0, 1]", 1.5),
        ("max_drop", "a number in [0, 1]", -0.1),
        ("metric", "one of 'auto', 'accuracy', 'mse', 'agreement', or 'module:function'", "f1"),
        ("metric", "one of 'auto', 'accuracy', 'mse', 'agreement', or 'module:function'", "module:"),
        ("metric", "one of 'auto', 'accuracy', 'mse', 'agreement', or 'module:function'", None),
        ("attempts", "an integer in [1, 100]", 0),
        ("max_codewords", "an integer in [16, 256]", 8),
    ],
)
def test_bounds(name: str, wanted: str, bad: Any) -> None:
    message = f"The '{name}' parameter of TargetConfig must be {wanted}. Got {bad!r} instead."
    with pytest.raises(ConfigError, match="^" + re.escape(message) + "$"):
        TargetConfig(**{name: bad})


def test_every_setting_has_a_test_of_its_bounds() -> None:
    bounds = next(mark for mark in test_bounds.pytestmark if mark.name == "parametrize").args[1]
    assert {name for name, _, _ in bounds} == {entry.name for entry in dataclasses.fields(TargetConfig)}


@pytest.mark.parametrize(("one", "other"), [("ratio", "fc_ratio"), ("ratio", "size"), ("fc_ratio", "size")])
def test_two_sizes_contradict_each_other(one: str, other: str) -> None:
    with pytest.raises(
        ConfigError, match=f"^'{one}' and '{other}' of TargetConfig both say how large the result may be"
    ):
        TargetConfig(**{one: 2, other: 3})
    assert TargetConfig(**{one: 2, "max_drop": 0.1}).is_set

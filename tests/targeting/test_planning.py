"""The planner on curves worked by hand."""

import math

import pytest
from hand_made_curves import OVERHEAD, curve, planner, weigh
from hypothesis import given
from hypothesis import strategies as st

from onnxpq.config.target import TargetConfig
from onnxpq.errors import TargetError
from onnxpq.targeting import planning
from onnxpq.targeting.planning import Planner


def test_bytes_go_where_the_influence_is() -> None:
    plan = planner(0.5, 0.001).within_layers(3400)
    assert plan is not None
    assert {name: entry.in_features for name, entry in plan.layouts.items()} == {"W0": 3200, "W1": 200}
    assert plan.layer_bytes == 3400
    assert plan.cost == pytest.approx(0.5 / 32**2 + 0.001 / 4)


def test_bytes_go_where_training_does_not_help() -> None:
    alike = Planner([curve("W0"), curve("W1")], weigh).within_layers(1000)
    unlike = Planner([curve("W0"), curve("W1", gain=64.0)], weigh).within_layers(1000)
    assert alike is not None
    assert unlike is not None
    assert {name: entry.in_features for name, entry in unlike.layouts.items()} == {"W0": 800, "W1": 200}
    assert alike.cost < unlike.cost == pytest.approx(1 / 64 + 1 / 4), "which is what it is without training"


@given(st.integers(1, 9000))
def test_a_limit_of_the_file_is_kept_to_the_byte(limit: int) -> None:
    plans = planner(0.5, 0.1)
    plan = plans.within_file(limit)
    if plan is None:
        assert plans.file_bytes(plans.smallest) > limit
        return
    assert plans.file_bytes(plan) <= limit
    # A better one would not fit.
    better = plans.with_cost(plan.cost * 0.999)
    assert better is plan or better.cost >= plan.cost or plans.file_bytes(better) > limit


def test_the_fewest_bytes_of_a_cost() -> None:
    plans = planner(1.0)
    assert plans.with_cost(1 / 16).layer_bytes == 400
    assert plans.with_cost(1 / 17).layer_bytes == 800
    assert plans.with_cost(10).layer_bytes == 100
    assert plans.with_cost(0).layer_bytes == plans.largest.layer_bytes == 3200


def test_what_is_expected_falls_with_the_bytes() -> None:
    points = planner(1.0, 0.1).expected()
    assert [size for size, _ in points] == sorted({size for size, _ in points})
    assert [error for _, error in points] == sorted({error for _, error in points}, reverse=True)
    assert points[0] == (OVERHEAD + 200, pytest.approx(math.sqrt(1.1)))
    assert points[-1] == (OVERHEAD + 6400, pytest.approx(math.sqrt(1.1) / 32))


# Limits


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (TargetConfig(ratio=5), 800),  # 2000 bytes, of them 1000 not in the layers
        (TargetConfig(size=2000), 800),
        (TargetConfig(size=1800), 800),
        (TargetConfig(size=1799), 400),
        (TargetConfig(fc_ratio=10), 800),  # 8000 / 10
        (TargetConfig(max_drop=0.1), 3200),
    ],
)
def test_the_bytes_that_a_target_allows(target: TargetConfig, expected: int) -> None:
    assert planning.limit(planner(1.0), target, 10_000, 8000).layer_bytes == expected


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            TargetConfig(ratio=20),
            r"^Out of reach: a file at least 20 times smaller\. .* the file has 1,100 bytes, 9\.09",
        ),
        (
            TargetConfig(size=900),
            r"^Out of reach: a file of at most 900 bytes\. .* of which 1,000 are all that",
        ),
        (
            TargetConfig(fc_ratio=81, max_drop=0.1),
            r"^Out of reach: layers at least 81 times smaller\. .* the layers have 100 bytes, 80\.00 times smaller",
        ),
    ],
)
def test_impossible_sizes_are_refused_with_what_is_possible(target: TargetConfig, message: str) -> None:
    with pytest.raises(TargetError, match=message) as caught:
        planning.limit(planner(1.0), target, 10_000, 8000)
    assert caught.value.result is None


def test_what_is_asked_for_in_words() -> None:
    assert planning.asked(TargetConfig(ratio=16, max_drop=0.005), "accuracy") == (
        "a file at least 16 times smaller and accuracy at most 0.5 % lower"
    )
    assert planning.asked(TargetConfig(fc_ratio=32), None) == "layers at least 32 times smaller"
    assert planning.asked(TargetConfig(size=2_000_000, max_drop=0.1), "mse") == (
        "a file of at most 2,000,000 bytes and a squared error at most 10 % higher"
    )
    assert planning.asked(TargetConfig(max_drop=0.05), "relative mse") == (
        "a squared error of at most 5 % of the output's mean square"
    )

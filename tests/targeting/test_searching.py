"""The planner on curves worked by hand, and the search against a model that only exists as a formula."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpq.config.target import TargetConfig
from onnxpq.errors import TargetError
from onnxpq.pq.layout import Layout
from onnxpq.quantization.sensitivity import Curve
from onnxpq.support.figures import Interval
from onnxpq.targeting import powerlaw, searching
from onnxpq.targeting.searching import Found, Layouts, Planner, Work
from onnxpq.verification.scoring import Drop

OVERHEAD = 1000
SIZES = (100, 200, 400, 800, 1600, 3200)


def layout(size: int) -> Layout:
    """A layout that stands for a number of bytes (its `in_features`)."""
    return Layout(1, size, 1, 16, 1)


def curve(name: str, influence: float = 1.0, gain: float = 1.0) -> Curve:
    """A weight whose error falls with the square of its bytes."""
    errors = tuple((SIZES[0] / size) ** 2 for size in SIZES)
    return Curve(name, tuple(map(layout, SIZES)), SIZES, errors, influence, gain)


def layer_bytes(layouts: Layouts) -> int:
    return sum(entry.in_features for entry in layouts.values())


def weigh(layouts: Layouts) -> int:
    # The digits of the sizes differ by a few bytes.
    return OVERHEAD + layer_bytes(layouts) + sum(len(str(entry.in_features)) - 3 for entry in layouts.values())


def planner(*influences: float, gain: float = 1.0) -> Planner:
    return Planner([curve(f"W{i}", influence, gain) for i, influence in enumerate(influences or (0.01, 0.01))], weigh)


# The planner


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
    assert searching.limit(target, planner(1.0), 10_000, 8000).layer_bytes == expected


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
        searching.limit(target, planner(1.0), 10_000, 8000)
    assert caught.value.result is None


def test_what_is_asked_for_in_words() -> None:
    assert searching.asked(TargetConfig(ratio=16, max_drop=0.005), "accuracy") == (
        "a file at least 16 times smaller and accuracy at most 0.5 % lower"
    )
    assert searching.asked(TargetConfig(fc_ratio=32), None) == "layers at least 32 times smaller"
    assert searching.asked(TargetConfig(size=2_000_000, max_drop=0.1), "mse") == (
        "a file of at most 2,000,000 bytes and a squared error at most 10 % higher"
    )
    assert searching.asked(TargetConfig(max_drop=0.05), "relative mse") == (
        "a squared error of at most 5 % of the output's mean square"
    )


# The search


Losses = Callable[[int, float], float]
"""What layers of so many bytes lose after a share of the training."""


def run(
    target: TargetConfig,
    drop: Losses,
    *,
    trains: bool = True,
    error: float = 0.0,
    plans: Planner | None = None,
) -> tuple[Found[tuple[int, float]], list[tuple[int, float]]]:
    """Search where layers of so many bytes lose ``drop(bytes, share)``, with so large a standard error."""
    plans, made = plans or planner(gain=searching.TRAINING_GAIN if trains else 1.0), []

    def make(layouts: Layouts, share: float) -> tuple[int, float]:
        made.append((layer_bytes(layouts), share))
        return made[-1]

    def judge(model: tuple[int, float]) -> Drop:
        value = drop(*model)
        return Drop("accuracy", Interval(value, value, value + 1.959963984540054 * error), 0.1, 100)

    top = searching.limit(target, plans, 10_000, 8000)
    return searching.search(target, plans, top, Work(make, judge, trains)), made


def wholly(made: list[tuple[int, float]]) -> list[int]:
    """Sizes of those that got all of the training."""
    return [size for size, share in made if share == 1]


def falling(scale: float, gain: float = 3.0) -> Losses:
    """A drop that falls with the bytes, a third as large once trained, and between these after a brief training."""
    return lambda size, share: scale / size / {0.0: 1.0, searching.BRIEF: gain**0.5, 1.0: gain}[share]


def test_a_size_takes_one_model() -> None:
    found, made = run(TargetConfig(ratio=5), falling(1e6))
    assert made == [(800, 1)]
    assert found.made == (800, 1)
    assert found.trials[0].met
    assert found.trials[0].file_bytes <= 2000
    assert run(TargetConfig(ratio=5), falling(1e6), trains=False)[1] == [(800, 0)]


def test_without_data_a_size_is_all_that_is_checked() -> None:
    plans = planner()
    target = TargetConfig(size=3000)
    work: Work[Layouts] = Work(lambda layouts, _share: layouts, None, False)
    found = searching.search(target, plans, searching.limit(target, plans, 10_000, 8000), work)
    assert len(found.trials) == 1
    assert (found.trials[0].drop, found.trials[0].relative_error, found.trials[0].met) == (None, None, True)
    assert weigh(found.made) <= 3000


@pytest.mark.parametrize("scale", [1, 5, 20, 60])
def test_the_smallest_that_keeps_to_the_drop_is_found(scale: float) -> None:
    limit = 0.01
    found, made = run(TargetConfig(max_drop=limit, attempts=6), falling(scale))
    size, share = found.made
    assert share == 1
    assert falling(scale)(size, 1) <= limit
    needed = next(s for s in sorted({a + b for a in SIZES for b in SIZES}) if falling(scale)(s, 1) <= limit)
    assert size <= 2 * needed
    assert len(wholly(made)) <= 6
    assert len([size for size, share in made if share == searching.BRIEF]) <= searching.BRIEFS
    assert found.trials[found.chosen].layer_bytes == size
    # All that was tried is there, in order.
    assert [(trial.layer_bytes, trial.trained) for trial in found.trials] == made


def test_without_training_the_smallest_is_found_too() -> None:
    found, made = run(TargetConfig(max_drop=0.01), falling(10), trains=False)
    assert found.made[0] == 1200
    assert not any(share for _, share in made)
    assert len(made) <= 1 + 2 * searching.SCANS


@pytest.mark.parametrize("attempts", [1, 2, 3])
def test_training_that_helps_nothing_ends_where_quantization_alone_did(attempts: int) -> None:
    found, made = run(TargetConfig(max_drop=0.01, attempts=attempts), falling(20, gain=1))
    assert len(wholly(made)) <= attempts
    assert 20 / found.made[0] <= 0.01
    assert found.trials[found.chosen].met


FINE = tuple(sorted({round(100 * 1.02**step) for step in range(180)}))
"""Sizes so near to one another that none is missed for want of a choice."""


def fine(power: float, gain: float = 1.0) -> Planner:
    """A layer of these sizes, whose squared error falls with a power of them."""
    errors = tuple((FINE[0] / size) ** power for size in FINE)
    return Planner([Curve("W", tuple(map(layout, FINE)), FINE, errors, 1.0, gain)], weigh)


@pytest.mark.parametrize("power", [2.0, 4.0])
@pytest.mark.parametrize("growth", [0.5, 0.75, 1.0])
@pytest.mark.parametrize("gain", [1.0, 1.5, 4.0])
def test_where_errors_do_as_expected_one_training_suffices(power: float, growth: float, gain: float) -> None:
    """The drop is a power of the squared error, and the rest of a training brings what is expected of it."""
    briefly = gain ** (1 / (1 + powerlaw.REST))

    def drop(size: int, share: float) -> float:
        lower = {0.0: 1.0, searching.BRIEF: briefly, 1.0: gain}[share]
        return 0.01 * float((1000 / size) ** power / lower) ** growth

    found, made = run(TargetConfig(max_drop=0.01), drop, plans=fine(power, searching.TRAINING_GAIN))
    needed = min(size for size in FINE if drop(size, 1.0) <= 0.01)
    assert needed <= found.made[0] <= 1.1 * searching.CLOSE * needed
    assert found.made[1] == 1
    assert len(wholly(made)) == 1
    assert len([share for _, share in made if share == searching.BRIEF]) <= 2
    assert len([share for _, share in made if share == 0]) <= 1 + searching.SCANS


@pytest.mark.parametrize("power", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("bend", [0.0, 0.5])
def test_without_training_the_result_is_known_to_be_nearly_the_smallest(power: float, bend: float) -> None:
    """Where the drop does not quite grow as a power, too."""

    def drop(size: int, share: float) -> float:
        error = (1000 / size) ** power
        return 0.01 * error**0.75 * (1 + bend * math.sin(math.log(error)))

    found, made = run(TargetConfig(max_drop=0.01), drop, trains=False, plans=fine(power))
    size = found.made[0]
    assert any(size / searching.CLOSE**2 <= other < size and drop(other, 0) > 0.01 for other, _ in made)
    assert len(made) <= 1 + 2 * searching.SCANS


def test_after_a_miss_the_last_training_is_where_there_is_room() -> None:
    """That is not as far back as where less training did, which is 1.3 times as large."""
    lower, misses = {0.0: 1.0, searching.BRIEF: 3.0, 1.0: 6.0}, iter([1.15])

    def drop(size: int, share: float) -> float:
        kept = 0.01 * float((1000 / size) ** 2 / lower[share]) ** 0.75
        return kept * next(misses, 1.0) if share == 1 else kept

    found, made = run(TargetConfig(max_drop=0.01), drop, plans=fine(2.0, searching.TRAINING_GAIN))
    _, last = wholly(made)
    safe = min(trial.layer_bytes for trial in found.trials if trial.trained < 1 and trial.met)
    assert found.made == (last, 1)
    assert last < safe / 1.2


def test_training_that_harms_leaves_quantization_alone() -> None:
    found, _ = run(TargetConfig(max_drop=0.01), lambda size, share: 1.0 if share else 20 / size)
    assert not found.made[1]
    assert found.trials[found.chosen].met
    assert {trial.trained for trial in found.trials if not trial.met} >= {searching.BRIEF, 1}


def test_a_brief_training_that_did_is_followed_by_a_whole_one() -> None:
    """Whatever the whole one below it does, one is at the size that is known to do."""
    kept, did = falling(20, gain=9), []

    def drop(size: int, share: float) -> float:
        if share == 1 and size < min(did):
            return 1.0
        if share == searching.BRIEF and kept(size, share) <= 0.01:
            did.append(size)
        return kept(size, share)

    found, made = run(TargetConfig(max_drop=0.01, attempts=2), drop)
    first, last = wholly(made)
    assert first < last == min(did)
    assert found.made == (last, 1)


def test_nothing_far_below_one_that_is_near_the_limit_is_trained() -> None:
    _, made = run(TargetConfig(max_drop=0.01), lambda size, share: 0.0095 if share else 20 / size)
    assert len([size for size, share in made if share == searching.BRIEF]) == 1
    first, *others = (size for size, share in made if share)
    assert all(size > first / 1.5 for size in others)


@pytest.mark.parametrize(("trained", "smallest"), [(0.006, 1600), (0.0001, 100), (0.02, 3200)])
def test_a_cliff_between_two_sizes_is_looked_over(trained: float, smallest: int) -> None:
    """As for magika: the largest choice has no error to speak of, and the next one lost a little too much."""
    errors = (0.5, 0.4, 0.3, 0.2, 0.1, 1e-6)
    cliff = Curve("W", tuple(map(layout, SIZES)), SIZES, errors, 1.0, searching.TRAINING_GAIN)
    found, made = run(
        TargetConfig(max_drop=0.01),
        lambda size, share: 0.0 if size == SIZES[-1] else 1600 / size * (trained if share else 0.011),
        plans=Planner([cliff], weigh),
    )
    assert (1600, searching.BRIEF) in made
    assert found.made[0] == smallest


def test_no_model_is_made_twice() -> None:
    for scale in (0.1, 1, 10, 60):
        for gain in (0.5, 1, 4):
            _, made = run(TargetConfig(max_drop=0.01, attempts=6), falling(scale, gain=gain))
            assert len(set(made)) == len(made)


def test_a_standard_error_counts() -> None:
    found, _ = run(TargetConfig(max_drop=0.01, attempts=6), falling(20), error=0.004)
    assert falling(20)(found.made[0], 1) <= 0.006


def test_a_drop_that_nothing_reaches_is_refused_before_training() -> None:
    made: list[int] = []

    def drop(size: int, share: float) -> float:
        made.append(size)
        assert share == 0
        return 0.5

    message = (
        r"^Out of reach: accuracy at most 1 % lower\. With the most accurate codes for every layer, in a file of 7,402 "
        r"bytes, it loses 50 % \(50 % with one standard error\) on 100 samples\. Allow more, or leave layers alone"
    )
    with pytest.raises(TargetError, match=message):
        run(TargetConfig(max_drop=0.01), drop)
    assert made[-1] == 6400, "the most accurate"
    assert len(made) <= 3


@pytest.mark.parametrize("limit", [0.001, 0.01])
def test_a_size_and_a_drop_take_one_model_that_keeps_to_both_or_misses(limit: float) -> None:
    found, made = run(TargetConfig(size=2000, max_drop=limit), falling(20))
    assert made == [(800, 1)]
    assert found.made == (800, 1)
    assert found.trials[found.chosen].met == (limit == 0.01)


@given(
    limit=st.floats(0.0001, 0.2),
    scale=st.floats(0.01, 100),
    gain=st.floats(0.3, 10),
    attempts=st.integers(1, 6),
    seed=st.integers(0, 100),
)
def test_whatever_the_curve_the_result_is_the_smallest_seen_that_kept(
    limit: float, scale: float, gain: float, attempts: int, seed: int
) -> None:
    random = np.random.default_rng(seed)

    def drop(size: int, share: float) -> float:
        return falling(scale, gain)(size, share) * float(random.uniform(0.7, 1.4))

    try:
        found, made = run(TargetConfig(max_drop=limit, attempts=attempts), drop)
    except TargetError:
        return
    assert len(wholly(made)) <= attempts
    chosen = found.trials[found.chosen]
    assert chosen.met
    kept = [trial for trial in found.trials if trial.met]
    assert chosen.layer_bytes == min(trial.layer_bytes for trial in kept)


def test_nothing_at_all_may_be_lost() -> None:
    found, _ = run(TargetConfig(max_drop=0.0), lambda size, _share: 1e-7 if size < 3200 else 0.0)
    assert found.made[0] == 3200

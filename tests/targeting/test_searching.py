"""The search against a model that only exists as a formula."""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hand_made_curves import OVERHEAD, SIZES, layer_bytes, layout, planner, weigh
from hypothesis import given
from hypothesis import strategies as st

from onnxpq.config.target import TargetConfig
from onnxpq.errors import TargetError
from onnxpq.quantization.sensitivity import Curve
from onnxpq.support.figures import Interval
from onnxpq.targeting import planning, powerlaw, searching
from onnxpq.targeting.planning import Layouts, Plan, Planner
from onnxpq.targeting.searching import Found, Work
from onnxpq.verification.scoring import Drop

# The search


Losses = Callable[[int, float], float]
"""What layers of so many bytes lose after a share of the training."""


def top(target: TargetConfig) -> Callable[[Planner], Plan]:
    return partial(planning.limit, target=target, file_before=10_000, layers_before=8000)


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
        return Drop("accuracy", Interval(value, value, value + 1.959963984540054 * error), None, 100)

    return searching.search(target, plans, top(target), Work(make, judge, trains)), made


def wholly(made: list[tuple[int, float]]) -> list[int]:
    """Sizes of those that got all of the training."""
    return [size for size, share in made if share == 1]


def falling(scale: float, gain: float = 3.0) -> Losses:
    """A drop that falls with the bytes, a third as large once trained, and between these after a brief training."""
    return lambda size, share: scale / size / {0.0: 1.0, searching.BRIEF: gain**0.5, 1.0: gain}[share]


def test_a_size_takes_one_model_that_is_looked_at_before_its_training() -> None:
    found, made = run(TargetConfig(ratio=5), falling(1e6))
    assert made == [(800, 0), (800, 1)]
    assert found.made == (800, 1)
    assert found.trials[found.chosen].met
    assert found.trials[found.chosen].file_bytes <= 2000
    assert run(TargetConfig(ratio=5), falling(1e6), trains=False)[1] == [(800, 0)]


def test_without_data_a_size_is_all_that_is_checked() -> None:
    plans = planner()
    target = TargetConfig(size=3000)
    work: Work[Layouts] = Work(lambda layouts, _share: layouts, None, False)
    found = searching.search(target, plans, top(target), work)
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
    return Planner([Curve("W", tuple(map(layout, FINE)), FINE, errors, gain=gain)], weigh)


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
    cliff = Curve("W", tuple(map(layout, SIZES)), SIZES, errors, gain=searching.TRAINING_GAIN)
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
    assert made == [(800, 0), (800, 1)]
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


# What turns out otherwise than expected


def surprising(truth: dict[str, float], *, together: float = 1.0) -> tuple[Found[Layouts], list[tuple[Layouts, float]]]:
    """Search for 8000 bytes of layers where a weight brings in so many times what is expected of it, by name."""
    plans, made = planner(1.0, 1.0), []

    def make(layouts: Layouts, share: float) -> Layouts:
        made.append((layouts, share))
        return layouts

    def trace(layouts: Layouts) -> dict[str, float]:
        return {name: truth[name] * cost for name, cost in plans.costs(layouts).items()}

    def judge(layouts: Layouts) -> Drop:
        error = math.sqrt(together * sum(trace(layouts).values()))
        return Drop("accuracy", Interval(0.0, 0.0, 0.0), error, 100)

    target = TargetConfig(size=OVERHEAD + 3610)
    return searching.search(target, plans, top(target), Work(make, judge, True, trace)), made


def test_what_was_expected_is_made_once() -> None:
    found, made = surprising({"W0": 3.9, "W1": 1.0})
    assert [share for _, share in made] == [0, 1]
    assert found.remarks == []


def test_a_choice_that_errs_more_than_twice_as_much_is_made_anew() -> None:
    found, made = surprising({"W0": 64.0, "W1": 1.0})
    (first, _), (second, _), (last, share) = made
    sizes = [[layouts[name].in_features for name in ("W0", "W1")] for layouts in (first, second)]
    assert sizes == [[1600, 1600], [3200, 400]]
    assert (last, share) == (second, 1)
    expected, now, trained = found.trials
    assert expected.relative_error == pytest.approx(math.sqrt(65 / 2) * expected.expected_error)
    assert now.relative_error == pytest.approx(now.expected_error)
    assert trained.expected_error == now.expected_error
    (remark,) = found.remarks
    assert remark == (
        "Before training, the error of the output was 0.504 where 0.0884 was expected: weight 'W0' brings in 8 times "
        "what was expected of it. The layouts were chosen anew."
    )


def test_errors_that_only_add_up_to_more_change_no_layouts() -> None:
    found, made = surprising({"W0": 1.0, "W1": 1.0}, together=9.0)
    assert [share for _, share in made] == [0, 1]
    assert found.trials[-1].expected_error == pytest.approx(found.trials[0].relative_error)
    assert found.remarks[0].endswith("No other choice is expected to be better.")


def test_surprises_without_end_are_bounded_and_the_best_is_taken() -> None:
    plans, made = planner(1.0, 1.0), []
    errors = iter([3.0, 7.0, 20.0, 3.0])

    def make(layouts: Layouts, share: float) -> tuple[Layouts, float]:
        made.append((layouts, share))
        return made[-1]

    def trace(model: tuple[Layouts, float]) -> dict[str, float]:
        weights = ("W0", "W1") if len(made) % 2 else ("W1", "W0")
        return dict(zip(weights, (9.0, 0.01), strict=True))

    work = Work(make, lambda _: Drop("accuracy", Interval(0.0, 0.0, 0.0), next(errors), 100), True, trace)
    target = TargetConfig(size=OVERHEAD + 3610)
    found = searching.search(target, plans, top(target), work)
    assert [share for _, share in made] == [*[0] * (1 + searching.CORRECTIONS), 1]
    assert len(found.remarks) == searching.CORRECTIONS
    assert made[-1][0] == made[0][0] != made[1][0], "the one that erred least is trained"


def test_a_surprise_on_the_way_to_a_drop_changes_what_is_expected() -> None:
    plans = fine(2.0)

    def judge(size: int) -> Drop:
        error = 0.01 * float((1000 / size) ** 2)
        return Drop("mse", Interval(error, error, error), 5 * math.sqrt(plans.costs({"W": layout(size)})["W"]), 100)

    work = Work(lambda layouts, _: layer_bytes(layouts), judge, False, lambda size: {"W": 25 * (FINE[0] / size) ** 2})
    target = TargetConfig(max_drop=0.01)
    found = searching.search(target, plans, top(target), work)
    assert found.made <= 1000 * searching.CLOSE**2
    assert len(found.remarks) == 1
    assert all(trial.relative_error == pytest.approx(trial.expected_error) for trial in found.trials[1:])

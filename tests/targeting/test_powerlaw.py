"""The power law by hand: all drops here grow like a known power of the cost."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpq.targeting import powerlaw
from onnxpq.targeting.powerlaw import PowerLaw


def law(limit: float, *untrained: tuple[float, float]) -> PowerLaw:
    """What is known after models of some costs lost so much without training."""
    made = PowerLaw(limit)
    for cost, drop in untrained:
        made.add(cost, 0.0, drop)
    return made


@pytest.mark.parametrize(
    ("seen", "power"),
    [
        ([(0.01, 0.02), (0.04, 0.08)], 1.0),
        ([(0.01, 0.02), (0.04, 0.08), (0.0025, 0.005)], 1.0),
        ([(0.01, 0.02), (0.16, 0.02 * 8)], 0.75),
        ([(0.01, 0.02), (0.04, 0.021)], powerlaw.POWERS[0]),  # hardly grows
        ([(0.01, 0.02), (0.04, 0.5)], powerlaw.POWERS[1]),
        ([], powerlaw.USUAL_POWER),
        ([(0.01, 0.02)], powerlaw.USUAL_POWER),
        ([(0.01, 0.02), (0.013, 0.026)], powerlaw.USUAL_POWER),  # too near one another to tell
        ([(0.01, 0.0029), (0.04, 0.08)], powerlaw.USUAL_POWER),  # one of them is noise
    ],
)
def test_the_power_is_that_of_the_models_without_training(seen: list[tuple[float, float]], power: float) -> None:
    made = law(0.1, *seen)
    made.add(0.02, powerlaw.LEAST, 0.9)  # one with training says nothing of it
    assert made.power == pytest.approx(power)


def test_between_two_models_the_drop_is_on_a_line_of_logarithms() -> None:
    assert law(0.1, (0.01, 0.01), (1.0, 1.0)).untrained() == pytest.approx(0.09)
    # Those next to the limit count, not those farther off.
    assert law(0.1, (1e-6, 0.09), (0.01, 0.01), (1.0, 1.0), (2.0, 0.11)).untrained() == pytest.approx(0.09)
    # drop = sqrt(cost)
    assert law(0.1, (0.0001, 0.01), (1.0, 1.0)).untrained() == pytest.approx(0.09**2)


def test_one_that_lost_nothing_does_not_say_where_losses_begin() -> None:
    # On the line, from a thousandth of the limit, it would be at .0062, which loses .7 times as much as .01.
    assert law(0.1, (0.0001, 0.0), (0.01, 0.2)).untrained() == pytest.approx(0.01 * 0.45 ** (1 / powerlaw.USUAL_POWER))
    # The power says .0034, which is no news: half way.
    assert law(0.1, (0.003, 0.0), (0.01, 0.2)).untrained() == pytest.approx(math.sqrt(0.003 * 0.01))
    assert law(0.1, (0.009, 0.0031), (0.01, 0.2)).untrained() == pytest.approx(0.0098, rel=0.01)


def test_one_that_just_does_is_where_it_is_expected() -> None:
    assert law(0.1, (0.01, 0.095), (1.0, 1.0)).untrained() == pytest.approx(0.01)


def test_without_one_on_either_side_nothing_is_told() -> None:
    assert law(0.1, (0.01, 0.01), (0.02, 0.02)).untrained() is None
    assert law(0.1, (0.2, 0.2)).untrained() is None
    assert law(0.1).untrained() is None


def test_as_much_training_meets_the_limit_where_the_power_says() -> None:
    made = law(0.1, (0.05, 0.05), (0.5, 0.5))
    made.add(0.3, 1.0, 0.2)
    last = made.last(1.0)
    assert last is not None
    assert made.meeting(last) == pytest.approx(0.15)
    assert made.meeting(last, 0.5) == pytest.approx(0.075)
    assert made.room(last) == pytest.approx(0.5)
    assert made.last(0.125) is None


def test_guesses_reach_a_step_far() -> None:
    made = law(0.1)
    for drop, factor in ((1e-9, powerlaw.STEP), (50.0, 1 / powerlaw.STEP)):
        made.add(0.3, 1.0, drop)
        assert made.meeting(made.seen[-1]) == pytest.approx(0.3 * factor)
    assert made.room(made.seen[0]) > powerlaw.STEP


def test_all_of_the_training_is_told_by_what_a_brief_one_brought() -> None:
    made = law(0.1, (0.05, 0.05), (0.5, 0.5))
    made.add(0.2, 0.125, 0.1)  # at the limit; .2 without training
    assert made.trained(made.seen[-1]) == pytest.approx(0.2 * 2**powerlaw.REST)
    made.add(0.2, 0.125, 0.05)  # a quarter, and half of the limit
    assert made.trained(made.seen[-1]) == pytest.approx(0.2 * 2 * 4**powerlaw.REST)
    made.add(0.2, 0.125, 0.4)  # twice as much: the rest is expected to do nothing, not harm
    assert made.trained(made.seen[-1]) == pytest.approx(0.2 / 4)


def test_beyond_the_models_without_training_the_power_tells() -> None:
    for cost in (1.0, 0.1):
        made = law(0.1, (0.2, 0.2), (0.5, 0.5))
        made.add(cost, 0.125, cost / 5)
        assert made.trained(made.seen[-1]) == pytest.approx(0.5 * 5**powerlaw.REST)
    one = law(0.1, (0.05, 0.05))
    one.add(0.8, 0.125, 0.1)  # 16 times the cost, 8 times the drop
    assert one.trained(one.seen[-1]) == pytest.approx(0.8 * 4 ** (powerlaw.REST / powerlaw.USUAL_POWER))


@pytest.mark.parametrize("drop", [0.0, -0.3, math.nan, math.inf, 1e200])
@pytest.mark.parametrize("limit", [0.0, 0.01, 1.0])
def test_whatever_a_drop_is_a_guess_is_a_number(drop: float, limit: float) -> None:
    made = law(limit, (0.0, 0.0), (0.1, drop), (1.0, 2.0))
    made.add(0.0, 0.125, drop)
    guesses = [made.untrained(), made.trained(made.seen[-1]), *(made.meeting(entry) for entry in made.seen), made.power]
    assert all(guess is not None and 0 < guess < math.inf for guess in guesses)


def test_no_number_is_a_loss() -> None:
    made = law(0.1, (0.1, math.nan))
    assert made.room(made.seen[0]) < 1


@given(
    limit=st.floats(1e-4, 1),
    seen=st.lists(st.tuples(st.floats(1e-8, 1), st.floats(0, 2)), min_size=1, max_size=6),
)
def test_what_is_expected_without_training_is_between_what_did_and_what_did_not(
    limit: float, seen: list[tuple[float, float]]
) -> None:
    made = law(limit, *seen)
    cost = made.untrained()
    met = [cost for cost, drop in seen if drop <= limit]
    missed = [cost for cost, drop in seen if drop > limit]
    assert (cost is None) == (not met or not missed)
    if cost is not None:
        low, high = sorted((max(met), min(missed)))
        assert low * (1 - 1e-9) <= cost <= high * (1 + 1e-9)

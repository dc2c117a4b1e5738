import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpq.verification.floor import FLOORS, Kind, Loss, Spread, judge, kind_of

ROUNDING_BUDGET = 1e-9
"""Relative difference of sums of float64 in two orders."""


def loss(kind: Kind, reference: np.ndarray, found: np.ndarray, *, batch: int = 7) -> Loss:
    made = Loss(kind)
    for start in range(0, len(reference), batch):
        made.add(reference[start : start + batch], found[start : start + batch])
    return made


def rows(count: int = 40, columns: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, columns)).astype(np.float32)


@pytest.mark.parametrize(
    ("values", "scores", "sigmoid", "expected"),
    [
        (rows(), True, False, Kind.CLASSES),
        (rows(), False, False, Kind.NUMBERS),
        (rows(columns=32), False, False, Kind.EMBEDDING),
        (rows(columns=31), False, False, Kind.NUMBERS),
        (rows(columns=1), True, True, Kind.DECISIONS),
        (rows(columns=1)[:, 0], True, True, Kind.DECISIONS),
        (rows(columns=1), True, False, Kind.NUMBERS),
        (rows(columns=1)[:, 0], False, False, Kind.NUMBERS),
        (np.arange(4), True, False, Kind.CLASSES),
        (np.array(["a", "b"]), False, False, Kind.CLASSES),
        (np.float32(3), False, False, Kind.NUMBERS),
    ],
)
def test_kinds(values: np.ndarray, scores: bool, sigmoid: bool, expected: Kind) -> None:
    assert kind_of(values, scores=scores, sigmoid=sigmoid) is expected


def test_other_answers_by_hand() -> None:
    reference = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0]]
    found = np.eye(4, dtype=np.float32)[[0, 1, 2, 0, 1]]
    assert loss(Kind.CLASSES, reference, found).value == pytest.approx(2 / 5)


def test_other_decisions_by_hand() -> None:
    reference = np.array([0.1, 0.4, 0.6, 0.9], np.float32)
    found = np.array([0.4, 0.6, 0.51, 0.2], np.float32)
    made = loss(Kind.DECISIONS, reference, found)
    assert made.value == pytest.approx(2 / 4)
    assert made.stands_still is None


def test_cosines_by_hand() -> None:
    reference = np.array([[1, 0], [0, 2], [0, 0], [3, 0]], np.float32)
    found = np.array([[0, 5], [0, 1], [0, 0], [0, 0]], np.float32)
    # At a right angle, alike, two zeros, a zero beside a vector.
    assert loss(Kind.EMBEDDING, reference, found).value == pytest.approx((1 + 0 + 0 + 1) / 4)


def test_numbers_are_judged_by_their_spread_not_by_their_size() -> None:
    reference = 1e5 + rows(columns=1)
    mean = np.full_like(reference, reference.mean())
    made = loss(Kind.NUMBERS, reference, mean)
    assert made.value == pytest.approx(1.0, rel=1e-2)
    assert made.stands_still == "gives the same numbers for everything"


def test_each_column_has_a_mean_of_its_own() -> None:
    reference = rows(columns=2) + np.array([0, 1000], np.float32)
    swapped = np.broadcast_to(reference.mean(0), reference.shape)
    assert loss(Kind.NUMBERS, reference, swapped).value == pytest.approx(1.0, rel=1e-3)


def test_numbers_that_do_not_vary_are_judged_by_their_size() -> None:
    reference = np.full((9, 1), 5.0, np.float32)
    assert loss(Kind.NUMBERS, reference, reference * 1.1).value == pytest.approx(0.1, rel=1e-5)
    single = rows(count=1)
    assert loss(Kind.NUMBERS, single, single * 1.1).value == pytest.approx(0.1, rel=1e-5)


def test_zeros_are_lost_by_anything_else() -> None:
    zeros = np.zeros((5, 2), np.float32)
    assert loss(Kind.NUMBERS, zeros, zeros).value == 0
    assert loss(Kind.NUMBERS, zeros, zeros + 1).value == math.inf


@pytest.mark.parametrize("kind", [Kind.CLASSES, Kind.EMBEDDING, Kind.NUMBERS])
def test_another_shape_has_lost_everything(kind: Kind) -> None:
    made = Loss(kind)
    made.add(rows(4), rows(4))
    made.add(rows(4), rows(3))
    assert made.value > FLOORS[kind]


def test_one_class_for_everything_is_named() -> None:
    reference = rows()
    found = np.zeros_like(reference)
    found[:, 2] = 1
    made = loss(Kind.CLASSES, reference, found)
    assert made.stands_still == "gives the same answer, 2, for everything"
    assert loss(Kind.CLASSES, found, found).stands_still is None, "the original does so, too"


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 5), st.integers(1, 9))
def test_the_spread_does_not_depend_on_the_batches(seed: int, count: int, columns: int, batch: int) -> None:
    values = np.random.default_rng(seed).standard_normal((count, columns)) + 3
    made = Spread()
    for start in range(0, count, batch):
        made.add(values[start : start + batch])
    expected = np.square(values - values.mean(0)).sum()
    assert made.value() == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_where_the_columns_change_all_numbers_are_one() -> None:
    parts = [rows(3, 4).astype(np.float64), rows(2, 5, seed=1).astype(np.float64)]
    made = Spread()
    for part in parts:
        made.add(part)
    every = np.concatenate([part.ravel() for part in parts])
    assert made.value() == pytest.approx(np.square(every - every.mean()).sum(), rel=ROUNDING_BUDGET)


def test_the_output_that_counts_decides_and_every_output_may_stand_still() -> None:
    good, noise = rows(), rows(seed=5)
    losses = {"y": loss(Kind.CLASSES, good, good), "z": loss(Kind.NUMBERS, good, noise)}
    assert judge(losses, "y", None, floor=None).kept
    assert not judge(losses, "z", None, floor=None).kept
    losses["w"] = loss(Kind.NUMBERS, good, 0 * good)
    found = judge(losses, "y", None, floor=None)
    assert not found.kept
    assert "output 'w' gives the same numbers for everything" in found.sentence()


@pytest.mark.parametrize(("floor", "kept"), [(None, False), (0.1, True), (0.05, False)])
def test_labels_decide_where_there_are_any(floor: float | None, kept: bool) -> None:
    good = rows()
    found = judge({"y": loss(Kind.CLASSES, good, good)}, "y", 0.07, floor=floor)
    assert found.kept is kept
    assert found.measure == "loss of accuracy"
    if not kept:
        assert "the loss of accuracy of output 'y' is 7 %, more than 5 %" in found.sentence()


def test_two_per_cent_more_than_the_floor_is_too_much() -> None:
    reference = rows(1000, 1)
    noise = rows(1000, 1, seed=1)
    spread = np.sqrt(np.square(reference - reference.mean()).sum() / np.square(noise).sum())
    at = [reference + share * FLOORS[Kind.NUMBERS] * spread * noise for share in (0.98, 1.02)]
    kept = [judge({"y": loss(Kind.NUMBERS, reference, found)}, "y", None, floor=None).kept for found in at]
    assert kept == [True, False]


def test_made_up_inputs_only_tell_a_ruined_model() -> None:
    reference, found = rows(100), rows(100)
    found[:15] = found[:15, ::-1]
    losses = {"y": loss(Kind.CLASSES, reference, found)}
    assert not judge(losses, "y", None, floor=None).kept
    assert judge(losses, "y", None, floor=None, made_up=True).kept
    assert not judge(losses, "y", None, floor=0.05, made_up=True).kept, "what was asked for holds"


@pytest.mark.parametrize("shape", [(5, 0), (0, 3), (5, 0, 2), (0,)])
@pytest.mark.parametrize("kind", [Kind.NUMBERS, Kind.CLASSES, Kind.EMBEDDING, Kind.DECISIONS])
def test_nothing_loses_nothing(kind: Kind, shape: tuple[int, ...]) -> None:
    """An output without a single entry, as a slice of none."""
    empty = np.zeros(shape, np.float32)
    if kind is Kind.CLASSES and shape[-1] == 0:
        return
    found = loss(kind, empty, empty) if len(empty) else Loss(kind)
    found.add(empty, empty)
    assert found.value == 0
    assert found.stands_still is None

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from onnxpq.training import regularizers
from onnxpq.training.regularizers import BINARY_TERMS, binary_term, codebook_term

pytestmark = pytest.mark.rounding

ROUNDING = 1e-9
"""Relative, of float64."""

DIFFERENCE_BUDGET = 1e-5
"""Relative error of a central difference with step 1e-6 in float64."""

BY_HAND = {
    "murray-ng": [1.0, 0.75, 0.0, 0.0, 0.75],
    "l1": [1.0, 0.5, 0.0, 1.0, 0.5],
    "l2": [1.0, 0.25, 0.0, 1.0, 0.25],
    "quartic": [1.0, 0.5625, 0.0, 9.0, 0.5625],
}
"""The terms of the weights 0, 0.5, 1, 2, -0.5."""

GRADIENTS: dict[str, Callable[[float], float]] = {
    "murray-ng": lambda u: -2 * u if abs(u) < 1 else 0.0,
    "l1": lambda u: math.copysign(1, u) * math.copysign(1, abs(u) - 1),
    "l2": lambda u: 2 * math.copysign(1, u) * (abs(u) - 1),
    "quartic": lambda u: 4 * u * (u * u - 1),
}
"""Derivatives in u, from the formulas."""

POINTS = [-2.5, -1.3, -0.9, -0.4, -0.01, 0.02, 0.3, 0.7, 1.1, 3.0]
"""Away from 0 and +-1, where some terms have kinks."""


def double(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_every_term_is_tested() -> None:
    assert BY_HAND.keys() == GRADIENTS.keys() == BINARY_TERMS.keys()


@pytest.mark.parametrize("name", BINARY_TERMS)
def test_terms_by_hand(name: str) -> None:
    weights = [0.0, 0.5, 1.0, 2.0, -0.5]
    for weight, expected in zip(weights, BY_HAND[name], strict=True):
        assert float(BINARY_TERMS[name](double(weight))) == pytest.approx(expected, rel=ROUNDING)
    mean = sum(BY_HAND[name]) / 5
    assert float(BINARY_TERMS[name](double(*weights))) == pytest.approx(mean, rel=ROUNDING)


def test_a_term_2_percent_off_is_found() -> None:
    assert 1.02 * BY_HAND["l2"][1] != pytest.approx(BY_HAND["l2"][1], rel=ROUNDING)
    assert 1.02 * GRADIENTS["l2"](0.3) != pytest.approx(GRADIENTS["l2"](0.3), rel=DIFFERENCE_BUDGET)


def test_murray_ng_is_four_times_x_times_1_minus_x() -> None:
    x = torch.linspace(0, 1, 11, dtype=torch.float64)
    expected = 4 * (x * (1 - x)).mean()
    assert float(regularizers.murray_ng(2 * x - 1)) == pytest.approx(float(expected), rel=ROUNDING)


@pytest.mark.parametrize("name", BINARY_TERMS)
def test_gradients_against_the_formulas_and_finite_differences(name: str) -> None:
    u = double(*POINTS).requires_grad_()
    BINARY_TERMS[name](u).backward()
    assert u.grad is not None
    for place, point in enumerate(POINTS):
        expected = GRADIENTS[name](point) / len(POINTS)
        assert float(u.grad[0, place]) == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING)
        step = 1e-6
        high, low = (float(BINARY_TERMS[name](double(point + sign * step))) for sign in (1, -1))
        assert (high - low) / (2 * step) == pytest.approx(GRADIENTS[name](point), rel=DIFFERENCE_BUDGET, abs=1e-9)


@pytest.mark.parametrize("name", BINARY_TERMS)
def test_there_is_no_force_at_what_is_binary(name: str) -> None:
    matrix = torch.tensor([[0.3, -0.3], [2.0, 2.0]], dtype=torch.float64, requires_grad=True)
    value = binary_term(name, matrix)
    value.backward()
    assert float(value.detach()) == pytest.approx(0, abs=ROUNDING)
    if name in ("l2", "quartic"):
        assert matrix.grad is not None
        assert float(matrix.grad.abs().max()) == pytest.approx(0, abs=ROUNDING)


@pytest.mark.parametrize("name", BINARY_TERMS)
def test_a_row_is_scaled_by_its_mean_size_which_is_not_differentiated(name: str) -> None:
    matrix = double(0.1, -0.3, 0.05, 0.35).requires_grad_()  # mean size 0.2
    value = binary_term(name, matrix)
    unit = double(0.5, -1.5, 0.25, 1.75)
    assert float(value.detach()) == pytest.approx(float(BINARY_TERMS[name](unit)), rel=ROUNDING)
    value.backward()
    assert matrix.grad is not None
    for place, u in enumerate(unit[0].tolist()):
        expected = GRADIENTS[name](u) / 4 / 0.2
        assert float(matrix.grad[0, place]) == pytest.approx(expected, rel=1e-6, abs=ROUNDING)


@given(
    name=st.sampled_from(sorted(BINARY_TERMS)),
    rows=st.integers(1, 4),
    columns=st.integers(1, 6),
    seed=st.integers(0, 99),
    exponents=st.lists(st.integers(-8, 8), min_size=4, max_size=4),
)
def test_terms_do_not_see_the_scale_of_rows(
    name: str, rows: int, columns: int, seed: int, exponents: list[int]
) -> None:
    matrix = torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    scaled = matrix * torch.tensor([2.0**e for e in exponents[:rows]], dtype=torch.float64).unsqueeze(1)
    value = float(binary_term(name, matrix))
    assert float(binary_term(name, scaled)) == pytest.approx(value, rel=ROUNDING)
    assert value >= 0


@pytest.mark.parametrize("name", BINARY_TERMS)
def test_rows_of_zeros_are_finite(name: str) -> None:
    matrix = torch.zeros(2, 3, requires_grad=True)
    value = binary_term(name, matrix)
    value.backward()
    assert float(value.detach()) == 1.0
    assert matrix.grad is not None
    assert bool(torch.isfinite(matrix.grad).all())


def test_codebook_term_by_hand() -> None:
    # mean square of the distance (0.25 + 1) / 2, of the target (4 + 1) / 2
    matrix, target = double(1.5, 2.0), double(2.0, 1.0)
    assert float(codebook_term(matrix, target)) == pytest.approx(0.25, rel=ROUNDING)
    assert float(codebook_term(target, target)) == 0


def test_codebook_term_pulls_to_the_target() -> None:
    matrix = double(1.5, 2.0).requires_grad_()
    codebook_term(matrix, double(2.0, 1.0)).backward()
    assert matrix.grad is not None
    # 2 (w - t) / 2 elements / 2.5
    assert matrix.grad[0].tolist() == pytest.approx([-0.2, 0.4], rel=ROUNDING)


def test_codebook_term_of_zeros_is_finite() -> None:
    assert float(codebook_term(double(1.0, 1.0), double(0.0, 0.0))) == 1.0

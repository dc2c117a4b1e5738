"""What is expected of each layout of a weight against what the quantizer makes of it."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from onnxpq.graph.layers import Layer
from onnxpq.pq.layout import Layout
from onnxpq.pq.statistics import InputStatistics
from onnxpq.quantization import allocation, curves, encoding
from onnxpq.quantization.curves import Weight

OUT, IN = 96, 64
TRUE = 2.0
"""The root of found over expected squared error is at most this, and at least its inverse: 1.56 and .66 were the worst,
for few points of 32 numbers and for several codebooks whose codewords have two points each."""

NEAR = 0.15
"""Relative deviation of one squared error from another that was measured on other rows, or with another seed."""


def normal(rows: int, columns: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def low_rank(rows: int, columns: int) -> torch.Tensor:
    rank = max(2, columns // 8)
    return normal(rows, rank, 1) @ normal(rank, columns, 2) + 0.1 * normal(rows, columns)


def heavy(rows: int, columns: int) -> torch.Tensor:
    """Few rows and few columns that are much larger than the others, as in tables of words."""
    return normal(rows, columns) * normal(rows, 1, 4).exp() * (0.5 * normal(1, columns, 5)).exp()


def clusters(rows: int, columns: int) -> torch.Tensor:
    return normal(16, columns, 1)[torch.arange(rows) % 16] + 0.3 * normal(rows, columns)


def statistics(columns: int = IN) -> InputStatistics:
    random, found = np.random.default_rng(0), InputStatistics(columns)
    hidden = random.standard_normal((500, max(2, columns // 4)))
    inputs = hidden @ random.standard_normal((hidden.shape[1], columns)) + random.standard_normal((500, columns))
    found.add(np.maximum(inputs, 0).astype(np.float32), "x")
    return found


def families_of(rows: int, columns: int) -> list[list[Layout]]:
    layer = Layer("fc", "Gemm", "W", rows, columns, weight_is_in_out=False, bias=None, weight_bytes=4 * rows * columns)
    return allocation.options(layer, 256)


def squared_error(matrix: torch.Tensor, found: torch.Tensor, known: InputStatistics | None) -> float:
    moment = np.eye(matrix.shape[1]) if known is None else known.regularized()
    missed, whole = (matrix - found).numpy(), matrix.numpy()
    return float(np.trace(missed @ moment @ missed.T) / np.trace(whole @ moment @ whole.T))


@pytest.mark.parametrize("known", [False, True], ids=["weights", "outputs"])
@pytest.mark.parametrize(
    ("kind", "rows", "columns"),
    [
        (normal, 128, 128),
        (normal, 10, 128),
        (low_rank, 3000, 16),
        (heavy, 4000, 32),
        (heavy, 1600, 120),
        (clusters, 1000, 16),
        (clusters, 600, 64),
    ],
)
def test_what_is_expected_is_found(
    kind: Callable[[int, int], torch.Tensor], rows: int, columns: int, known: bool
) -> None:
    matrix, inputs = kind(rows, columns), statistics(columns) if known else None
    families = families_of(rows, columns)
    for family, errors in zip(families, Weight(matrix, inputs, seed=0).curves(families), strict=True):
        for layout, expected in zip(family, errors, strict=True):
            # All of them would take minutes; those of one number have next to no error.
            if layout.sub_vector in (2, 8, 32) and layout.codewords in (16, 64, 256) and layout.groups <= 16:
                found = encoding.quantize(matrix, layout, seed=0, statistics=inputs).matrix()
                ratio = math.sqrt(squared_error(matrix, found, inputs) / expected)
                assert 1 / TRUE < ratio < TRUE, (layout, ratio)


def test_long_sub_vectors_of_few_rows_are_not_learned_by_heart() -> None:
    """With 256 rows to measure on, 32 numbers of a narrow table seemed to have less error than 4."""
    table = low_rank(6000, 128)
    layouts = [Layout(6000, 128, d, 256, 1) for d in (4, 8, 16, 32)]
    errors = Weight(table, seed=0).measure(layouts)
    assert errors == sorted(errors)
    found = encoding.quantize(table, layouts[-1], seed=0).matrix()
    assert errors[-1] == pytest.approx(squared_error(table, found, None), rel=NEAR)


def test_a_small_weight_is_measured_as_it_is() -> None:
    """All its rows are in the file: what is learned by heart there is so in truth."""
    matrix, layout = normal(40, 32), Layout(40, 32, 16, 64, 1)
    (expected,) = Weight(matrix, seed=0).measure([layout])
    found = encoding.quantize(matrix, layout, seed=0).matrix()
    assert expected == pytest.approx(squared_error(matrix, found, None), rel=1e-3)
    assert expected < 0.2, "one of the 80 points in three has a codeword for itself"


@pytest.mark.parametrize("known", [None, statistics()], ids=["weights", "outputs"])
def test_a_curve_falls_with_the_bytes(known: InputStatistics | None) -> None:
    for family, errors in zip(*_curves(normal(OUT, IN), known), strict=True):
        if family[0].codewords <= 64:
            assert errors == sorted(errors)
        assert all(0 <= error < 1 for error in errors)


def _curves(matrix: torch.Tensor, known: InputStatistics | None) -> tuple[list[list[Layout]], list[list[float]]]:
    families = families_of(*matrix.shape)
    return families, Weight(matrix, known, seed=0).curves(families)


def test_the_cheap_quantizer_ranks_layouts_as_the_full_one() -> None:
    known, matrix = statistics(), normal(OUT, IN)
    layouts = [Layout(OUT, IN, d, codewords, 1) for codewords in (16, 256) for d in (1, 2, 4, 8, 16)]
    full = [
        squared_error(matrix, encoding.quantize(matrix, layout, seed=0, statistics=known).matrix(), known)
        for layout in layouts
    ]
    assert np.argsort(Weight(matrix, known, seed=0).measure(layouts)).tolist() == np.argsort(full).tolist()


@pytest.mark.parametrize("known", [None, statistics()], ids=["weights", "outputs"])
def test_what_is_between_those_measured(known: InputStatistics | None) -> None:
    """Lengths, numbers of codewords, numbers of codebooks."""
    matrix = heavy(512, IN)
    families, found = _curves(matrix, known)
    assert {family[0].codewords for family in families} == {16, 32, 64, 128, 256}
    assert max(layout.groups for family in families for layout in family) >= 16
    for family, errors in zip(families, found, strict=True):
        some = [at for at, layout in enumerate(family) if layout.sub_vector in (3, 5, 10)]
        measured = Weight(matrix, known, seed=1).measure([family[at] for at in some])
        for at, error in zip(some, measured, strict=True):
            ratio = math.sqrt(error / errors[at])
            assert 1 / TRUE < ratio < TRUE, (family[at], ratio)
            # Several codebooks of 256 codewords have next to no rows to learn from here.
            assert family[at].groups > 1 or error == pytest.approx(errors[at], rel=2 * NEAR)


def test_a_family_without_one_codebook_is_measured() -> None:
    layout = Layout(OUT, IN, 8, 16, 4)
    weight = Weight(normal(OUT, IN), seed=0)
    assert weight.curves([[layout]]) == [weight.measure([layout])]


def test_a_weight_of_zeros_has_no_error() -> None:
    families = families_of(OUT, IN)
    found = Weight(torch.zeros(OUT, IN), statistics(), seed=0).curves(families)
    assert max(error for errors in found for error in errors) < 1e-10
    assert Weight(torch.zeros(OUT, IN), seed=0).missed(families[0][0])[1] == 0


@pytest.mark.parametrize("size", [2.0**-100, 2.0**100])
def test_the_size_of_a_weight_does_not_matter(size: float) -> None:
    families = families_of(OUT, IN)
    usual, scaled = (Weight(factor * normal(OUT, IN), statistics(), seed=0).curves(families) for factor in (1, size))
    for some, others in zip(usual, scaled, strict=True):
        assert others == pytest.approx(some, rel=1e-4)


@pytest.mark.parametrize("known", [None, statistics()], ids=["weights", "outputs"])
def test_what_a_layout_misses(known: InputStatistics | None) -> None:
    matrix, layout = normal(4 * OUT, IN), Layout(4 * OUT, IN, 4, 16, 1)
    weight = Weight(matrix, known, seed=0)
    missed, error = weight.missed(layout)
    assert error == pytest.approx(squared_error(matrix, matrix + missed, known), rel=1e-4)
    assert error == pytest.approx(weight.measure([layout])[0], rel=NEAR)


def test_rows_that_count_for_more_count_for_more() -> None:
    """Rows of one kind that count, and rows of another that do not: the error is that of the first."""
    matrix = torch.cat([clusters(500, IN), normal(500, IN)])
    importance = np.repeat(np.float32([1000, 1]), 500)
    layout = Layout(1000, IN, 8, 16, 1)
    one, both = (Weight(matrix[:rows], importance=counts, seed=0) for rows, counts in ((500, None), (1000, importance)))
    (alone,), (weighted,) = one.measure([Layout(500, IN, 8, 16, 1)]), both.measure([layout])
    assert weighted == pytest.approx(alone, rel=NEAR)
    missed, error = both.missed(layout)
    factors = torch.from_numpy(importance).sqrt().unsqueeze(1)
    assert error == pytest.approx(squared_error(factors * matrix, factors * (matrix + missed), None), rel=1e-4)


# Which rows


def test_rows_are_drawn_in_proportion_to_what_they_weigh() -> None:
    random = np.random.default_rng(0)
    energies = np.exp(2 * random.standard_normal(300))
    times, sums = np.zeros(300), []
    for _ in range(2000):
        index, chances = curves.drawn(energies, 40, random)
        assert len(set(index.tolist())) == len(index) in (39, 40, 41)
        times[index] += 1
        sums.append((energies[index] / chances).sum())
    _, chances = curves.drawn(energies, 300, random)
    assert chances.tolist() == [1.0] * 300
    largest, smallest = np.argsort(energies)[[-1, 0]]
    assert times[largest] == 2000 > 10 * times[smallest]
    assert np.mean(sums) == pytest.approx(energies.sum(), rel=0.01)


def test_rows_of_nothing_are_not_drawn() -> None:
    energies = np.repeat([0.0, 1.0], [50, 5])
    index, chances = curves.drawn(energies, 20, np.random.default_rng(0))
    assert index.tolist() == [50, 51, 52, 53, 54]
    assert chances.tolist() == [1.0] * 5


def test_the_fewer_points_the_more_is_learned_by_heart() -> None:
    shares = [curves.optimism(points) for points in (1, 2, 4, 8, 16, 32, 64, 1000)]
    assert shares == sorted(shares)
    assert shares[0] < 0.15
    assert shares[-1] > 0.99

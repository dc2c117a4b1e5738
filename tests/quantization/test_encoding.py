from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from onnxpq.graph.layers import Layer
from onnxpq.network.matrices import matrix_of
from onnxpq.pq import codec
from onnxpq.pq.layout import Layout
from onnxpq.pq.quantized import Quantized
from onnxpq.pq.reference import decode
from onnxpq.pq.statistics import InputStatistics
from onnxpq.quantization.encoding import quantize, report

pytestmark = pytest.mark.rounding

FLOAT16_BUDGET = 2e-3

INT8_BUDGET = 6e-3
"""Relative error of codewords that are rounded to a 127th of the largest number, of normal numbers."""
"""Relative L2 error of float16 codewords."""

INERTIA_BUDGET = 0.02
"""By how much our squared error may exceed scikit-learn's, both being local minima."""

LAYER = Layer("fc", "Gemm", "W", 3, 2, weight_is_in_out=False, bias=None)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_matrix_of_turns_the_initializer() -> None:
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    turned = matrix_of(array, replace(LAYER, weight_is_in_out=True))
    assert torch.equal(turned, torch.from_numpy(array.T.copy()))
    assert turned.is_contiguous()
    assert torch.equal(matrix_of(array.T, LAYER), turned)


def test_matrix_of_copies() -> None:
    array = np.zeros((3, 2), np.float32)
    matrix_of(array, LAYER).add_(1)
    assert not array.any()


def test_as_many_codewords_as_patterns_lose_nothing() -> None:
    patterns = normal(4, 4)
    rows = patterns[torch.tensor([[0, 1], [2, 3], [1, 1], [3, 0], [2, 2]])].reshape(5, 8)
    unit = rows / rows.square().mean(1, keepdim=True).sqrt()
    quantized = quantize(unit, Layout(5, 8, 8, 5, 1), seed=0)
    exact = codec.decode(quantized.codebooks, quantized.codes, quantized.scales, quantized.layout)
    assert float((exact - unit).norm() / unit.norm()) < 1e-5
    assert float((quantized.matrix() - unit).norm() / unit.norm()) < INT8_BUDGET
    assert float((1.02 * quantized.matrix() - unit).norm() / unit.norm()) > INT8_BUDGET


def test_same_seed_same_result() -> None:
    matrix, layout = normal(40, 30), Layout(40, 30, 4, 8, 3)
    first, second, other = (quantize(matrix, layout, seed=seed) for seed in (5, 5, 6))
    assert torch.equal(first.codebooks, second.codebooks)
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.scales, second.scales)
    assert not torch.equal(first.codebooks, other.codebooks)


def test_gradients_of_the_weight_are_left_alone() -> None:
    matrix = normal(8, 8).requires_grad_()
    assert not quantize(matrix, Layout(8, 8, 4, 4, 1), seed=0).codebooks.requires_grad


def test_inertia_against_scikit_learn() -> None:
    matrix, layout = normal(300, 8, seed=3), Layout(300, 8, 8, 16, 1)
    matrix = matrix / matrix.square().mean(1, keepdim=True).sqrt()
    quantized = quantize(matrix, layout, seed=0)
    ours = float((quantized.matrix() - matrix).square().sum())
    theirs = KMeans(16, n_init=3, random_state=0).fit(matrix.numpy()).inertia_
    assert ours <= (1 + INERTIA_BUDGET) * theirs


@settings(max_examples=25, deadline=None)
@given(
    out=st.integers(1, 40),
    columns=st.integers(1, 30),
    d=st.integers(1, 8),
    codewords=st.sampled_from([2, 5, 16, 17, 256]),
    seed=st.integers(0, 99),
)
def test_stored_form_is_the_matrix_and_as_large_as_planned(
    out: int, columns: int, d: int, codewords: int, seed: int
) -> None:
    layout = Layout(out, columns, min(d, columns), codewords, 1)
    matrix = normal(out, columns, seed=seed)
    quantized = quantize(matrix, layout, seed=seed)
    stored = quantized.freeze()
    assert stored.nbytes == layout.nbytes
    found = decode(stored.codebooks, stored.codes, stored.scales, stored.in_features)
    assert np.linalg.norm(found - quantized.matrix().numpy()) <= FLOAT16_BUDGET * float(matrix.norm())
    assert float((quantized.matrix() - matrix).norm()) <= float(matrix.norm()) * (1 + FLOAT16_BUDGET)


@pytest.mark.parametrize("scale", [0.0, 1e-20, 1e20])
def test_sizes_beyond_float16(scale: float) -> None:
    matrix = scale * normal(16, 16)
    stored = quantize(matrix, Layout(16, 16, 4, 16, 1), seed=0).freeze()
    found = decode(stored.codebooks, stored.codes, stored.scales, stored.in_features).astype(np.float64)
    exact = matrix.numpy().astype(np.float64)
    assert np.isfinite(found).all()
    assert np.linalg.norm(found - exact) <= 0.8 * np.linalg.norm(exact)


def test_report_by_hand() -> None:
    layout = Layout(3, 2, 2, 2, 1)
    exact = np.array([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0]], np.float32)
    stored = quantize(torch.from_numpy(exact), layout, seed=0).freeze()
    wrong = replace(stored, scales=1.02 * stored.scales)
    entry = report(LAYER, layout, exact, wrong)
    assert (entry.node, entry.weight, entry.shape) == ("fc", "W", (3, 2))
    assert (entry.sub_vector, entry.codewords, entry.groups) == (2, 2, 1)
    # one block of codes, two codewords of two int8, three float32 scales
    assert (entry.bytes_before, entry.bytes_after) == (24, 16 + 4 + 12)
    assert entry.weight_error == pytest.approx(0.02, rel=0.05)
    shared = report(LAYER, layout, exact, stored, earlier=[entry])
    assert (shared.bytes_before, shared.bytes_after) == (0, 0)
    assert shared.weight_error < FLOAT16_BUDGET


def test_report_of_a_weight_that_a_subgraph_has_a_copy_of() -> None:
    layout = Layout(3, 2, 2, 2, 1)
    exact = np.array([[3.0, 4.0], [3.0, 4.0], [0.0, 0.0]], np.float32)
    stored = quantize(torch.from_numpy(exact), layout, seed=0).freeze()
    half = replace(LAYER, weight_bytes=12)
    inner = replace(half, node="inner", place="choice.then_branch")
    reports = [report(half, layout, exact, stored)]
    for layer in (inner, inner):
        reports.append(report(layer, layout, exact, stored, earlier=reports))
    assert [entry.bytes_before for entry in reports] == [12, 0, 0]
    assert [entry.bytes_after for entry in reports] == [32, 32, 0]
    assert [entry.place for entry in reports] == ["", "choice.then_branch", "choice.then_branch"]


def test_report_of_a_weight_of_zeros() -> None:
    zeros = np.zeros((3, 2), np.float32)
    layout = Layout(3, 2, 2, 2, 1)
    stored = quantize(torch.from_numpy(zeros), layout, seed=0).freeze()
    assert report(LAYER, layout, zeros, stored).weight_error == 0


def statistics_of(x: torch.Tensor) -> InputStatistics:
    statistics = InputStatistics(x.shape[1])
    statistics.add(x.numpy(), "x")
    return statistics


def output_error(quantized: Quantized, matrix: torch.Tensor, x: torch.Tensor) -> float:
    return float((x @ (quantized.matrix() - matrix).T).norm() / (x @ matrix.T).norm())


def test_statistics_make_the_error_of_new_outputs_smaller() -> None:
    mixing = normal(32, 32, seed=4)
    seen, new = normal(2000, 32, seed=5) @ mixing, normal(500, 32, seed=6) @ mixing
    matrix, layout = normal(96, 32), Layout(96, 32, 4, 16, 8)
    plain = output_error(quantize(matrix, layout, seed=0), matrix, new)
    informed = output_error(quantize(matrix, layout, seed=0, statistics=statistics_of(seen)), matrix, new)
    assert informed < 0.75 * plain


@pytest.mark.parametrize(
    "x",
    [torch.ones(100, 8), torch.zeros(100, 8), normal(1, 8), normal(3, 8) * torch.tensor([0.0, 1] * 4)],
    ids=["constant", "zeros", "one row", "zero columns"],
)
def test_inputs_that_tell_little(x: torch.Tensor) -> None:
    matrix, layout = normal(40, 8), Layout(40, 8, 4, 8, 2)
    quantized = quantize(matrix, layout, seed=0, statistics=statistics_of(x))
    assert torch.isfinite(quantized.matrix()).all()
    assert float((quantized.matrix() - matrix).norm()) < 1.5 * float(matrix.norm())
    if float(x.abs().sum()) > 0:
        plain = output_error(quantize(matrix, layout, seed=0), matrix, x)
        assert output_error(quantized, matrix, x) <= plain


def test_same_seed_same_result_with_statistics() -> None:
    matrix, layout, statistics = normal(40, 30), Layout(40, 30, 4, 8, 3), statistics_of(normal(100, 30))
    first, second = (quantize(matrix, layout, seed=5, statistics=statistics) for _ in range(2))
    assert torch.equal(first.codebooks, second.codebooks)
    assert torch.equal(first.codes, second.codes)
    assert torch.equal(first.scales, second.scales)


def test_the_weight_is_left_alone() -> None:
    matrix = normal(24, 10)
    before = matrix.clone()
    for statistics in (None, statistics_of(normal(50, 10))):
        quantize(matrix, Layout(24, 10, 10, 8, 1), seed=0, statistics=statistics)
        assert torch.equal(matrix, before)

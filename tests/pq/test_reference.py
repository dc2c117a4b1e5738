import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pq_layers import PQLayer, layers, normal_rows, random_layer, rms

from onnxpq.pq.reference import TABLE_GROUP, decode, group_of, pq_matmul, pq_matmul_tables

TABLE_BUDGET = 4e-3
"""Error of y through the tables, relative to the rms of y."""

FAST_BUDGET = 0.018
"""The same through fast tables."""


def test_decode_by_hand() -> None:
    # d = 2, K = 2, codewords (1, 2) and (3, 4) in one group, (10, 20) and (30, 40) in the other; in = 3 drops the last.
    codebooks = np.array([[[[1, 2], [3, 4]], [[10, 20], [30, 40]]]], np.float32)
    codes = np.array([[[0, 1]], [[1, 0]]], np.uint8)
    weight = decode(codebooks, codes, np.array([1, -2], np.float32), 3)
    np.testing.assert_array_equal(weight, [[1, 2, 30], [-6, -8, -20]])


def test_stages_are_summed_by_hand() -> None:
    codebooks = np.array([[[[1.0], [2.0]]], [[[10.0], [20.0]]]])  # R = 2, d = 1
    codes = np.array([[[0, 1], [1, 1]]], np.uint8)  # [out=1, R=2, M=2]
    np.testing.assert_array_equal(decode(codebooks, codes, np.ones(1), 2), [[21, 22]])


@pytest.mark.parametrize(("groups", "expected"), [(1, [0, 0, 0, 0, 0]), (2, [0, 0, 0, 1, 1]), (5, [0, 1, 2, 3, 4])])
def test_groups_by_hand(groups: int, expected: list[int]) -> None:
    assert [group_of(m, groups, 5) for m in range(5)] == expected


@given(layers(st.integers(2, 40), max_out=9, max_in=20), st.integers(1, 4))
def test_gather_sum_equals_decoded_product(layer: PQLayer, rank: int) -> None:
    x = normal_rows(rank, *(2, 1, 3)[: rank - 1], layer.in_features)
    weight = decode(layer.codebooks, layer.codes, layer.scales, layer.in_features)
    expected = x.astype(np.float64) @ weight.T + layer.bias
    np.testing.assert_allclose(pq_matmul(x, *layer.arguments), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("fast", "budget"), [(False, TABLE_BUDGET), (True, FAST_BUDGET)])
@pytest.mark.parametrize(("in_features", "d", "stages"), [(64, 1, 1), (1000, 4, 1), (300, 2, 3), (1, 1, 1)])
def test_tables_stay_within_their_budget(in_features: int, d: int, stages: int, fast: bool, budget: float) -> None:
    layer = random_layer(7, 200, in_features, d=d, stages=stages)
    x = normal_rows(8, 5, in_features)
    exact = pq_matmul(x, *layer.arguments)
    assert rms(pq_matmul_tables(x, *layer.arguments, fast=fast) - exact) < budget * rms(exact)


def test_table_budget_notices_two_percent() -> None:
    layer = random_layer(7, 200, 1000)
    x = normal_rows(8, 5, 1000)
    exact = pq_matmul(x, *layer.arguments)
    assert rms(1.02 * pq_matmul_tables(x, *layer.arguments) - exact) > TABLE_BUDGET * rms(exact)


def test_sums_cannot_overflow() -> None:
    # Every sub-vector of a group chooses the largest entry: the sum comes as close to 16383 as it can.
    layer = random_layer(3, 2, 4 * TABLE_GROUP, d=4, groups=1)
    x = np.tile(normal_rows(4, 4), TABLE_GROUP)
    table = layer.codebooks[0, 0].astype(np.float32) @ x[:4]
    layer.codes[0], layer.codes[1] = table.argmax(), table.argmin()
    exact = pq_matmul(x, *layer.arguments)
    assert rms(pq_matmul_tables(x, *layer.arguments) - exact) < TABLE_BUDGET * rms(exact)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_table_row_that_is_not_finite_is_nan_and_others_are_as_before(value: float) -> None:
    layer = random_layer(5, 7, 300)
    layer.codebooks[...] *= 4
    x = normal_rows(6, 3, 300)
    before = pq_matmul_tables(x, *layer.arguments)
    x[1, 290] = value
    after = pq_matmul_tables(x, *layer.arguments)
    assert np.isnan(after[1]).all()
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])


@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-20, 1e20, 1e30])
def test_tables_of_any_size(scale: float) -> None:
    layer = random_layer(5, 7, 300)
    x = normal_rows(6, 3, 300) * np.float32(scale)
    exact = pq_matmul(x, *layer.arguments)
    assert rms(pq_matmul_tables(x, *layer.arguments) - exact) < TABLE_BUDGET * rms(exact)

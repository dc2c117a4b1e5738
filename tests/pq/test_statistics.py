import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxpq.errors import DataError
from onnxpq.pq.statistics import BUFFERED_ROWS, MAX_SHRINKAGE, MIN_SHRINKAGE, ColumnStatistics, InputStatistics


def rows_of(count: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, columns)).astype(np.float32)


def test_by_hand() -> None:
    statistics = InputStatistics(2)
    statistics.add(np.array([[1, 2]], np.float32), "x")
    statistics.add(np.array([[3, 0], [0, 0]], np.float32), "x")
    assert statistics.rows == 3
    np.testing.assert_allclose(statistics.second_moment, np.array([[10, 2], [2, 4]]) / 3)
    # Mean of the diagonal 7/3; in / (4 * rows) = 1/6 of the identity.
    shrunk = 5 / 6 * np.array([[10, 2], [2, 4]]) / 7 + 1 / 6 * np.eye(2)
    np.testing.assert_allclose(statistics.regularized(), shrunk)


def test_batches_are_one_sum() -> None:
    x = rows_of(100, 5)
    whole, parts = InputStatistics(5), InputStatistics(5)
    whole.add(x, "x")
    for part in np.array_split(x, 7):
        parts.add(part, "x")
    assert whole.rows == parts.rows == 100
    np.testing.assert_allclose(parts.second_moment, whole.second_moment, rtol=1e-5)
    np.testing.assert_allclose(whole.second_moment, x.T.astype(float) @ x / 100, rtol=1e-5, atol=1e-6)


def test_rows_that_are_multiplied_together_are_those_that_were_added() -> None:
    x = rows_of(2 * BUFFERED_ROWS + 7, 3)
    statistics = InputStatistics(3)
    for i, row in enumerate(x):
        given = row[None].copy()
        statistics.add(given, "x")
        assert statistics.rows == i + 1
        given[:] = 0  # the caller's array is its own again
    np.testing.assert_allclose(statistics.second_moment, x.T.astype(float) @ x / len(x), rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 40), columns=st.integers(1, 12), scale=st.sampled_from([0.0, 1e-12, 1.0, 1e12]))
def test_regularized_is_positive_definite_and_of_unit_size(rows: int, columns: int, scale: float) -> None:
    statistics = InputStatistics(columns)
    x = rows_of(rows, columns) * np.float32(scale)
    x[:, columns // 2] = 0  # an input that is always zero
    statistics.add(x, "x")
    found = statistics.regularized()
    assert np.trace(found) == pytest.approx(columns)
    assert np.linalg.eigvalsh(found).min() >= 0.9 * MIN_SHRINKAGE


def test_few_rows_are_trusted_less() -> None:
    shares = []
    for rows in (1, 20, 10_000):
        statistics = InputStatistics(2)
        statistics.add(np.tile(np.array([[1, 1]], np.float32), (rows, 1)), "x")
        shares.append(1 - statistics.regularized()[0, 1])
    assert shares == pytest.approx([MAX_SHRINKAGE, MIN_SHRINKAGE, MIN_SHRINKAGE])


def test_a_constant_input_and_no_rows() -> None:
    statistics = InputStatistics(3)
    assert np.array_equal(statistics.regularized(), np.eye(3))
    statistics.add(np.ones((50, 3), np.float32), "x")
    np.testing.assert_allclose(statistics.second_moment, np.ones((3, 3)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30, 1e17])
def test_numbers_without_a_square_are_refused(bad: float) -> None:
    x = rows_of(4, 3)
    x[2, 1] = bad
    with pytest.raises(DataError, match=r"'hidden'.*NaN, infinity"):
        InputStatistics(3).add(x, "hidden")


def test_rows_of_another_length_are_refused() -> None:
    with pytest.raises(DataError, match=r"'hidden' has rows of shape \[4\]; its layer takes \[3\]"):
        InputStatistics(3).add(rows_of(2, 4), "hidden")


def test_columns_far_from_zero_have_their_deviations() -> None:
    x = 1e6 + np.random.default_rng(0).standard_normal((1000, 4)) * [1, 10, 100, 0]
    columns = ColumnStatistics(4)
    assert columns.deviation.tolist() == [0, 0, 0, 0]
    for part in np.array_split(x, 9):
        columns.add(part)
    columns.add(x[:0])
    assert columns.rows == 1000
    np.testing.assert_allclose(columns.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(columns.deviation, x.std(0), rtol=1e-6)
    assert columns.is_finite
    columns.add(np.array([[0, np.nan, 1e300, 0]]))
    assert not columns.is_finite

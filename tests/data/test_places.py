"""Where the samples lie in a value: the way to the front and back, for numpy and torch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from onnxpq.data import Alignment, Place, distance


@st.composite
def laid(draw: st.DrawFn) -> tuple[Place, int, tuple[int, ...]]:
    """A place, a number of samples, and the shape of a value that has them there."""
    axis, rank = draw(st.integers(0, 3)), draw(st.integers(1, 4))
    place = Place(min(axis, rank - 1), draw(st.integers(1, 3)), draw(st.integers(1, 3)))
    samples = draw(st.integers(1, 4))
    shape = [draw(st.integers(1, 3)) for _ in range(rank)]
    shape[place.axis] = place.outer * samples * place.inner
    return place, samples, tuple(shape)


@given(laid())
def test_back_is_the_inverse(case: tuple[Place, int, tuple[int, ...]]) -> None:
    place, samples, shape = case
    value = np.arange(np.prod(shape)).reshape(shape)
    front = place.to_front(value)
    assert place.holds(shape, samples)
    assert len(front) == samples
    np.testing.assert_array_equal(place.to_model(front), value)
    tensor = torch.from_numpy(value)
    np.testing.assert_array_equal(place.to_front(tensor).numpy(), front)
    np.testing.assert_array_equal(place.to_model(place.to_front(tensor)).numpy(), value)


def test_samples_of_each_layout_by_hand() -> None:
    x = np.arange(24).reshape(2, 3, 4)  # [N, T, C]
    np.testing.assert_array_equal(Place(0).to_front(x), x)
    np.testing.assert_array_equal(Place(1).to_front(x.transpose(1, 0, 2)), x)  # [T, N, C]
    np.testing.assert_array_equal(Place(2).to_front(x.transpose(1, 2, 0)), x)  # [T, C, N]
    np.testing.assert_array_equal(Place(0, inner=3).to_front(x.reshape(6, 4)), x)  # [N * T, C]
    np.testing.assert_array_equal(Place(0, outer=3).to_front(x.transpose(1, 0, 2).reshape(6, 4)), x)  # [T * N, C]


def test_a_place_that_does_not_hold() -> None:
    assert not Place(0).holds((3, 2), 2)
    assert not Place(1).holds((2,), 2)
    assert not Place(0).holds((), 1)
    aligned = Alignment({"y": Place(1)})
    two, three = np.zeros((5, 2)), np.zeros((5, 3))
    assert aligned.samples("y", 2, two, three) is None
    assert aligned.samples("y", 3, two) is None
    assert aligned.samples("z", 2, two) is None
    assert [front.shape for front in aligned.samples("y", 2, two, two) or ()] == [(2, 5), (2, 5)]


def test_what_fills_up_a_batch_is_cut_off_where_the_samples_lie() -> None:
    aligned = Alignment({"y": Place(1)})
    value = np.arange(12).reshape(2, 3, 2)
    np.testing.assert_array_equal(aligned.counted("y", value, 3, 2), value[:, :2])
    assert aligned.counted("y", value, 3, 3) is value
    assert aligned.counted("z", value, 3, 2) is value


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (np.array([3.0, 4.0]), np.array([3.0, 4.5]), 0.1),
        (np.array([1.0, np.nan, np.inf]), np.array([1.0, np.nan, np.inf]), 0.0),
        (np.array([1.0, np.nan]), np.array([1.0, 1.0]), np.inf),
        (np.array([0.0]), np.array([1e-7]), 0.1),  # relative to what counts as noise
        (np.array([1, 2, 3, 4]), np.array([1, 2, 3, 5]), 0.25),
        (np.array(["a", "b"], object), np.array(["a", "c"], object), 0.5),
        (np.zeros((0, 3)), np.zeros((0, 3)), 0.0),
    ],
)
def test_distance(one: np.ndarray, other: np.ndarray, expected: float) -> None:
    assert distance(one, other, 1e-6) == pytest.approx(expected)

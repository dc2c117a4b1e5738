"""Samples and calls as values: cut into batches, split, drawn, made up."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpq.data import datasets
from onnxpq.data.datasets import Dataset
from onnxpq.data.inputs import InputSpec
from onnxpq.errors import DataError

FLOAT32 = np.dtype(np.float32)
X = InputSpec("x", FLOAT32, (None, 2))
IDS = InputSpec("ids", np.dtype(np.int64), (None, 3))
ARRAY = np.arange(8, dtype=np.float32).reshape(4, 2)


def test_last_batch_is_filled_up_where_the_batch_is_fixed() -> None:
    dataset = Dataset({"x": ARRAY}, np.arange(4))
    parts = list(datasets.batches(dataset, 3, exact=True))
    assert [count for _, count in parts] == [3, 1]
    assert np.array_equal(parts[1][0].inputs["x"], ARRAY[[3, 3, 3]])
    assert np.array_equal(parts[1][0].labels, [3, 3, 3])
    assert [len(part) for part, _ in datasets.batches(dataset, 3, exact=False)] == [3, 1]


@given(samples=st.integers(1, 40), size=st.integers(1, 12), exact=st.booleans())
def test_batches_put_together_are_the_samples(samples: int, size: int, exact: bool) -> None:
    dataset = Dataset({"x": np.arange(samples)})
    parts = list(datasets.batches(dataset, size, exact=exact))
    assert np.array_equal(np.concatenate([part.inputs["x"][:count] for part, count in parts]), np.arange(samples))
    if exact:
        assert all(len(part) == size for part, _ in parts)


def test_first() -> None:
    dataset = Dataset({"x": ARRAY})
    assert np.array_equal(datasets.first(dataset, None, 2)["x"], ARRAY[:2])
    assert np.array_equal(datasets.first(dataset, None, 9)["x"], ARRAY)
    assert np.array_equal(datasets.first(dataset, 6, 2)["x"], ARRAY[[0, 1, 2, 3, 3, 3]])


@given(samples=st.integers(2, 300), fraction=st.floats(0.001, 0.9), seed=st.integers(0, 2**32 - 1))
def test_split_is_two_disjoint_parts_of_everything(samples: int, fraction: float, seed: int) -> None:
    kept, held_out = datasets.split_rows(samples, fraction, seed)
    assert sorted([*kept, *held_out]) == list(range(samples))
    assert len(kept) >= 1
    assert len(held_out) == min(samples - 1, max(1, round(fraction * samples)))
    again = datasets.split_rows(samples, fraction, seed)
    assert np.array_equal(kept, again[0])
    assert np.array_equal(held_out, again[1])


def test_random_inputs() -> None:
    flag = InputSpec("flag", np.dtype(np.bool_), (None,))
    found = datasets.random_inputs([InputSpec("x", FLOAT32, (None, None, 5)), IDS, flag], 500, seed=3)
    assert {name: (array.shape, array.dtype.name) for name, array in found.inputs.items()} == {
        "x": ((500, 1, 5), "float32"),
        "ids": ((500, 3), "int64"),
        "flag": ((500,), "bool"),
    }
    assert abs(float(found.inputs["x"].mean())) < 0.1
    assert abs(float(found.inputs["x"].std()) - 1) < 0.1
    assert set(np.unique(found.inputs["ids"])) == {0, 1}
    assert np.array_equal(datasets.random_inputs([X], 5, 1).inputs["x"], datasets.random_inputs([X], 5, 1).inputs["x"])


@pytest.mark.parametrize(("fixed", "expected"), [(3, 9), (16, 16)])
def test_random_inputs_fill_fixed_batches(fixed: int, expected: int) -> None:
    assert len(datasets.random_inputs([InputSpec("x", FLOAT32, (fixed, 2))], 10, 0)) == expected


def test_random_text_is_not_made_up() -> None:
    message = "Input 's' is string [N]: no random samples can be made up for it. Give data with --data."
    with pytest.raises(DataError, match=re.escape(message)):
        datasets.random_inputs([InputSpec("s", np.dtype(object), (None,))], 1, 0)


def test_samples_drawn_at_random_are_not_the_first_ones() -> None:
    data = Dataset({"x": np.arange(100)}, np.arange(100))
    few = data.some(8, seed=3)
    np.testing.assert_array_equal(few.inputs["x"], few.labels)
    assert len(set(few.inputs["x"].tolist())) == 8
    assert few.inputs["x"].max() >= 8
    np.testing.assert_array_equal(data.some(8, seed=3).labels, few.labels)
    assert len(data.some(200)) == 100


def test_how_many_there_are() -> None:
    assert Dataset({"x": np.arange(5)}).count == "5 samples"
    assert Dataset({"x": datasets.of_objects([ARRAY])}, whole=True).count == "1 call"


def test_random_states_have_the_sizes_that_they_begin_with() -> None:
    specs = [X, InputSpec("h", FLOAT32, (2, None, None), axis=1, start=(2, None, 0))]
    found = datasets.random_inputs(specs, 3, 0)
    assert {name: array.shape for name, array in found.feeds.items()} == {"x": (3, 2), "h": (2, 3, 0)}
    fixed = [InputSpec("x", FLOAT32, (1, 4)), InputSpec("h", FLOAT32, (2, 1, 5), axis=1)]
    assert {name: array.shape for name, array in datasets.random_inputs(fixed, 3, 0).inputs.items()} == {
        "x": (3, 4),
        "h": (3, 2, 5),
    }


def test_random_calls_where_inputs_have_no_samples_in_common() -> None:
    found = datasets.random_inputs([X, InputSpec("rate", np.dtype(np.int64), ())], 3, 0)
    assert (found.whole, len(found)) == (True, 3)
    assert {name: array.shape for name, array in found.take(slice(1)).feeds.items()} == {"x": (1, 2), "rate": ()}


def test_one_sample_is_learned_from_and_judged_by() -> None:
    assert [rows.tolist() for rows in datasets.validation_rows(1, 0.1, 0)] == [[0], [0]]

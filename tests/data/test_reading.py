"""Data in all forms in which users give them."""

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxpq.config import BatchAxes
from onnxpq.data import batches, of_objects, reading
from onnxpq.data.datasets import Dataset
from onnxpq.data.inputs import InputSpec
from onnxpq.data.reading import Reading
from onnxpq.errors import DataError

FLOAT32 = np.dtype(np.float32)
X = InputSpec("x", FLOAT32, (None, 2))
IDS = InputSpec("ids", np.dtype(np.int64), (None, 3))
ARRAY = np.arange(8, dtype=np.float32).reshape(4, 2)


def load(
    source: Any, specs: list[InputSpec] | tuple[InputSpec, ...], *, label_key: str | None = None, **options: Any
) -> Dataset:
    return reading.load(source, Reading(tuple(specs), label_key, **options))


def refuse(source: Any, message: str, specs: tuple[InputSpec, ...] = (X,), **options: Any) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(message)}"):
        load(source, specs, **options)


# The four forms of data


@pytest.fixture
def npz(tmp_path: Path) -> Path:
    np.savez(tmp_path / "d.npz", x=ARRAY, y=np.arange(4), z=ARRAY)
    return tmp_path / "d.npz"


def same(dataset: Dataset, *, labels: bool = True) -> None:
    assert list(dataset.inputs) == ["x"]
    assert np.array_equal(dataset.inputs["x"], ARRAY)
    assert len(dataset) == 4
    if labels:
        assert np.array_equal(dataset.labels, np.arange(4))
    else:
        assert dataset.labels is None


@pytest.mark.parametrize("as_path", [Path, str])
def test_npz(npz: Path, as_path: type) -> None:
    found = load(as_path(npz), [X], label_key="y")
    same(found)
    assert found.unused == ("z",)


def test_compressed_npz(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=ARRAY, y=np.arange(4))
    same(load(tmp_path / "d.npz", [X], label_key="y"))


def test_mapping() -> None:
    same(load({"x": ARRAY, "y": [0, 1, 2, 3]}, [X], label_key="y"))
    same(load({"x": ARRAY, "y": np.arange(4)}, [X]), labels=False)


def test_iterable_of_batches_is_read_once_and_in_order() -> None:
    def batches() -> Iterator[dict[str, np.ndarray]]:
        yield {"x": ARRAY[:3], "y": np.arange(3)}
        yield {"x": ARRAY[3:], "y": np.array([3])}

    same(load(batches(), [X], label_key="y"))


def test_arrays_get_the_byte_order_of_the_machine() -> None:
    found = load({"x": ARRAY.astype(">f4"), "y": np.arange(4).astype(">i8")}, [X], label_key="y")
    same(found)
    assert found.inputs["x"].dtype.isnative
    assert found.labels is not None
    assert found.labels.dtype.isnative


def test_dataset_keeps_its_labels_with_or_without_a_key() -> None:
    same(load(Dataset({"x": ARRAY}, np.arange(4)), [X]))
    same(load(Dataset({"x": ARRAY}, np.arange(4)), [X], label_key="target"))
    same(load(Dataset({"x": ARRAY}), [X]), labels=False)


# What does not fit


def test_missing_input() -> None:
    refuse({"z": ARRAY}, "data lacks the model's input 'x' (float32 [N, 2]); found the keys 'z'.")
    refuse({}, "data lacks the model's input 'x' (float32 [N, 2]); found no keys.")
    refuse({"x": ARRAY}, "test data lacks the model's input 'ids' (int64 [N, 3]); found", (X, IDS), what="test data")


def test_wrong_type_shows_both() -> None:
    message = (
        "data: input 'x' has type float64, the model expects float32 [N, 2]. Convert it with array.astype('float32')."
    )
    refuse({"x": ARRAY.astype(np.float64)}, message)
    refuse({"x": ARRAY, "ids": np.zeros((4, 3), np.int32)}, "data: input 'ids' has type int32, the model", (X, IDS))


@pytest.mark.parametrize("shape", [(4, 3), (8,), (2, 2, 2), ()])
def test_wrong_shape_shows_both(shape: tuple[int, ...]) -> None:
    message = (
        f"data: input 'x' has shape {list(shape)}, the model expects float32 [N, 2] with the samples along axis 0."
    )
    refuse({"x": np.zeros(shape, np.float32)}, message)


def test_open_dimensions_take_any_size() -> None:
    spec = InputSpec("x", FLOAT32, (None, None, 3))
    assert spec.describe() == "float32 [N, ?, 3]"
    assert len(load({"x": np.zeros((5, 7, 3), np.float32)}, [spec])) == 5


def test_fixed_batch_does_not_limit_the_number_of_samples() -> None:
    assert len(load({"x": ARRAY}, [InputSpec("x", FLOAT32, (3, 2))])) == 4


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value: float) -> None:
    bad = np.zeros((5000, 2), np.float32)
    bad[4097] = value
    bad[4999, 1] = value
    refuse({"x": bad}, "data: input 'x' holds 3 NaN or infinite values, the first in sample 4097. Remove them.")
    labels = np.array([0.0, 1.0, value, 0.0])
    message = "data: labels 'y' holds 1 NaN or infinite values, the first in sample 2."
    refuse({"x": ARRAY, "y": labels}, message, label_key="y")


def test_no_samples() -> None:
    refuse({"x": ARRAY[:0]}, "data is empty: no samples. At least one is needed.")
    refuse([], "data is empty: the iterable gave no item.")


def test_different_lengths() -> None:
    arrays = {"x": ARRAY, "ids": np.zeros((3, 3), np.int64), "y": np.arange(4)}
    lengths = "{'x': 4, 'ids': 3, \"labels 'y'\": 4}"
    message = f"data: all arrays must have the same number of samples along axis 0; found {lengths}."
    refuse(arrays, message, (X, IDS), label_key="y")
    refuse({"x": ARRAY, "y": np.arange(2)}, "data: all arrays must have the same number", label_key="y")
    refuse({"x": ARRAY, "y": np.array(2)}, "data: all arrays must have the same number", label_key="y")
    refuse(Dataset({"x": ARRAY}, np.arange(2)), "data: all arrays must have the same number")


def test_missing_labels() -> None:
    refuse({"x": ARRAY}, "data has no labels: key 'y' expected, found the keys 'x'.", label_key="y")
    refuse(Dataset({"x": ARRAY}), "data has no labels: key 'y' expected, found the keys 'x'.", label_key="y")


def test_source_of_another_kind() -> None:
    refuse(3, "data is a int; expected the path of an .npz file or of a folder of them")
    refuse(ARRAY, "data: item 0 is a ndarray; each item must be a mapping {input name: array}.")
    refuse([{"x": ARRAY}, None], "data: item 1 is a NoneType; each item must be a mapping {input name: array}.")


def test_batches_that_differ() -> None:
    refuse([{"x": ARRAY}, {"z": ARRAY}], "data: item 1 has the keys 'z', the first one has the keys 'x'.")
    refuse([{"x": ARRAY}, {"x": ARRAY[:, :1]}], "data, item 1: input 'x' has shape [4, 1], the model expects")
    refuse([{"x": 1.0}, {"x": 2.0}], "data, item 0: input 'x' has type float64, the model expects")


# Files that are no .npz


def test_file_that_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "no.npz"
    refuse(
        path, f"data '{path}' does not exist. An .npz file with the model's inputs, or a folder of them, is expected."
    )
    refuse(tmp_path, f"data '{tmp_path}' is a folder without .npz files. One for each call of the model is expected")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x93NUMPY"])
def test_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "d.npz"
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=f"^data '{re.escape(str(path))}' (is no .npz file, or is damaged|lacks the model's input)"
    ):
        load(path, [X])


def test_single_array(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", ARRAY)
    message = (
        f"data '{tmp_path / 'd.npy'}' holds a single array; an .npz file with one array per input name is expected"
    )
    refuse(tmp_path / "d.npy", message)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.array([{}, []], dtype=object))
    message = f"data '{tmp_path / 'd.npz'}' holds arrays of objects. To load them runs whatever a stranger's file says"
    refuse(tmp_path / "d.npz", message)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_truncated_file_at_any_place(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "whole.npz", x=np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32))
    content = (tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "d.npz"
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=re.escape(f"data '{path}' is")):
            load(path, [X])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_file_is_refused_or_the_same(tmp_path: Path, save: Any) -> None:
    array = np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32)
    save(tmp_path / "whole.npz", x=array)
    content = (tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "d.npz"
    for place in range(0, len(content), 2):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            found = load(path, [X])
        except DataError:
            continue
        # Zip's checksum covers the arrays; dates and the like may be damaged.
        assert np.array_equal(found.inputs["x"], array), place


def test_member_that_is_no_array(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x", "hello")
    refuse(
        tmp_path / "d.npz", f"data '{tmp_path / 'd.npz'}': input 'x' has type |S5, the model expects float32 [N, 2]."
    )


# Calls


def test_a_call_has_no_parts() -> None:
    specs = [InputSpec("x", FLOAT32, (None, 3)), InputSpec("rate", np.dtype(np.int64), ())]
    call = load({"x": np.ones((4, 3), np.float32), "rate": np.array(8), "more": np.zeros(1)}, specs)
    assert (len(call), call.whole, call.unused) == (1, True, ("more",))
    assert {name: array.shape for name, array in call.feeds.items()} == {"x": (4, 3), "rate": ()}
    twice = call.take(np.array([0, 0]))
    parts = list(batches(twice, 64, exact=True))
    assert [(len(part), count) for part, count in parts] == [(1, 1), (1, 1)]
    assert all(part.feeds["x"].shape == (4, 3) for part, _ in parts)


def test_a_call_that_does_not_fit_is_refused() -> None:
    specs = [InputSpec("x", FLOAT32, (2, 3))]
    with pytest.raises(DataError, match=r"test: input 'x' has shape \[4, 3\], the model expects float32 \[2, 3\]\.$"):
        load({"x": np.ones((4, 3), np.float32)}, specs, whole=True, what="test")


def lengths_of(dataset: Dataset, name: str = "x") -> list[tuple[int, ...]]:
    return [dataset.take(slice(i, i + 1)).feeds[name].shape for i in range(len(dataset))]


STEPS = InputSpec("x", FLOAT32, (None, None, 2))
RAGGED = [np.full((n, 2), n, np.float32) for n in (3, 1, 2)]


def test_a_folder_has_a_call_in_each_file(tmp_path: Path) -> None:
    for index, rows in enumerate(RAGGED):
        np.savez(tmp_path / f"{index}.npz", x=rows[None], y=np.arange(len(rows)), more=1)
    found = load(tmp_path, [STEPS], label_key="y")
    assert (found.whole, found.unused, found.remarks) == (True, ("more",), ())
    assert lengths_of(found) == [(1, 3, 2), (1, 1, 2), (1, 2, 2)]
    assert found.labels is not None
    assert [labels.tolist() for labels in found.labels] == [[0, 1, 2], [0], [0, 1]]
    np.savez(tmp_path / "3.npz", x=np.zeros((1, 2), np.float32), y=0)
    message = f"data '{tmp_path / '3.npz'}': input 'x' has shape [1, 2], the model expects float32 [N, ?, 2]."
    refuse(tmp_path, message, (STEPS,))


@pytest.mark.parametrize("as_given", [list, of_objects])
@pytest.mark.parametrize("is_call", [False, True])
def test_arrays_of_objects_are_calls(as_given: Any, *, is_call: bool) -> None:
    rows = [entry[None] if is_call else entry for entry in RAGGED]
    found = load({"x": as_given(rows), "y": np.arange(3)}, [STEPS], label_key="y")
    assert found.whole
    assert lengths_of(found) == [(1, 3, 2), (1, 1, 2), (1, 2, 2)]
    assert found.labels is not None
    assert [labels.tolist() for labels in found.labels] == [[0], [1], [2]]
    message = "data: all arrays must have the same number of samples along axis 0; found {'x': 3, 'y': 2}."
    refuse({"x": as_given(rows), "y": np.arange(2)}, message, (STEPS,), label_key="y")


def test_arrays_of_objects_beside_others() -> None:
    specs = [STEPS, InputSpec("rate", FLOAT32, (None,)), InputSpec("turned", FLOAT32, (4, None), axis=1)]
    arrays = {"x": RAGGED, "rate": np.arange(3, dtype=np.float32), "turned": np.ones((4, 3), np.float32)}
    found = load(arrays, specs)
    assert found.take(slice(1, 2)).feeds["rate"].tolist() == [1]
    assert lengths_of(found, "turned") == [(4, 1)] * 3


def test_objects_of_one_shape_are_the_numbers_that_they_hold() -> None:
    same(load({"x": np.array(list(ARRAY), dtype=object), "y": np.arange(4)}, [X], label_key="y"))


def test_items_with_shapes_of_their_own_are_calls() -> None:
    found = load([{"x": rows[None]} for rows in RAGGED], [STEPS])
    assert (found.whole, len(found)) == (True, 3)
    assert found.remarks == ("The 3 items of the data cannot be put together, so that each is a call of its own.",)
    specs = [X, InputSpec("h", FLOAT32, (2, None))]
    calls = [{"x": ARRAY, "h": np.ones((2, 3), np.float32)} for _ in range(2)]
    assert load(calls, specs).whole  # 4 rows here, 2 there
    batches_ = [{"x": ARRAY}, {"x": ARRAY}]
    assert not load(batches_, [X]).whole
    told = load(batches_, [X], whole=True)
    assert (told.whole, len(told), told.remarks) == (True, 2, ())


def test_inputs_without_samples_in_common_are_calls() -> None:
    specs = [InputSpec("x", FLOAT32, (1, 3)), InputSpec("h", FLOAT32, (2,))]
    call = {"x": np.ones((1, 3), np.float32), "h": np.ones(2, np.float32)}
    assert load(call, specs).whole
    assert len(load([call, call], specs)) == 2


def test_samples_along_another_axis() -> None:
    turned = InputSpec("x", FLOAT32, (None, None, 2), axis=1)
    x, y = np.arange(24, dtype=np.float32).reshape(4, 3, 2), np.arange(12).reshape(4, 3)
    found = load({"x": x, "y": y}, [turned], label_key="y", axes=BatchAxes(1))
    assert len(found) == 3
    np.testing.assert_array_equal(found.take(slice(1, 2)).feeds["x"], x[:, 1:2])
    np.testing.assert_array_equal(found.labels, y.T)
    parts = load([{"x": x, "y": y}, {"x": x[:, :1], "y": y[:, :1]}], [turned], label_key="y", axes=BatchAxes(1))
    assert len(parts) == 4
    # Labels of whole sequences.
    found = load({"x": x, "y": np.arange(3)}, [turned], label_key="y", axes=BatchAxes(1))
    np.testing.assert_array_equal(found.labels, np.arange(3))
    lengths = "{'x': 3, \"labels 'y'\": 4}"
    message = f"data: all arrays must have the same number of samples along their batch axes; found {lengths}"
    refuse({"x": x, "y": y[:, 0]}, message, (turned,), label_key="y", axes=BatchAxes(1))


def test_what_is_not_finite_is_named_by_its_sample_or_its_place() -> None:
    turned = InputSpec("x", FLOAT32, (None, None, 2), axis=1)
    x = np.zeros((4, 3, 2), np.float32)
    x[3, 1, 0] = np.nan
    refuse({"x": x}, "data: input 'x' holds 1 NaN or infinite values, the first in sample 1. Remove them.", (turned,))
    message = "data: input 'x' holds 1 NaN or infinite values, the first at [3, 1, 0]. Remove them."
    refuse({"x": x}, message, (STEPS,), whole=True)


def test_batches_beside_what_is_no_input() -> None:
    items = [{"x": ARRAY, "name": np.array("a")}, {"x": ARRAY[:1], "name": np.array("b")}]
    found = load(items, [X])
    assert (found.whole, len(found), found.unused) == (False, 5, ("name",))


def test_states_that_are_not_given_begin_at_zeros() -> None:
    state = InputSpec("h", FLOAT32, (2, None, 5), axis=1, start=(2, None, 5))
    found = load({"x": ARRAY}, [X, state])
    (remark,) = found.remarks
    assert remark.startswith(
        "The data lacks the states 'h' float32 [2, N, 5]: they begin at zeros, in every call. What"
    )
    part = found.take(np.array([0, 2])).feeds
    assert (part["x"].shape, part["h"].shape, part["h"].any()) == ((2, 2), (2, 2, 5), np.False_)
    given = load({"x": ARRAY, "h": np.ones((2, 4, 5), np.float32)}, [X, state])
    assert (given.remarks, given.feeds["h"].all()) == ((), np.True_)
    calls = load([{"x": ARRAY}, {"x": ARRAY[:1], "h": np.ones((2, 1, 5), np.float32)}], [X, state])
    assert (calls.whole, lengths_of(calls, "h")) == (True, [(2, 4, 5), (2, 1, 5)])
    refuse({"h": np.ones((2, 4, 5), np.float32)}, "data lacks the model's input 'x'", (X, state))


def test_a_data_set_is_read_as_it_is() -> None:
    calls = load(RAGGED and {"x": RAGGED, "y": np.arange(3)}, [STEPS], label_key="y")
    again = load(calls, [STEPS])
    assert (again.whole, lengths_of(again), again.labels is calls.labels) == (True, lengths_of(calls), True)
    turned = InputSpec("x", FLOAT32, (None, None, 2), axis=1)
    samples = load({"x": np.arange(24, dtype=np.float32).reshape(4, 3, 2)}, [turned])
    np.testing.assert_array_equal(load(samples, [turned]).feeds["x"], samples.feeds["x"])

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxpq.config import Config
from onnxpq.data import datasets, sampling
from onnxpq.data.datasets import Dataset, InputSpec
from onnxpq.errors import DataError, ModelError

FLOAT32 = np.dtype(np.float32)
X = InputSpec("x", FLOAT32, (None, 2))
IDS = InputSpec("ids", np.dtype(np.int64), (None, 3))
ARRAY = np.arange(8, dtype=np.float32).reshape(4, 2)


def model_of(text: str) -> ir.Model:
    return ir.from_onnx_text(f'<ir_version: 8, opset_import: ["" : 17]>\nmain {text}')


def refuse(source: Any, message: str, specs: tuple[InputSpec, ...] = (X,), **options: Any) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(message)}"):
        datasets.load(source, specs, **options)


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
    found = datasets.load(as_path(npz), [X], label_key="y")
    same(found)
    assert found.unused == ("z",)


def test_compressed_npz(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "d.npz", x=ARRAY, y=np.arange(4))
    same(datasets.load(tmp_path / "d.npz", [X], label_key="y"))


def test_mapping() -> None:
    same(datasets.load({"x": ARRAY, "y": [0, 1, 2, 3]}, [X], label_key="y"))
    same(datasets.load({"x": ARRAY, "y": np.arange(4)}, [X]), labels=False)


def test_iterable_of_batches_is_read_once_and_in_order() -> None:
    def batches() -> Iterator[dict[str, np.ndarray]]:
        yield {"x": ARRAY[:3], "y": np.arange(3)}
        yield {"x": ARRAY[3:], "y": np.array([3])}

    same(datasets.load(batches(), [X], label_key="y"))


def test_arrays_get_the_byte_order_of_the_machine() -> None:
    found = datasets.load({"x": ARRAY.astype(">f4"), "y": np.arange(4).astype(">i8")}, [X], label_key="y")
    same(found)
    assert found.inputs["x"].dtype.isnative
    assert found.labels is not None
    assert found.labels.dtype.isnative


def test_dataset_keeps_its_labels_with_or_without_a_key() -> None:
    same(datasets.load(Dataset({"x": ARRAY}, np.arange(4)), [X]))
    same(datasets.load(Dataset({"x": ARRAY}, np.arange(4)), [X], label_key="target"))
    same(datasets.load(Dataset({"x": ARRAY}), [X]), labels=False)


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
    assert len(datasets.load({"x": np.zeros((5, 7, 3), np.float32)}, [spec])) == 5


def test_fixed_batch_does_not_limit_the_number_of_samples() -> None:
    assert len(datasets.load({"x": ARRAY}, [InputSpec("x", FLOAT32, (3, 2))])) == 4


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


@pytest.mark.parametrize("wrong", [{"x": np.float32(1)}, {}])
def test_scalar_input_is_refused(wrong: dict[str, Any]) -> None:
    scalar = InputSpec("t", FLOAT32, ())
    message = "Input 't' is a scalar: onnxpq needs every input to have its samples along axis 0. Make it a constant"
    refuse({"t": np.float32(1), **wrong}, message, (scalar,))
    with pytest.raises(DataError, match=re.escape(message)):
        datasets.random_inputs([scalar], 3, 0)


def test_source_of_another_kind() -> None:
    refuse(3, "data is a int; expected the path of an .npz file, a mapping {input name: array}, or an iterable of such")
    refuse(ARRAY, "data: item 0 is a ndarray; each item must be a mapping {input name: array}.")
    refuse([{"x": ARRAY}, None], "data: item 1 is a NoneType; each item must be a mapping {input name: array}.")


def test_batches_that_differ() -> None:
    refuse([{"x": ARRAY}, {"z": ARRAY}], "data: item 1 has the keys 'z', the first one has the keys 'x'.")
    refuse([{"x": ARRAY}, {"x": ARRAY[:, :1]}], "data: the items cannot be put together along axis 0:")
    refuse([{"x": 1.0}, {"x": 2.0}], "data: the items cannot be put together along axis 0:")


# Files that are no .npz


def test_file_that_is_missing(tmp_path: Path) -> None:
    for path in (tmp_path / "no.npz", tmp_path):
        refuse(path, f"data '{path}' does not exist or is no file. A .npz file with the model's inputs is expected.")


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"PK\x05\x06" + bytes(18), b"\x93NUMPY"])
def test_file_of_another_kind(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "d.npz"
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=f"^data '{re.escape(str(path))}' (is no .npz file, is damaged|lacks the model's input)"
    ):
        datasets.load(path, [X])


def test_single_array(tmp_path: Path) -> None:
    np.save(tmp_path / "d.npy", ARRAY)
    message = (
        f"data '{tmp_path / 'd.npy'}' holds a single array; an .npz file with one array per input name is expected"
    )
    refuse(tmp_path / "d.npy", message)


def test_pickled_objects_are_never_loaded(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.array([{}, []], dtype=object))
    message = (
        f"data '{tmp_path / 'd.npz'}' is no .npz file, is damaged, or holds objects instead of numbers: Object arrays"
    )
    refuse(tmp_path / "d.npz", message)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_truncated_file_at_any_place(tmp_path: Path, save: Any) -> None:
    save(tmp_path / "whole.npz", x=np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32))
    content = (tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "d.npz"
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(DataError, match=re.escape(f"data '{path}' is")):
            datasets.load(path, [X])


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_file_is_refused_or_the_same(tmp_path: Path, save: Any) -> None:
    array = np.random.default_rng(0).standard_normal((50, 2)).astype(np.float32)
    save(tmp_path / "whole.npz", x=array)
    content = (tmp_path / "whole.npz").read_bytes()
    path = tmp_path / "d.npz"
    for place in range(0, len(content), 2):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            found = datasets.load(path, [X])
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


# The model's inputs


def test_input_specs_leave_initializers_out() -> None:
    model = model_of(
        "(float[N,2] x, int64[3,S] ids, float[2] w) => (float[N,2] y) <float[2] w = {1, 2}> { y = Mul(x, w) }"
    )
    assert [value.name for value in model.graph.inputs] == ["x", "ids", "w"]
    specs = datasets.input_specs(model)
    assert specs == [X, InputSpec("ids", np.dtype(np.int64), (3, None))]
    assert [spec.describe() for spec in specs] == ["float32 [N, 2]", "int64 [3, ?]"]


def test_input_without_shape_or_tensor() -> None:
    model = model_of("(float[N,2] x) => (float[N,2] y) { y = Relu(x) }")
    model.graph.inputs[0].shape = None
    with pytest.raises(ModelError, match=r"Input 'x' has type FLOAT and shape None: onnxpq needs tensors of known"):
        datasets.input_specs(model)
    model = model_of("(seq(float[N]) s, float[N] x) => (float[N] y) { y = Relu(x) }")
    with pytest.raises(ModelError, match="Input 's' has type Sequence"):
        datasets.input_specs(model)


def test_fixed_batch() -> None:
    assert datasets.fixed_batch([X, IDS]) is None
    assert datasets.fixed_batch([X, InputSpec("b", FLOAT32, (3, 1)), InputSpec("s", FLOAT32, ())]) == 3
    with pytest.raises(DataError, match=re.escape("different fixed first dimensions: {'a': 2, 'b': 3}. onnxpq needs")):
        datasets.fixed_batch([InputSpec("a", FLOAT32, (2,)), InputSpec("b", FLOAT32, (3,))])


# Cutting


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


def test_a_call_has_no_parts() -> None:
    specs = [InputSpec("x", FLOAT32, (None, 3)), InputSpec("rate", np.dtype(np.int64), ())]
    assert not datasets.has_samples(specs)
    assert datasets.has_samples(specs[:1])
    call = datasets.load_call(
        {"x": np.ones((4, 3), np.float32), "rate": np.array(8), "more": np.zeros(1)}, specs, what="test"
    )
    assert (len(call), call.whole, call.unused) == (1, True, ("more",))
    assert {name: array.shape for name, array in call.feeds.items()} == {"x": (4, 3), "rate": ()}
    twice = call.take(np.array([0, 0]))
    parts = list(datasets.batches(twice, 64, exact=True))
    assert [(len(part), count) for part, count in parts] == [(1, 1), (1, 1)]
    assert all(part.feeds["x"].shape == (4, 3) for part, _ in parts)


def test_a_call_that_does_not_fit_is_refused() -> None:
    specs = [InputSpec("x", FLOAT32, (2, 3))]
    with pytest.raises(DataError, match=r"test: input 'x' has shape \[4, 3\], the model expects float32 \[2, 3\]\.$"):
        datasets.load_call({"x": np.ones((4, 3), np.float32)}, specs, what="test")


def test_samples_drawn_at_random_are_not_the_first_ones() -> None:
    data = Dataset({"x": np.arange(100)}, np.arange(100))
    few = data.some(8, seed=3)
    np.testing.assert_array_equal(few.inputs["x"], few.labels)
    assert len(set(few.inputs["x"].tolist())) == 8
    assert few.inputs["x"].max() >= 8
    np.testing.assert_array_equal(data.some(8, seed=3).labels, few.labels)
    assert len(data.some(200)) == 100


def test_labels_are_told_as_they_were_given() -> None:
    labels = np.arange(20)
    specs = [InputSpec("x", FLOAT32, (None, 3))]
    arrays = {"x": np.zeros((20, 3), np.float32), "y": labels}
    train, evidence, _ = sampling.prepare(specs, arrays, test=None, labels="y", config=Config())
    np.testing.assert_array_equal(evidence.labels_as_given(train), labels)
    train, evidence, _ = sampling.prepare(specs, arrays, test=arrays, labels="y", config=Config())
    np.testing.assert_array_equal(evidence.labels_as_given(train), labels)

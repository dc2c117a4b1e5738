import numpy as np
import onnx
import onnx_ir as ir
import pytest

from onnxpq.data import Dataset, Place, of_objects
from onnxpq.errors import ConfigError, DataError, OutputError
from onnxpq.runtime import sessions
from onnxpq.runtime.activations import capture, extract, fixed_batch

FLOAT = onnx.TensorProto.FLOAT
rng = np.random.default_rng(0)
X = rng.normal(size=(10, 3)).astype(np.float32)
W = rng.normal(size=(3, 2)).astype(np.float32)


def model(batch="N", weight=W) -> ir.Model:
    h = onnx.helper
    graph = h.make_graph(
        [
            h.make_node("MatMul", ["x", "w"], ["a"]),
            h.make_node("Relu", ["a"], ["y"]),
            h.make_node("Transpose", ["a"], ["t"]),
            h.make_node("ReduceSum", ["a"], ["s"], keepdims=0),
            h.make_node("Cast", ["a"], ["text"], to=onnx.TensorProto.STRING),
            h.make_node("Add", ["a", "other"], ["z"]),
        ],
        "g",
        [h.make_tensor_value_info("x", FLOAT, [batch, 3]), h.make_tensor_value_info("other", FLOAT, [batch, 2])],
        [h.make_tensor_value_info("y", FLOAT, [batch, 2]), h.make_tensor_value_info("z", FLOAT, [batch, 2])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    return ir.from_proto(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8))


@pytest.fixture
def counted(monkeypatch):
    runs = []
    real = sessions.run

    def run(session, inputs):
        runs.append({name: array.shape for name, array in inputs.items()})
        return real(session, inputs)

    monkeypatch.setattr(sessions, "run", run)
    return runs


@pytest.mark.parametrize("on_disk", [False, True])
def test_values_of_a_whole_data_set(tmp_path, counted, on_disk):
    steps = []
    found = capture(
        model(),
        ["y", "a"],
        Dataset({"x": X}),
        cache_dir=tmp_path / "deep" / "cache" if on_disk else None,
        batch_size=4,
        progress=lambda done, total: steps.append((done, total)),
    ).inputs
    np.testing.assert_allclose(found["a"], X @ W, rtol=1e-5)
    np.testing.assert_allclose(found["y"], np.maximum(X @ W, 0), rtol=1e-5)
    # What is measured comes first: 8 samples, and two parts of them.
    assert [run["x"] for run in counted] == [(8, 3), (2, 3), (6, 3), (4, 3), (4, 3), (2, 3)]
    assert steps == [(4, 10), (8, 10), (10, 10)]
    assert isinstance(found["a"], np.memmap) == on_disk


@pytest.mark.parametrize("batch", [1, 4])
def test_a_fixed_batch_is_kept_and_the_last_one_filled_up(counted, batch):
    found = capture(model(batch), ["y"], Dataset({"x": X}), cache_dir=None).inputs
    np.testing.assert_allclose(found["y"], np.maximum(X @ W, 0), rtol=1e-5)
    assert {run["x"] for run in counted} == {(batch, 3)}


def test_a_second_run_reads_the_cache(tmp_path, counted):
    first = capture(model(), ["y"], Dataset({"x": X}), cache_dir=tmp_path)
    runs = len(counted)
    second = capture(model(), ["y"], Dataset({"x": X}), cache_dir=tmp_path, places=first.places)
    assert len(counted) == runs
    np.testing.assert_array_equal(first.inputs["y"], second.inputs["y"])


@pytest.mark.parametrize(
    ("changed", "names", "data"),
    [
        (model(weight=2 * W), ["y"], X),
        (model(), ["a"], X),
        (model(), ["y", "a"], X),
        (model(), ["y"], np.concatenate([X[:-1], X[-1:] + 1])),
        (model(4), ["y"], X),
    ],
)
def test_another_model_name_or_data_is_computed_anew(tmp_path, counted, changed, names, data):
    capture(model(), ["y"], Dataset({"x": X}), cache_dir=tmp_path)
    runs = len(counted)
    capture(changed, names, Dataset({"x": data}), cache_dir=tmp_path)
    assert len(counted) > runs


def test_the_cache_cannot_be_changed_through_its_arrays(tmp_path):
    capture(model(), ["y"], Dataset({"x": X}), cache_dir=tmp_path).inputs["y"][:] = 0
    assert capture(model(), ["y"], Dataset({"x": X}), cache_dir=tmp_path).inputs["y"].any()


def test_samples_come_first_wherever_the_model_has_them(counted):
    found = capture(model(), ["t", "a"], Dataset({"x": X}), cache_dir=None, batch_size=4)
    np.testing.assert_allclose(found.inputs["t"], X @ W, rtol=1e-5)
    assert found.places == {"t": Place(1), "a": Place(0)}
    # And they go back to where the model has them.
    np.testing.assert_allclose(found.take(slice(3)).feeds["t"], (X[:3] @ W).T, rtol=1e-5)
    counted.clear()
    again = capture(model(), ["t"], Dataset({"x": X}), cache_dir=None, places={"t": Place(1)})
    np.testing.assert_array_equal(again.inputs["t"], found.inputs["t"])
    assert len(counted) == 1


def test_an_interrupted_run_leaves_nothing_behind(tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        capture(model(), ["y"], Dataset({"x": X}), cache_dir=tmp_path, batch_size=4, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_may_fill_the_same_cache(tmp_path):
    def other_process(done, total):
        if done == total:
            capture(model(), ["y"], Dataset({"x": X}), cache_dir=tmp_path)

    found = capture(model(), ["y"], Dataset({"x": X}), cache_dir=tmp_path, progress=other_process).inputs
    np.testing.assert_allclose(found["y"], np.maximum(X @ W, 0), rtol=1e-5)
    assert len(list(tmp_path.iterdir())) == 1


def test_an_input_is_passed_on(counted):
    assert capture(model(), ["x"], Dataset({"x": X}), cache_dir=None).inputs["x"] is X
    assert counted == []
    both = capture(model(), ["more", "y"], Dataset({"x": X, "more": X}), cache_dir=None).inputs
    assert both["more"] is X


def test_a_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be cached in .*file.*Choose another cache folder, or none"):
        capture(model(), ["y"], Dataset({"x": X}), cache_dir=tmp_path / "file")


@pytest.mark.parametrize(
    ("names", "inputs", "sentence"),
    [
        (["s"], {"x": X}, "Value 's' has no dimension whose size is that of the batch, so that it cannot be kept for"),
        (["text"], {"x": X}, "Value 'text' holds object and cannot be collected"),
        (["y"], {}, "The data lacks the inputs x. It has nothing"),
        (["z"], {"x": X, "other": X[:3, :2]}, r"same number of samples, at least one. Got {'x': 10, 'other': 3}"),
        (["y"], {"x": X[:0]}, r"Got {'x': 0}"),
    ],
)
def test_data_that_does_not_fit(names, inputs, sentence):
    with pytest.raises(DataError, match=sentence):
        capture(model(), names, Dataset(inputs), cache_dir=None, batch_size=4)


def test_a_value_whose_size_changes_from_batch_to_batch():
    h = onnx.helper
    graph = h.make_graph(
        [h.make_node("NonZero", ["x"], ["n"]), h.make_node("Transpose", ["n"], ["r"])],
        "g",
        [h.make_tensor_value_info("x", FLOAT, ["N", 1])],
        [h.make_tensor_value_info("n", onnx.TensorProto.INT64, None)],
    )
    counting = ir.from_proto(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)], ir_version=8))
    data = np.array([[1], [1], [0], [1]], dtype=np.float32)
    with pytest.raises(DataError, match="Value 'n' has no dimension whose size is that of the batch"):
        capture(counting, ["n"], Dataset({"x": data}), cache_dir=None, batch_size=2)
    # Where the few that were looked at let nothing suspect it.
    known = {"n": Place(1)}
    with pytest.raises(DataError, match=r"has shape \[2, 1\] for a batch of 2 samples: its size depends on what they"):
        capture(counting, ["n"], Dataset({"x": data}), cache_dir=None, batch_size=2, places=known)


def test_unknown_values_are_refused():
    with pytest.raises(ConfigError, match="values x cannot be computed from "):
        capture(extract(model(), ["a"], ["y"]), ["x"], Dataset({"a": X}), cache_dir=None)
    with pytest.raises(ConfigError, match="nowhere"):
        capture(model(), ["nowhere"], Dataset({"x": X}), cache_dir=None)
    with pytest.raises(ConfigError, match="cannot be computed from other"):
        extract(model(), ["other"], ["y"])


def test_extract_keeps_only_what_is_needed():
    part = extract(model(), ["x", "other"], ["a"])
    assert [node.op_type for node in part.graph] == ["MatMul"]
    assert [value.name for value in part.graph.inputs] == ["x"]
    assert len(list(model().graph)) == 6


def test_fixed_batch():
    assert fixed_batch(model()) is None
    assert fixed_batch(model(4)) == 4
    mixed = model(4)
    mixed.graph.inputs[1].shape = ir.Shape([5, 2])
    with pytest.raises(DataError, match=r"different fixed batch dimensions: \{'x': 4, 'other': 5\}"):
        fixed_batch(mixed)


@pytest.mark.parametrize("on_disk", [False, True])
def test_whole_calls_are_run_one_by_one_as_they_are(tmp_path, counted, on_disk):
    calls = Dataset({"x": of_objects([X[:3], X[3:4], X[4:]])}, whole=True)
    steps = []
    cache = tmp_path if on_disk else None
    for _ in range(2):
        found = capture(
            model(), ["a", "s", "x"], calls, cache_dir=cache, progress=lambda done, total: steps.append((done, total))
        )
        assert found.whole
        for own, rows in zip(found.inputs["a"], calls.inputs["x"], strict=True):
            np.testing.assert_allclose(own, rows @ W, rtol=1e-5)
        assert [value.shape for value in found.inputs["s"]] == [(), (), ()]
        assert found.inputs["x"] is calls.inputs["x"]
    runs = 1 if on_disk else 2
    assert [run["x"] for run in counted] == [(3, 3), (1, 3), (6, 3)] * runs
    assert steps == [(1, 3), (2, 3), (3, 3)] * runs

import gc
import os
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from pq_layers import IR_VERSION, model_of, normal_rows, random_layer

import onnxpq
from benchmarks.common.memory import anonymous
from onnxpq.errors import DataError, ModelError, RuntimeLibraryError
from onnxpq.graph import files
from onnxpq.runtime import sessions
from onnxpq.support import memory

LAYER = random_layer(1, 10, 33)
MODEL = model_of(LAYER)
X = normal_rows(2, 3, 33)

needs_library = pytest.mark.skipif(not sessions.library_available(), reason="onnxpq was built without a C++ compiler")


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnxpq, "__path__", [str(tmp_path)])
    monkeypatch.setattr(sessions, "_warned", False)


@needs_library
def test_library_path_is_a_file_that_onnxruntime_loads() -> None:
    assert os.path.isfile(onnxpq.library_path())
    onnxruntime.SessionOptions().register_custom_ops_library(onnxpq.library_path())


def test_library_is_found_in_either_folder_of_an_editable_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built = tmp_path / "built" / "lib"
    built.mkdir(parents=True)
    (built / sessions.LIBRARY_NAMES[0]).touch()
    monkeypatch.setattr(onnxpq, "__path__", [str(tmp_path / "checkout"), str(tmp_path / "built")])
    assert sessions.library_path() == str(built / sessions.LIBRARY_NAMES[0])


@pytest.mark.usefixtures("no_library")
def test_missing_library_is_said_with_a_sentence(tmp_path: Path) -> None:
    assert not sessions.library_available()
    message = f"This installation of onnxpq has no operator library (looked for libonnxpq_ops.so, .* in {tmp_path}"
    with pytest.raises(RuntimeLibraryError, match=message.replace("(", r"\(")):
        sessions.library_path()


@pytest.mark.usefixtures("no_library")
def test_missing_library_warns_once_and_the_function_body_runs() -> None:
    with pytest.warns(RuntimeWarning, match="installed without its operator library") as warnings:
        first = sessions.session(MODEL)
    assert warnings[0].filename == __file__
    second = sessions.session(MODEL)  # a second warning would be an error here
    body = sessions.session(MODEL, use_library=False)
    for session in (first, second):
        np.testing.assert_array_equal(session.run(None, {"X": X})[0], body.run(None, {"X": X})[0])


def test_every_form_of_a_model(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(MODEL, path)
    external = tmp_path / "external.onnx"
    ir.save(ir.from_proto(MODEL), external, external_data="external.data", size_threshold_bytes=0)
    assert (tmp_path / "external.data").stat().st_size > 0
    forms = [str(path), path, path.read_bytes(), MODEL, ir.from_proto(MODEL), external, ir.load(external)]
    outputs = [sessions.session(form, use_library=False).run(None, {"X": X})[0] for form in forms]
    for output in outputs:
        np.testing.assert_array_equal(output, outputs[0])


def test_large_model_in_memory_goes_by_way_of_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sessions, "HANDED_BYTES", 100)
    monkeypatch.setattr(files, "to_bytes", None)
    session = sessions.session(ir.from_proto(MODEL), use_library=False)
    expected = sessions.session(MODEL, use_library=False).run(None, {"X": X})[0]
    np.testing.assert_array_equal(session.run(None, {"X": X})[0], expected)


def test_without_prepacking_the_outputs_are_the_same() -> None:
    packed, plain = (sessions.session(MODEL, use_library=False, prepack=prepack) for prepack in (True, False))
    np.testing.assert_allclose(plain.run(None, {"X": X})[0], packed.run(None, {"X": X})[0], rtol=1e-5, atol=1e-6)


def test_a_model_is_large_by_all_its_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, external = tmp_path / "model.onnx", tmp_path / "external.onnx"
    onnx.save(MODEL, path)
    ir.save(ir.from_proto(MODEL), external, external_data="external.data", size_threshold_bytes=0)
    forms = [str(path), path, path.read_bytes(), MODEL, ir.from_proto(MODEL), external]
    least = files.tensor_bytes(ir.from_proto(MODEL))
    for limit, is_large in ((least - 1, True), (2 * least + 10**4, False)):
        monkeypatch.setattr(files, "LARGE_BYTES", limit)
        assert [sessions.is_large(form) for form in forms] == [is_large] * len(forms)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not tell what was allocated")
@pytest.mark.parametrize("view", [[], ["Transpose"]])
def test_a_frugal_session_of_a_large_model_holds_no_weights(view: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    size, depth = 1024, 4
    weights = [normal_rows(i, size, size) / size**0.5 for i in range(depth)]
    names = ["x", *(f"h{i}" for i in range(1, depth)), "y"]
    nodes = []
    for i in range(depth):
        nodes += [helper.make_node(kind, [f"w{i}"], [f"v{i}"], perm=[1, 0]) for kind in view]
        nodes.append(helper.make_node("MatMul", [names[i], f"v{i}" if view else f"w{i}"], [names[i + 1]]))
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", size]) for name in ("x", "y")]
    constants = [onnx.numpy_helper.from_array(weight, f"w{i}") for i, weight in enumerate(weights)]
    graph = helper.make_graph(nodes, "chain", infos[:1], infos[1:], constants)
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    x = normal_rows(9, 2, size)
    expected = x
    for weight in weights:
        expected = expected @ (weight.T if view else weight)
    taken = {}
    for limit in (0, 2**27):
        monkeypatch.setattr(files, "LARGE_BYTES", limit)
        gc.collect()  # models that are garbage, of the case before, would be collected while this one is measured
        memory.give_back()
        before = anonymous()
        session = sessions.frugal(model)
        found = sessions.run(session, {"x": x})["y"]
        memory.give_back()
        taken[limit] = (anonymous() - before) / (4 * size * size * depth)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
        del session
    assert taken[0] < 0.3, f"bytes for each byte of the weights: {taken}"
    assert taken[2**27] > 0.7, f"and of a small model they are held: {taken}"


@needs_library
def test_options_of_the_caller_may_be_used_twice() -> None:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    outputs = [sessions.session(MODEL, options=options).run(None, {"X": X})[0] for _ in range(2)]
    np.testing.assert_array_equal(outputs[0], outputs[1])


def test_missing_file_and_damaged_model_are_model_errors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"cannot load the model '.*absent.onnx': .*doesn't exist"):
        sessions.session(tmp_path / "absent.onnx", use_library=False)
    with pytest.raises(ModelError, match="cannot load the model given in memory: "):
        sessions.session(b"this is no model", use_library=False)


@needs_library
def test_library_needs_a_recent_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "__version__", "1.16.3")
    with pytest.raises(RuntimeLibraryError, match=r"This is onnxruntime 1\.16\.3; .* needs 1\.17 or newer"):
        sessions.session(MODEL)


@needs_library
def test_library_that_cannot_be_loaded_is_a_library_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / sessions.LIBRARY_NAMES[0]).write_bytes(b"no library")
    monkeypatch.setattr(onnxpq, "__path__", [str(tmp_path)])
    with pytest.raises(RuntimeLibraryError, match=r"refuses the operator library '.*libonnxpq_ops.so': "):
        sessions.session(MODEL)


def test_missing_onnxruntime_is_said_with_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(RuntimeLibraryError, match=r"onnxruntime cannot be imported .* `pip install onnxruntime`"):
        sessions.session(MODEL)


def test_run_gives_outputs_by_name() -> None:
    session = sessions.session(MODEL, use_library=False)
    outputs = sessions.run(session, {"X": X})
    assert list(outputs) == ["Y"]
    np.testing.assert_array_equal(outputs["Y"], session.run(None, {"X": X})[0])


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "The model's inputs are 'X'; found none. Missing: 'X'; unknown: none."),
        ({"X": X, "Z": X}, "The model's inputs are 'X'; found 'X', 'Z'. Missing: none; unknown: 'Z'."),
        ({"X": X[:, :5]}, "Found 'X' float32[3, 5]; expected 'X' tensor(float) ['N', 33]."),
        ({"X": X.astype(np.float64)}, "Found 'X' float64[3, 33]; expected 'X' tensor(float) ['N', 33]."),
    ],
)
def test_inputs_that_do_not_fit_are_data_errors(inputs: dict[str, np.ndarray], message: str) -> None:
    session = sessions.session(MODEL, use_library=False)
    with pytest.raises(DataError, match=re.escape(message)):
        sessions.run(session, inputs)


def zip_map(**classes: list[int] | list[str]) -> onnxruntime.InferenceSession:
    """A model whose output is a list of maps {class: score}."""
    node = helper.make_node("ZipMap", ["scores"], ["maps"], domain="ai.onnx.ml", **classes)
    scores = helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["N", 3])
    key_type = TensorProto.INT64 if "classlabels_int64s" in classes else TensorProto.STRING
    row = helper.make_map_type_proto(key_type, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    maps = helper.make_value_info("maps", helper.make_sequence_type_proto(row))
    imports = [helper.make_opsetid("", 13), helper.make_opsetid("ai.onnx.ml", 1)]
    graph = helper.make_graph([node], "zip_map", [scores], [maps])
    return sessions.session(helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION), use_library=False)


@pytest.mark.parametrize("classes", [{"classlabels_int64s": [7, -1, 3]}, {"classlabels_strings": ["c", "a", "b"]}])
def test_lists_of_maps_become_arrays_in_ascending_order_of_the_classes(classes: dict[str, list[int]]) -> None:
    scores = normal_rows(0, 4, 3)
    maps = sessions.run(zip_map(**classes), {"scores": scores})["maps"]
    np.testing.assert_array_equal(maps, scores[:, [1, 2, 0]])
    assert maps.dtype == np.float32


def test_list_of_maps_without_samples() -> None:
    session = zip_map(classlabels_int64s=[0, 1, 2])
    assert sessions.run(session, {"scores": np.zeros((0, 3), np.float32)})["maps"].shape[0] == 0


def returning(value: object) -> SimpleNamespace:
    """A session with one output."""
    return SimpleNamespace(get_inputs=list, get_outputs=lambda: [SimpleNamespace(name="y")], run=lambda *_: [value])


def test_sequences_and_maps_become_objects() -> None:
    found = sessions.run(returning([X, X[:2], None, [X]]), {})["y"]
    assert found.shape == (4,)
    assert [entry.shape for entry in found] == [X.shape, (2, *X.shape[1:]), (), (1,)]
    assert found[2].item() is None
    keys, values = sessions.run(returning({"b": 1.0, "a": 2.0}), {})["y"]
    assert (keys.tolist(), values.tolist()) == (["a", "b"], [2.0, 1.0])
    maps = sessions.run(returning([{"b": 1.0}, {"a": 2.0}]), {})["y"]
    assert [[part.tolist() for part in entry] for entry in maps] == [[["b"], [1.0]], [["a"], [2.0]]]
    assert sessions.run(returning([]), {})["y"].shape[0] == 0


def test_output_of_another_kind_is_refused() -> None:
    with pytest.raises(ModelError, match="Output 'y' is a object; expected a tensor, or sequences and maps of them"):
        sessions.run(returning(object()), {})


def test_failure_while_running_is_a_model_error() -> None:
    def fail(*_: object) -> None:
        raise onnxruntime.capi.onnxruntime_pybind11_state.Fail("no luck")

    session = SimpleNamespace(get_inputs=list, get_outputs=list, run=fail)
    with pytest.raises(ModelError, match=r"The model fails while it runs in onnxruntime .*: no luck"):
        sessions.run(session, {})

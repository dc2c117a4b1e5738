"""A compressed model in other forms: dense, without functions, and in onnxruntime's own format."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper, numpy_helper

import onnxpq
from onnxpq import Config, cli, exporting
from onnxpq.errors import ConfigError, ModelError, OutputError
from onnxpq.runtime import library_available

SAME = 1e-5
"""Largest difference of outputs, relative to the largest output: another order of float32 sums."""

needs_library = pytest.mark.skipif(not library_available(), reason="the operator library was not built")


@pytest.fixture(scope="module")
def compressed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolution and a layer, compressed."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "K"], ["c"], name="conv", pads=[1, 1]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "W", "b"], ["y"], name="fc", transB=1),
    ]
    constants = {"K": (32, 16, 3), "W": (48, 32 * 10), "b": (48,)}
    tensors = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32) / 8, n) for n, s in constants.items()]
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 16, 10])
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["N", 48])
    graph = helper.make_graph(nodes, "g", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path_factory.mktemp("exporting") / "m.onnx"
    onnxpq.compress(model, config=Config(only=("all",))).save(path)
    return path


def outputs(path: Path, *, library: bool = False) -> np.ndarray:
    x = {"x": np.random.default_rng(1).standard_normal((3, 16, 10)).astype(np.float32)}
    return onnxpq.session(path, use_library=library).run(None, x)[0]


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(found - expected).max() <= SAME * np.abs(expected).max())


@pytest.mark.parametrize("way", [exporting.DENSE, exporting.INLINE])
def test_what_other_tools_take(compressed: Path, tmp_path: Path, way: str) -> None:
    target = tmp_path / "o.onnx"
    assert cli.main(["export", str(compressed), "-o", str(target), "--as", way]) == 0
    written = onnx.load(target)
    onnx.checker.check_model(written, full_check=True)
    assert not written.functions
    assert {entry.domain for entry in written.opset_import} == {""}
    assert all(node.domain == "" for node in written.graph.node)
    assert same(outputs(target), outputs(compressed))
    assert not same(1.02 * outputs(target), outputs(compressed))
    size, before = target.stat().st_size, compressed.stat().st_size
    assert size > 3 * before if way == exporting.DENSE else size < 1.5 * before


@needs_library
def test_onnxruntimes_own_format_keeps_the_operators(compressed: Path, tmp_path: Path) -> None:
    target = tmp_path / "o.ort"
    exporting.export(compressed, target, exporting.ORT_LIBRARY)
    np.testing.assert_array_equal(outputs(target, library=True), outputs(compressed, library=True))
    with pytest.raises(Exception, match="onnxpq"):
        onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    # The convolution is dense there: 32 * 16 * 3 weights of float32. The layer is not.
    assert target.stat().st_size < compressed.stat().st_size + 4 * 32 * 16 * 3 + 4096


def test_what_cannot_be_exported_is_said(compressed: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"exported as one of dense, inline, ort-library\. Got 'tflite'"):
        exporting.export(compressed, tmp_path / "o", "tflite")
    with pytest.raises(OutputError, match="would overwrite"):
        exporting.export(compressed, compressed, exporting.DENSE)
    plain = tmp_path / "plain.onnx"
    exporting.export(compressed, plain, exporting.DENSE)
    with pytest.raises(ModelError, match="no operator of onnxpq: there is nothing to decompress"):
        exporting.export(plain, tmp_path / "o.onnx", exporting.DENSE)
    with pytest.raises(ConfigError, match="no operator that the library has a kernel for"):
        exporting.export(plain, tmp_path / "o.ort", exporting.ORT_LIBRARY)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plain.onnx"]

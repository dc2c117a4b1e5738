"""Files that are damaged or odd where ONNX's checker does not look."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_models import mlp

import onnxpq
from onnxpq import data
from onnxpq.errors import ModelError, OnnxpqError
from onnxpq.graph import files

ROOT = Path(__file__).resolve().parent.parent
MUTATIONS = 400
CASES = 300
"""Of `damage.py`, which runs for longer by hand."""


def with_constant_node() -> onnx.ModelProto:
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        main (float[N, 8] x) => (float[N, 4] y) { y = MatMul (x, w) }"""
    )
    weight = numpy_helper.from_array(np.ones((8, 4), np.float32), "w")
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["w"], value=weight))
    return model


def test_a_negative_dimension_is_an_open_one():
    model = with_constant_node()
    for info in (model.graph.input[0], model.graph.output[0]):
        info.type.tensor_type.shape.dim[0].dim_value = -1
    loaded = files.load(model)
    assert data.input_specs(loaded)[0].shape == (None, 8)
    for value in (*loaded.graph.inputs, *loaded.graph.outputs):
        assert value.shape is not None
        assert isinstance(value.shape[0], ir.SymbolicDim)
        assert isinstance(value.shape[1], int)
    written = onnx.ModelProto.FromString(files.to_bytes(loaded))
    assert not written.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == -1
    again = files.load(ir.from_proto(model))
    assert data.input_specs(again)[0].shape == (None, 8)


@pytest.mark.parametrize(
    ("field", "value", "text"),
    [("data_type", 33, r"tensor 'w' of element type 33"), ("dims", [-8, 4], r"sizes \[-8, 4\]; expected")],
)
@pytest.mark.parametrize("place", ["node", "initializer"])
def test_a_tensor_of_an_unknown_type_or_negative_size_is_refused(field, value, text, place):
    model = with_constant_node()
    tensor = model.graph.node[0].attribute[0].t
    if place == "initializer":
        model.graph.initializer.append(tensor)
        del model.graph.node[0]
        tensor = model.graph.initializer[0]
    tensor.ClearField(field)
    if isinstance(value, list):
        tensor.dims.extend(value)
    else:
        setattr(tensor, field, value)
    with pytest.raises(ModelError, match=text):
        files.load(model)


def test_mutated_files_load_or_are_refused_by_name():
    content = with_constant_node().SerializeToString()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(MUTATIONS):
        damaged = bytearray(content)
        for at in rng.integers(0, len(content), rng.integers(1, 5)):
            damaged[at] = rng.integers(0, 256)
        try:
            files.load(bytes(damaged))
        except ModelError:
            refused += 1
    assert 0 < refused < MUTATIONS


@pytest.mark.parametrize("how", [[], ["--mapped"]], ids=["read", "mapped"])
def test_a_damaged_real_model_never_crashes(how: list[str]) -> None:
    """In a process of its own with bounded memory and time; the cases that reach torch and onnxruntime are counted."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(ROOT / "tests" / "damage.py"), "--cases", str(CASES), *how]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout[-20:] + done.stderr
    used, refused = map(int, re.search(r"(\d+) used, (\d+) refused", done.stdout).groups())
    assert used + refused == CASES
    assert min(used, refused) > 0


def cyclic() -> onnx.ModelProto:
    model = mlp()
    model.graph.node[0].input[0] = "a"
    return model


def dangling(node: int, index: int) -> onnx.ModelProto:
    model = mlp()
    model.graph.node[node].input[index] = "nowhere"
    return model


def no_producer_of_the_output() -> onnx.ModelProto:
    model = mlp()
    model.graph.output[0].name = "nowhere"
    return model


def twice_the_same_result() -> onnx.ModelProto:
    model = mlp()
    model.graph.node[1].output[0] = "h"
    return model


def huge(dims: list[int]) -> onnx.ModelProto:
    model = mlp()
    del model.graph.initializer[0].dims[:]
    model.graph.initializer[0].dims.extend(dims)
    return model


def huge_and_empty(dims: list[int]) -> onnx.ModelProto:
    model = huge(dims)
    model.graph.initializer[0].ClearField("raw_data")
    return model


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(cyclic(), id="cyclic"),
        pytest.param(dangling(0, 0), id="input that nothing gives"),
        pytest.param(dangling(0, 1), id="weight that is missing"),
        pytest.param(dangling(2, 2), id="bias that is missing"),
        pytest.param(no_producer_of_the_output(), id="output that nothing gives"),
        pytest.param(twice_the_same_result(), id="a name given twice"),
        pytest.param(huge([2**40, 64]), id="more sizes than bytes"),
        pytest.param(huge([2**32, 2**32]), id="sizes whose product is 0 in 64 bits"),
        pytest.param(huge([2**62, 4]), id="sizes whose bytes overflow"),
        pytest.param(huge_and_empty([2**40, 64]), id="sizes without bytes"),
        pytest.param(huge([0, 64]), id="no rows"),
    ],
)
def test_graphs_that_cannot_be(model: onnx.ModelProto, tmp_path: Path) -> None:
    for source in (model, model.SerializeToString()):
        with pytest.raises(OnnxpqError):
            onnxpq.compress(source)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(OnnxpqError):
        onnxpq.compress(tmp_path / "m.onnx")


def test_a_subgraph_in_a_subgraph_in_a_subgraph() -> None:
    """Deep nesting ends in a sentence or in a result, not in a stack overflow."""
    info = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "leaf", [], info)
    for depth in range(15):
        node = helper.make_node("If", ["flag"], ["y"], name=f"if{depth}", then_branch=graph, else_branch=leaf())
        graph = helper.make_graph([node], f"level{depth}", [], info)
    whole = helper.make_graph(
        list(graph.node),
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(True), "flag")],
    )
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    with pytest.raises(OnnxpqError):
        onnxpq.compress(model)


def leaf() -> onnx.GraphProto:
    info = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    return helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "leaf", [], info)


def external(location: str, folder: Path, *, length: int | None = None, offset: int = 0) -> Path:
    """`mlp` with its first weight in external data at `location`."""
    model = mlp()
    tensor = model.graph.initializer[0]
    content = tensor.raw_data
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length or len(content)))):
        tensor.external_data.add(key=key, value=value)
    (folder / "weights.bin").write_bytes(content)
    (folder / "m.onnx").write_bytes(model.SerializeToString())
    return folder / "m.onnx"


@pytest.mark.parametrize(
    ("location", "extra", "text"),
    [
        ("absent.bin", {}, "absent.bin"),
        ("../weights.bin", {}, "tensor 'W1' has its external data in '../weights.bin', which is"),
        ("/etc/passwd", {}, "lies outside of the model's folder"),
        ("weights.bin", {"offset": 4}, "weights.bin"),
        ("weights.bin", {"length": 2**40}, "weights.bin"),
        ("weights.bin", {"offset": 2**62}, "weights.bin"),
        ("weights.bin", {"offset": -8}, "The external data of tensor 'W1' cannot be found: External data offset must"),
        ("weights.bin", {"length": 16}, "m.onnx"),
        ("", {}, "lies outside of the model's folder"),
    ],
    ids=str,
)
def test_external_data_that_is_not_there(location: str, extra: dict[str, int], text: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = external(location, folder, **extra)
    (tmp_path / "weights.bin").write_bytes(bytes(1 << 20))
    with pytest.raises(OnnxpqError, match=re.escape(text)):
        onnxpq.compress(path)


def test_external_data_of_a_link_that_leads_out(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = external("weights.bin", folder)
    (folder / "weights.bin").rename(tmp_path / "elsewhere.bin")
    (folder / "weights.bin").symlink_to(tmp_path / "elsewhere.bin")
    with pytest.raises(OnnxpqError):
        onnxpq.compress(path)


def test_external_data_that_is_there(tmp_path: Path) -> None:
    assert onnxpq.compress(external("weights.bin", tmp_path)).report.ratio > 1

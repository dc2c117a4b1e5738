"""The whole way at every operator set and IR version: from opset 6 and IR 3 to the newest that both sides know."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import onnxpq
from onnxpq import runtime
from onnxpq.config.settings import Config, PQConfig, TrainingConfig
from onnxpq.graph.opsets import MIN_OPSET, RAISED_OPSET
from onnxpq.graph.opsets import opset as opset_of
from onnxpq.verification import proof

IN, HIDDEN, OUT = 40, 80, 10
FIRST_OPSET, NEWEST_OPSET = 6, 26
FIRST_IR, NEWEST_IR = 3, 13
FIRST_IR_OF_OPSETS = (
    (7, 3),
    (9, 4),
    (10, 5),
    (11, 6),
    (12, 7),
    (15, 8),
    (19, 9),
    (21, 10),
    (23, 11),
    (24, 12),
    (26, 13),
)
"""The first IR version with which each opset came out."""

BUDGET = 2e-3
"""Relative L2 difference between the operator library and stock operators."""


def ir_version_of(opset: int) -> int:
    return max(version for first, version in ((0, 3), *FIRST_IR_OF_OPSETS) if first <= opset)


def weight(name: str, *shape: int) -> onnx.TensorProto:
    values = np.random.default_rng(len(name)).standard_normal(shape) / np.sqrt(shape[-1])
    return numpy_helper.from_array(values.astype(np.float32), name)


def mlp(opset: int, ir_version: int) -> onnx.ModelProto:
    """Gemm, Relu, MatMul, Add, Softmax; below IR 4 every initializer is a graph input too, as it had to be."""
    nodes = [
        helper.make_node("Gemm", ["x", "W1", "b1"], ["h"], name="first", transB=1),
        helper.make_node("Relu", ["h"], ["r"], name="act"),
        helper.make_node("MatMul", ["r", "W2"], ["p"], name="second"),
        helper.make_node("Add", ["p", "bias2"], ["z"], name="add"),
        helper.make_node("Softmax", ["z"], ["y"], name="softmax", axis=1),
    ]
    tensors = [weight("W1", HIDDEN, IN), weight("b1", HIDDEN), weight("W2", HIDDEN, OUT), weight("bias2", OUT)]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", IN])]
    if ir_version < 4:
        inputs += [helper.make_tensor_value_info(t.name, TensorProto.FLOAT, list(t.dims)) for t in tensors]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", OUT])
    graph = helper.make_graph(nodes, "mlp", inputs, [output], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def check(model: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch) -> onnxpq.Result:
    monkeypatch.setattr(proof, "LATENCY_ROUNDS", 3)
    rng = np.random.default_rng(0)
    data = {"x": rng.standard_normal((120, IN)).astype(np.float32)}
    # In float32: in int8 the function body rounds more than the budget.
    pq = PQConfig(body="float")
    config = Config(min_weights=500, pq=pq, training=TrainingConfig(epochs=2, regularized=0.5))
    result = onnxpq.compress(model, data, config=config)
    assert [layer.node for layer in result.report.layers] == ["first", "second"]
    stock, *library = (
        runtime.run(runtime.session(result.model, use_library=use), data)["y"]
        for use in ([False, True] if runtime.library_available() else [False])
    )
    assert stock.shape == (120, OUT)
    np.testing.assert_allclose(stock.sum(1), 1, rtol=1e-5)
    for found in library:
        assert np.linalg.norm(found - stock) <= BUDGET * np.linalg.norm(stock)
        assert np.linalg.norm(1.02 * found - stock) > BUDGET * np.linalg.norm(stock)
    return result


@pytest.mark.parametrize("opset", range(FIRST_OPSET, NEWEST_OPSET + 1))
def test_every_opset(opset, monkeypatch):
    result = check(mlp(opset, ir_version_of(opset)), monkeypatch)
    assert opset_of(result.model) == (opset if opset >= MIN_OPSET else RAISED_OPSET)


@pytest.mark.parametrize("ir_version", range(FIRST_IR, NEWEST_IR + 1))
def test_every_ir_version(ir_version, monkeypatch):
    result = check(mlp(9 if ir_version > 3 else 8, ir_version), monkeypatch)
    assert result.model.ir_version == max(ir_version, 8)


def test_the_newest_are_those_of_onnx():
    assert NEWEST_OPSET <= onnx.defs.onnx_opset_version() <= NEWEST_OPSET + 2, "try the new opsets here"
    assert onnx.IR_VERSION <= NEWEST_IR + 1, "try the new IR versions here"

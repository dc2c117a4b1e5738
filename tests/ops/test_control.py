import numpy as np
import onnx
import onnx_ir as ir
import torch
from node_check import _expected

from onnxpq.importing import import_model
from onnxpq.ops import control
from onnxpq.ops.registry import registered

VERSIONS = (1, 11, 13, 16, 19, 21, 23, 24, 25)


def if_model(opset: int) -> onnx.ModelProto:
    """Branches that use a weight of the main graph, a value of it, and a weight of their own."""
    h = onnx.helper

    def info(name: str) -> onnx.ValueInfoProto:
        return h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)

    own = onnx.numpy_helper.from_array(np.full((3, 2), 0.5, np.float32), "own")
    then = h.make_graph([h.make_node("MatMul", ["h", "w"], ["then_out"])], "then", [], [info("then_out")])
    else_ = h.make_graph([h.make_node("MatMul", ["h", "own"], ["else_out"])], "else", [], [info("else_out")], [own])
    graph = h.make_graph(
        [
            h.make_node("Relu", ["x"], ["h"]),
            h.make_node("If", ["cond"], ["y"], then_branch=then, else_branch=else_),
        ],
        "g",
        [
            h.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["N", 3]),
            h.make_tensor_value_info("cond", onnx.TensorProto.BOOL, []),
        ],
        [h.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [onnx.numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")],
    )
    return h.make_model(graph, opset_imports=[h.make_opsetid("", opset)], ir_version=8)


def test_both_branches_as_in_onnxruntime_and_gradients_reach_their_weights():
    x = np.array([[1.0, -2.0, 3.0]], dtype=np.float32)
    for opset in (max(v, 7) for v in VERSIONS):
        model = if_model(opset)
        network = import_model(ir.from_proto(model))
        weights = network.trainable(["w", "own"])
        for cond, name in ((True, "w"), (False, "own")):
            feeds = {"x": x, "cond": np.array(cond)}
            expected = _expected(model, feeds)["y"]
            found = network({"x": torch.from_numpy(x), "cond": torch.tensor(cond)})["y"]
            assert np.allclose(found.detach().numpy(), expected)
            found.sum().backward()
            assert weights[name].grad is not None


def test_every_claimed_version_is_tried():
    assert {v for (_, _, v), h in registered().items() if h.__module__ == control.__name__} == set(VERSIONS)

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from node_check import _expected

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.importing import import_model
from onnxpq.network.ops import control
from onnxpq.network.ops.registry import registered

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


LOOP = """
<ir_version: 8, opset_import: ["" : {opset}]>
agraph (float[N, 3] x, int64 m, bool go) => (float[N, 3] y, float[A, B, C] all)
<float[3, 3] w = {{0.1, 0.2, 0.3, -0.1, 0.4, 0.2, 0.5, 0.1, -0.3}}, float limit = {{4}}>
{{
    y, all = Loop (m, go, x) <body = body (int64 i, bool c, float[N, 3] h)
            => (bool again, float[N, 3] next, float[N, 3] out) {{
        next = MatMul (h, w)
        out = Mul (next, limit)
        j = Cast <to = 1> (i)
        again = Less (j, limit)
    }}>
}}
"""

SCAN = """
<ir_version: 8, opset_import: ["" : {opset}]>
agraph (float[2] h0, float[5, 2] x, float[2, 5] z) => (float[2] h, float[A, B] out)
<float[2, 2] w = {{0.1, 0.2, 0.3, -0.1}}>
{{
    h, out = Scan <num_scan_inputs = 2, scan_input_axes = [0, 1], scan_input_directions = [0, 1],
                   scan_output_axes = [1], scan_output_directions = [1],
        body = body (float[2] h_in, float[2] xt, float[2] zt) => (float[2] h_out, float[2] y) {{
            p = MatMul (h_in, w)
            q = Add (p, xt)
            h_out = Tanh (q)
            y = Mul (h_out, zt)
        }}> (h0, x, z)
}}
"""

SCAN_8 = """
<ir_version: 4, opset_import: ["" : 8]>
agraph (float[3, 2] h0, float[3, 5, 2] x) => (float[3, 2] h, float[3, 5, 2] out)
<float[2, 2] w = {0.1, 0.2, 0.3, -0.1}>
{
    h, out = Scan <num_scan_inputs = 1, body = body (float[2] h_in, float[2] xt) => (float[2] h_out, float[2] y) {
            p = MatMul (h_in, w)
            h_out = Add (p, xt)
            y = Identity (h_out)
        }> ("", h0, x)
}
"""


def compare(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> None:
    """With onnxruntime; and gradients reach the weight in the body."""
    network = import_model(ir.from_proto(proto))
    weight = network.trainable(["w"])["w"]
    found = network({name: torch.from_numpy(np.array(array)) for name, array in feeds.items()})
    for name, expected in _expected(proto, feeds).items():
        np.testing.assert_allclose(found[name].detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    next(iter(found.values())).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("opset", [9, 11, 13, 16, 19, 21, 23, 24, 25])
@pytest.mark.parametrize("trips", [1, 3, 9])
def test_loop_as_in_onnxruntime(opset, trips):
    x = np.array([[1.0, -2.0, 3.0]], dtype=np.float32)
    compare(onnx.parser.parse_model(LOOP.format(opset=opset)), {"x": x, "m": np.array(trips), "go": np.array(True)})


def test_a_loop_that_does_not_run_has_no_scan_outputs():
    x = torch.ones(1, 3)
    network = import_model(ir.from_proto(onnx.parser.parse_model(LOOP.format(opset=17))))
    with pytest.raises(UnsupportedOperatorError, match=r"Loop ran no iteration, so the shape of its scan outputs"):
        network({"x": x, "m": torch.tensor(3), "go": torch.tensor(False)})


@pytest.mark.parametrize("opset", [9, 11, 16, 19, 21, 23, 24, 25])
def test_scan_as_in_onnxruntime(opset):
    rng = np.random.default_rng(0)
    feeds = {n: rng.normal(size=s).astype(np.float32) for n, s in (("h0", (2,)), ("x", (5, 2)), ("z", (2, 5)))}
    compare(onnx.parser.parse_model(SCAN.format(opset=opset)), feeds)


def test_scan_8_as_in_onnxruntime():
    rng = np.random.default_rng(0)
    feeds = {n: rng.normal(size=s).astype(np.float32) for n, s in (("h0", (3, 2)), ("x", (3, 5, 2)))}
    proto = onnx.parser.parse_model(SCAN_8)
    compare(proto, feeds)


def test_every_claimed_version_is_tried():
    claimed = {(o, v) for (_, o, v), h in registered().items() if h.__module__ == control.__name__}
    scans = (8, 9, 11, 16, 19, 21, 23, 24, 25)
    assert claimed == {*(("If", v) for v in VERSIONS), *(("Loop", v) for v in VERSIONS), *(("Scan", v) for v in scans)}

"""onnxruntime's low-bit layers stand for the same layers that onnxpq compresses."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.peers import nbits


def save_gemm(path, **attributes):
    rng = np.random.default_rng(0)
    weight, bias = rng.normal(size=(48, 64)).astype(np.float32), rng.normal(size=48).astype(np.float32)
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", s]) for n, s in (("x", 64), ("y", 48)))
    nodes = [
        helper.make_node("Constant", [], ["W"], value=numpy_helper.from_array(weight)),
        helper.make_node("Gemm", ["x", "W", "b"], ["y"], name="fc", transB=1, **attributes),
    ]
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(bias, "b")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return weight, bias


@pytest.mark.parametrize(
    ("bits", "half_quadratic", "nbytes"),
    [(2, False, 48 * (32 + 4 + 1)), (2, True, 48 * (32 + 4 + 4)), (4, False, 48 * (64 + 4 + 1))],
)
def test_a_gemm_with_its_weight_in_a_constant_becomes_low_bit(tmp_path, bits, half_quadratic, nbytes):
    weight, bias = save_gemm(tmp_path / "model.onnx")
    found = nbits.quantize(
        tmp_path / "model.onnx", tmp_path / "small.onnx", bits=bits, block=128, half_quadratic=half_quadratic
    )
    assert found == nbits.Quantized(1, weight.nbytes, nbytes)
    x = np.random.default_rng(1).normal(size=(8, 64)).astype(np.float32)
    session = onnxruntime.InferenceSession(tmp_path / "small.onnx", providers=["CPUExecutionProvider"])
    exact = x @ weight.T + bias
    error = np.linalg.norm(session.run(None, {"x": x})[0] - exact) / np.linalg.norm(exact)
    assert error < (0.6 if bits == 2 else 0.15)


def test_a_gemm_that_is_no_plain_product_is_refused(tmp_path):
    save_gemm(tmp_path / "model.onnx", alpha=2.0)
    with pytest.raises(ValueError, match=r"Gemm 'fc' has .*'alpha': 2\.0"):
        nbits.quantize(tmp_path / "model.onnx", tmp_path / "small.onnx", bits=2, block=128)

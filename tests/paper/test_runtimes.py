"""onnxruntime's own low-bit layers."""

import numpy as np
import onnx
import pytest

from benchmarks.paper import runtimes
from benchmarks.paper.graph import model_bytes
from benchmarks.peers import nbits
from onnxpq import runtime


def made(task, bits: int) -> bytes:
    return runtimes.int8(task) if bits == 8 else runtimes.few_bits(task, bits)


# 40 x 32: int8 adds two numbers of 4 and 1 bytes per output, 4 and 2 bits fill blocks up to 128 weights.
@pytest.mark.parametrize(
    ("bits", "error", "least", "most"), [(8, 0.02, 1280, 1500), (4, 0.2, 640, 3000), (2, 0.8, 320, 2000)]
)
def test_layers_are_small_and_near(task, bits, error, least, most):
    content = made(task, bits)
    model = onnx.load_from_string(content)
    assert least <= model_bytes(model) - (model_bytes(task.proto()) - task.weight_bytes) <= most
    (found,) = runtime.session(content).run(None, {"x": task.test[0]})
    (wanted,) = runtime.session(task.path).run(None, {"x": task.test[0]})
    assert 0 < np.linalg.norm(found - wanted) < error * np.linalg.norm(wanted)


def test_the_small_layer_stays(task):
    operators = [node.op_type for node in onnx.load_from_string(runtimes.few_bits(task, 4)).graph.node]
    assert operators.count("MatMulNBits") == 1


def test_as_matmul_computes_the_same(task):
    (found,) = runtime.session(nbits.as_matmul(task.path)[0]).run(None, {"x": task.test[0]})
    (wanted,) = runtime.session(task.path).run(None, {"x": task.test[0]})
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("overflow", "largest"), [(False, 127), (True, 64)])
def test_weights_have_7_bits_where_products_of_8_overflow(task, monkeypatch, overflow, largest):
    monkeypatch.setattr(runtimes, "saturates", lambda: overflow)
    weights = [
        onnx.numpy_helper.to_array(tensor).astype(int)
        for tensor in onnx.load_from_string(runtimes.int8(task)).graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 2
    ]
    assert max(abs(weight).max() for weight in weights) == largest

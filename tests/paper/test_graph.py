"""Writing of compressed weights: packed codes, bytes, and nodes that decode them in onnxruntime."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.paper import graph
from onnxpq import runtime


def value_of(builder: graph.Builder, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """What onnxruntime computes for an int64 value of the builder's nodes."""
    model = builder.model
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.INT64, shape))
    session = runtime.session(builder.finish())
    return session.run([name], {"x": np.zeros((1, 32), np.float32)})[0]


def test_pack_by_hand():
    assert graph.pack(np.array([1, 0, 1, 1, 0, 0, 0, 0, 1]), 1).tolist() == [0b1101, 1]
    assert graph.pack(np.array([3, 0, 2, 1, 2]), 2).tolist() == [0b01_10_00_11, 2]
    assert graph.pack(np.array([7, 15, 9]), 4).tolist() == [0xF7, 9]
    assert graph.pack(np.array([200, 7]), 8).tolist() == [200, 7]


@pytest.mark.parametrize(("codewords", "bits"), [(2, 1), (3, 2), (4, 2), (5, 4), (16, 4), (17, 8), (256, 8)])
def test_code_bits(codewords, bits):
    assert graph.code_bits(codewords) == bits
    assert graph.packed_bytes(9, codewords) == len(graph.pack(np.zeros(9, np.uint8), bits))


@pytest.mark.parametrize("codewords", [2, 4, 16, 256])
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 9)])
def test_codes_come_back(task, codewords, shape):
    codes = np.random.default_rng(0).integers(0, codewords, shape)
    builder = graph.Builder(task.proto())
    np.testing.assert_array_equal(value_of(builder, builder.codes(codes, codewords), shape), codes)


def test_range(task):
    builder = graph.Builder(task.proto())
    np.testing.assert_array_equal(value_of(builder, builder.range_of(4), (4,)), [0, 1, 2, 3])


def test_redefined_weight_is_the_layers(task):
    builder, layer = graph.Builder(task.proto()), task.layers[0]
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal((40, 32)).astype(np.float16).astype(np.float32)
    builder.redefine(layer, builder.floats(matrix))
    expected = task.proto()
    tensor = next(t for t in expected.graph.initializer if t.name == layer.weight)
    tensor.CopyFrom(numpy_helper.from_array(matrix.T.copy() if layer.weight_is_in_out else matrix, layer.weight))
    images = {"x": task.test[0]}
    (found,) = runtime.session(builder.finish()).run(None, images)
    (wanted,) = runtime.session(expected).run(None, images)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_model_bytes_count_bits():
    four = helper.make_tensor("four", TensorProto.UINT4, [3], [1, 2, 3])
    arrays = [numpy_helper.from_array(np.zeros(n, t), f"{n}") for n, t in ((5, np.float16), (7, np.uint8))]
    model = helper.make_model(helper.make_graph([], "g", [], [], [four, *arrays]))
    assert graph.model_bytes(model) == 2 + 10 + 7


def test_old_opset_is_refused(task):
    model = task.proto()
    model.opset_import[0].version = 12
    with pytest.raises(SystemExit, match="opset 12; the benchmark's comparators need 13"):
        graph.Builder(model)


def test_a_transposed_input_cannot_be_factorized():
    node = helper.make_node("Gemm", ["x", "w"], ["y"], name="odd", transA=1)
    weight = numpy_helper.from_array(np.zeros((2, 3), np.float32), "w")
    model = helper.make_model(
        helper.make_graph([node], "g", [], [], [weight]), opset_imports=[helper.make_opsetid("", 17)]
    )
    layer = type("Layer", (), {"weight": "w", "weight_is_in_out": True})
    with pytest.raises(SystemExit, match="Node 'odd' transposes its input"):
        graph.Builder(model).factorize(layer, "first", np.zeros((3, 1), np.float32))
    assert isinstance(model, onnx.ModelProto)

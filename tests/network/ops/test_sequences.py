import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from node_check import _expected

from onnxpq.network.importing import import_model
from onnxpq.network.ops import sequences
from onnxpq.network.ops.registry import registered

VERSIONS = {
    "SequenceEmpty": {11},
    "SequenceConstruct": {11},
    "SequenceLength": {11},
    "SequenceAt": {11},
    "SequenceInsert": {11},
    "SequenceErase": {11},
    "SequenceMap": {17},
    "ConcatFromSequence": {11},
    "SplitToSequence": {11, 24},
    "Optional": {15, 28},
    "OptionalHasElement": {15, 18, 28},
    "OptionalGetElement": {15, 18, 28},
}


def model(text: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(text)


WHOLE = """
<ir_version: 8, opset_import: ["" : 17]>
agraph (float[N, 4] x) => (float[M, 2] y, int64 n, float[A, B] z)
<float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}, int64 one = {1}, int64 zero = {0}>
{
    parts = SplitToSequence <axis = 0> (x, one)
    products = SequenceMap (parts) <body = body (float[1, 4] part)
        => (float[1, 2] product) { product = MatMul (part, w) }>
    all = MatMul (x, w)
    longer = SequenceInsert (products, all, zero)
    shorter = SequenceErase (longer)
    y = ConcatFromSequence <axis = 0> (shorter)
    n = SequenceLength (longer)
    last = SequenceAt (products, zero)
    first = SequenceAt (products, one)
    pair = SequenceConstruct (first, last)
    z = ConcatFromSequence <axis = 1> (pair)
}
"""


def test_sequences_as_in_onnxruntime_and_gradients_pass():
    proto = model(WHOLE)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    network = import_model(ir.from_proto(proto))
    weight = network.trainable(["w"])["w"]
    found = network({"x": torch.from_numpy(x)})
    for name, expected in _expected(proto, {"x": x}).items():
        assert np.allclose(found[name].detach().numpy(), expected), name
    found["y"].sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("opset", [15, 18])
def test_optionals(opset):
    proto = model(
        f"""<ir_version: 8, opset_import: ["" : {opset}]>
        agraph (float[N] x) => (float[N] y, bool b)
        {{ o = Optional (x)  b = OptionalHasElement (o)  y = OptionalGetElement (o) }}"""
    )
    found = import_model(ir.from_proto(proto))({"x": torch.ones(2)})
    assert found["y"].tolist() == [1, 1]
    assert bool(found["b"])
    assert not bool(sequences.optional_has_element(sequences.optional()))


def test_the_registered_versions():
    mine: dict[str, set[int]] = {}
    for (_, op_type, version), handler in registered().items():
        if handler.__module__ == sequences.__name__:
            mine.setdefault(op_type, set()).add(version)
    assert mine == VERSIONS

"""Files that are damaged or odd where ONNX's checker does not look."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper

from onnxpq import data, modelio
from onnxpq.errors import ModelError

MUTATIONS = 400


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
    loaded = modelio.load(model)
    assert data.input_specs(loaded)[0].shape == (None, 8)
    for value in (*loaded.graph.inputs, *loaded.graph.outputs):
        assert value.shape is not None
        assert isinstance(value.shape[0], ir.SymbolicDim)
        assert isinstance(value.shape[1], int)
    written = onnx.ModelProto.FromString(modelio.to_bytes(loaded))
    assert not written.graph.input[0].type.tensor_type.shape.dim[0].HasField("dim_value")
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == -1
    again = modelio.load(ir.from_proto(model))
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
        modelio.load(model)


def test_mutated_files_load_or_are_refused_by_name():
    content = with_constant_node().SerializeToString()
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(MUTATIONS):
        damaged = bytearray(content)
        for at in rng.integers(0, len(content), rng.integers(1, 5)):
            damaged[at] = rng.integers(0, 256)
        try:
            modelio.load(bytes(damaged))
        except ModelError:
            refused += 1
    assert 0 < refused < MUTATIONS

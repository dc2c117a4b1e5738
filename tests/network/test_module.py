import weakref

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

from onnxpq.errors import ConfigError, DataError, ForwardMismatchError, ModelError, UnsupportedOperatorError
from onnxpq.graph.normalising import normalise
from onnxpq.graph.walking import node_label
from onnxpq.network.importing import import_model
from onnxpq.network.module import Network, _on_one_device
from onnxpq.network.ops import registry

ODD_NAME = 'encoder/layers.0::W:{"dtype": "f4"}'
FLOAT = onnx.TensorProto.FLOAT


def array(name: str, *values, dtype=np.float32) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.array(values, dtype=dtype), name)


def make(nodes, inputs, outputs, initializers=(), opset=17, functions=(), domains=()) -> ir.Model:
    h = onnx.helper
    graph = h.make_graph(
        nodes,
        "g",
        [h.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()],
        [h.make_tensor_value_info(name, FLOAT, None) for name in outputs],
        list(initializers),
    )
    imports = [h.make_opsetid("", opset), *[h.make_opsetid(d, 1) for d in domains]]
    return ir.from_proto(h.make_model(graph, opset_imports=imports, functions=list(functions), ir_version=8))


def node(op_type, inputs, outputs, **attributes):
    return onnx.helper.make_node(op_type, inputs, outputs, name=f"n_{outputs[0]}", **attributes)


def shared_weight_model() -> ir.Model:
    """Y = relu(x W) W, z = y + b; W is used twice."""
    return make(
        [
            node("MatMul", ["x", ODD_NAME], ["a"]),
            node("Relu", ["a"], ["h"]),
            node("MatMul", ["h", ODD_NAME], ["y"]),
            node("Add", ["y", "b"], ["z"]),
        ],
        {"x": ["N", 2]},
        ["z"],
        [array(ODD_NAME, [1, 2], [3, -4]), array("b", 10, 20), array("unused", 1, dtype=np.int64)],
    )


@pytest.fixture
def network() -> Network:
    return import_model(shared_weight_model())


X = {"x": torch.tensor([[1.0, 1.0]])}


def test_forward_by_hand(network):
    # x W = [4, -2], relu = [4, 0], times W = [4, 8]
    assert network(X)["z"].tolist() == [[14.0, 28.0]]
    assert network.input_names == ("x",)
    assert network.output_names == ("z",)


def test_a_shared_weight_is_one_parameter(network):
    assert [name for name, _ in network.named_initializers()] == [ODD_NAME, "b"]
    assert len(list(network.parameters())) == 2
    weight = network.trainable([ODD_NAME])[ODD_NAME]
    network(X)["z"].sum().backward()
    # by hand: second use h^T 1 = [[4,4],[0,0]]; first use x^T (1 W^T masked by relu) = [[3,0],[3,0]]
    assert weight.grad.tolist() == [[7.0, 4.0], [3.0, 0.0]]


def test_nothing_is_trainable_until_asked(network):
    assert not any(p.requires_grad for p in network.parameters())
    assert list(network.trainable(["b"])) == ["b"]
    assert [p.requires_grad for p in network.parameters()] == [False, True]
    network.trainable([ODD_NAME])
    assert [p.requires_grad for p in network.parameters()] == [True, False]


def test_keep_returns_intermediate_values_inputs_and_initializers(network):
    values = network(X, keep=["h", "x", "b"])
    assert values["h"].tolist() == [[4.0, 0.0]]
    assert values["x"] is X["x"]
    assert values["b"] is network.parameter("b")
    assert set(values) == {"z", "h", "x", "b"}


def test_weights_take_the_place_of_initializers(network):
    weight = torch.eye(2, requires_grad=True)
    z = network(X, weights={ODD_NAME: weight})["z"]
    assert z.tolist() == [[11.0, 21.0]]
    z.sum().backward()
    assert weight.grad is not None
    assert network(X)["z"].tolist() == [[14.0, 28.0]]


def test_values_are_freed_after_their_last_use(monkeypatch):
    made = []
    alive_at_the_end = []
    relu, add = registry._built_in["", "Relu"][14], registry._built_in["", "Add"][14]

    def spy_relu(x):
        made.append(weakref.ref(relu(x)))
        hidden = relu(x)
        made.append(weakref.ref(hidden))
        return hidden

    def spy_add(a, b):
        alive_at_the_end.extend(ref() is not None for ref in made)
        return add(a, b)

    monkeypatch.setitem(registry._built_in["", "Relu"], 14, spy_relu)
    monkeypatch.setitem(registry._built_in["", "Add"], 14, spy_add)
    network = import_model(shared_weight_model())
    network(X)
    assert alive_at_the_end == [False, False]
    made.clear()
    network(X, keep=["h"])
    assert alive_at_the_end[-1]


def test_unknown_names_are_refused(network):
    with pytest.raises(ConfigError, match=r"no floating-point initializer 'bb'. Did you mean 'b'\?"):
        network.parameter("bb")
    with pytest.raises(ConfigError, match="no floating-point initializer 'unused'"):
        network.parameter("unused")
    with pytest.raises(ConfigError, match="no floating-point initializer 'nowhere'"):
        network.trainable(["nowhere"])
    with pytest.raises(ConfigError, match="no initializer 'x'"):
        network(X, weights={"x": torch.zeros(1)})
    with pytest.raises(ConfigError, match="no value 'q'"):
        network(X, keep=["q"])


def test_missing_input_is_named_and_extra_entries_are_ignored(network):
    with pytest.raises(DataError, match=r"Input 'x' of the network is missing. Expected x; got label"):
        network({"label": torch.zeros(1)})
    assert network({**X, "label": torch.zeros(1)})["z"].shape == (1, 2)


def test_a_failing_operator_names_node_and_shapes(network):
    with pytest.raises(ForwardMismatchError, match=r"Node 'n_a' \(ai.onnx::MatMul\) failed on x: float32\[1, 3\], .*"):
        network({"x": torch.zeros(1, 3)})


def test_an_unsupported_case_names_the_node():
    model = make([node("Cast", ["x"], ["y"], to=onnx.TensorProto.FLOAT8E5M2)], {"x": [1]}, ["y"])
    with pytest.raises(UnsupportedOperatorError, match=r"Node 'n_y' \(ai.onnx::Cast\): Element type FLOAT8E5M2"):
        import_model(model)({"x": torch.zeros(1)})


def test_an_unknown_attribute_is_refused():
    model = make([node("Relu", ["x"], ["y"], slope=2.0)], {"x": [1]}, ["y"])
    with pytest.raises(UnsupportedOperatorError, match=r"Node 'n_y' \(ai.onnx::Relu\) has 1 inputs.*\['slope'\]"):
        import_model(model)


def test_an_output_that_the_rule_does_not_compute_is_refused():
    model = make([node("Relu", ["x"], ["y", "extra"])], {"x": [1]}, ["y", "extra"])
    with pytest.raises(UnsupportedOperatorError, match=r"does not compute the outputs \['extra'\]"):
        import_model(model)({"x": torch.zeros(1)})


def test_a_domain_that_is_not_imported_is_refused():
    model = make([node("Op", ["x"], ["y"], domain="my")], {"x": [1]}, ["y"], domains=["my"])
    del model.opset_imports["my"]
    with pytest.raises(ModelError, match="Node 'n_y' uses domain 'my', which the model does not import"):
        Network(model)


def test_a_users_operator_is_run(monkeypatch):
    monkeypatch.setattr(registry, "_users", {})
    registry.register_op("my", "Scale", lambda x, *, by=1.0: by * x)
    model = make([node("Scale", ["x"], ["y"], domain="my", by=3.0)], {"x": [1]}, ["y"], domains=["my"])
    assert import_model(model)({"x": torch.ones(1)})["y"].tolist() == [3.0]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_other_float_types_are_trained_in_float32(dtype):
    h = onnx.helper
    kind = h.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = h.make_graph(
        [node("MatMul", ["x", "w"], ["y"])],
        "g",
        [h.make_tensor_value_info("x", kind, [1, 2])],
        [h.make_tensor_value_info("y", kind, [1, 1])],
        [array("w", [1.5], [2.5], dtype=dtype)],
    )
    network = import_model(ir.from_proto(h.make_model(graph, opset_imports=[h.make_opsetid("", 17)])))
    assert network.parameter("w").dtype is torch.float32
    y = network({"x": torch.from_numpy(np.array([[2.0, 4.0]], dtype=dtype))})["y"]
    assert y.dtype is torch.float32
    assert y.item() == 13.0


def test_bfloat16_weights_are_exact():
    values = ir.tensor(np.array([1.5, -2.25], np.float32).astype(ir.DataType.BFLOAT16.numpy()), name="w")
    model = make([node("Relu", ["x"], ["y"])], {"x": [1]}, ["y"])
    model.graph.register_initializer(ir.Value(name="w", const_value=values, type=ir.TensorType(values.dtype)))
    assert import_model(model).parameter("w").tolist() == [1.5, -2.25]


def test_a_cast_to_half_rounds():
    casts = [node("Cast", ["x"], ["h"], to=onnx.TensorProto.FLOAT16), node("Cast", ["h"], ["y"], to=FLOAT)]
    y = import_model(make(casts, {"x": [1]}, ["y"]))({"x": torch.tensor([1 / 3])})["y"]
    assert y.dtype is torch.float32
    assert y.item() == np.float32(np.float16(1 / 3))


def test_outputs_that_are_inputs_or_initializers():
    model = make([node("Relu", ["x"], ["y"])], {"x": [1]}, ["y", "x", "w"], [array("w", 5)])
    values = import_model(model)({"x": torch.tensor([-1.0])})
    assert [float(v) for v in values.values()] == [0.0, -1.0, 5.0]


def test_omitted_outputs_and_inputs():
    nodes = [
        onnx.helper.make_node("Split", ["x"], ["", "b"], axis=0),
        onnx.helper.make_node("Clip", ["b", "", "top"], ["y"]),
    ]
    model = make(nodes, {"x": [2]}, ["y"], [onnx.numpy_helper.from_array(np.float32(3), "top")])
    assert import_model(model)({"x": torch.tensor([1.0, 9.0])})["y"].tolist() == [3.0]


def test_state_can_be_saved_and_moved(network):
    state = network.state_dict()
    other = import_model(shared_weight_model())
    with torch.no_grad():
        other.parameter("b").zero_()
    other.load_state_dict(state)
    assert other.parameter("b").tolist() == [10.0, 20.0]


def test_inputs_of_an_operator_meet_on_the_accelerator():
    shape, elsewhere = torch.tensor([2, 3]), torch.zeros(6, device="meta")
    assert [t if t is None else t.device.type for t in _on_one_device([shape, None, elsewhere])] == [
        "meta",
        None,
        "meta",
    ]
    assert _on_one_device([shape, shape])[0] is shape


def test_vectors_are_what_shifts_and_scales():
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
        onnx.helper.make_node("Add", ["shift", "h"], ["s"], "sum"),
        onnx.helper.make_node("Mul", ["s", "one"], ["m"]),
        onnx.helper.make_node("Div", ["m", "divisor"], ["d"]),
        onnx.helper.make_node("BatchNormalization", ["d", "scale", "bias", "mean", "variance"], ["y"]),
    ]
    shapes = {"w": [3, 2], "shift": [1, 2], "one": [1], "divisor": [2]}
    shapes |= {name: [2] for name in ("scale", "bias", "mean", "variance")}
    constants = [onnx.numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in shapes.items()]
    network = import_model(make(nodes, {"x": [4, 3]}, ["y"], constants))
    assert network.vectors() == ["shift", "scale", "bias"]
    assert network.outputs_of({"sum", "product", "elsewhere"}) == ["h", "s"]


def test_node_label():
    unnamed = onnx.helper.make_node("Relu", ["x"], ["y"])
    assert [node_label(n) for n in make([unnamed], {"x": [1]}, ["y"]).graph] == ["y"]
    assert [node_label(n) for n in normalise(shared_weight_model()).graph] == ["n_a", "n_h", "n_y", "n_z"]

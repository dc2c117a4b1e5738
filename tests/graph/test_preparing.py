import numpy as np
import onnx
import onnx_ir as ir
import pytest
from model_forms import FORMS
from onnx import numpy_helper

from onnxpq import runtime
from onnxpq.errors import ModelError
from onnxpq.graph import files
from onnxpq.graph.normalising import normalise
from onnxpq.graph.preparing import has_bfloat16, prepare, widened
from onnxpq.rewriting.rules.base import interface


def parse(text: str, **tensors: np.ndarray) -> ir.Model:
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
    return files.load(proto)


HEAD = '<ir_version: 8, opset_import: ["" : 17, "local" : 1]>'
W = np.arange(6, dtype=np.float32).reshape(2, 3)
X = {"x": np.ones((2, 2), np.float32)}


@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.runs])
def test_every_form_computes_what_it_did(name):
    form = FORMS[name]
    model = files.load(form.model())
    before = files.to_bytes(model)
    prepared = prepare(model)
    assert interface(prepared.graph) == interface(model.graph)
    expected, found, twice = (
        runtime.run(runtime.session(m, use_library=False), form.inputs()) for m in (model, prepared, prepare(prepared))
    )
    for output, array in expected.items():
        np.testing.assert_array_equal(found[output], array)
        np.testing.assert_array_equal(twice[output], array)
    assert files.to_bytes(model) == before
    assert files.to_bytes(prepare(prepared)) == files.to_bytes(prepared)


def test_functions_with_layers_are_inlined_and_the_others_stay():
    model = parse(
        f"""{HEAD} main (float[N,2] x) => (float[N,3] y) {{ h = local.block(x, w) y = local.keep(h) }}
        <domain: "local", opset_import: ["" : 17, "local" : 1]>
        block (x, w) => (r) {{ d = local.dense(x, w) r = local.keep(d) }}
        <domain: "local", opset_import: ["" : 17]> dense (x, w) => (r) {{ [fc] p = MatMul(x, w) r = Relu(p) }}
        <domain: "local", opset_import: ["" : 17]> keep (x) => (r) {{ r = Neg(x) }}""",
        w=W,
    )
    prepared = prepare(model)
    assert [(node.op_type, node.name) for node in prepared.graph] == [
        ("MatMul", "fc"),
        ("Relu", "r_2"),
        ("keep", "r"),
        ("keep", ""),
    ]
    assert [name for _, name, _ in prepared.functions] == ["keep"]


def test_nodes_without_a_name_get_that_of_their_output_and_calls_a_number():
    model = parse(
        f"""{HEAD} main (float[N,3] x) => (float[N,3] y) {{ h = local.dense(x, w) y = local.dense(h, w) }}
        <domain: "local", opset_import: ["" : 17]> dense (x, w) => (r) {{ [fc] p = MatMul(x, w) r = Relu(p) }}""",
        w=np.ones((3, 3), np.float32),
    )
    assert [node.name for node in prepare(model).graph] == ["fc", "r", "fc_2", "r_2"]


def test_our_own_function_stays():
    text = f"{HEAD} main (float[N,2] x) => (float[N,2] y) {{ y = Relu(x) }}"
    other = onnx.parser.parse_model(
        f"""{text} <domain: "onnxpq", opset_import: ["" : 17]> PQMatMul (X) => (Y) {{ Y = MatMul(X, X) }}"""
    )
    model = ir.from_proto(other)
    assert list(prepare(model).functions) == [("onnxpq", "PQMatMul", "")]


def test_values_of_branches_are_told_apart():
    model = parse(
        f"""{HEAD} main (float[2,2] x) => (float[2,2] y) {{
            s = ReduceSum<keepdims = 0>(x) c = Greater(s, s)
            y = If(c) <
                then_branch = a () => (float[2,2] p) {{ h = Neg(x) p = Exp(h) }},
                else_branch = b () => (float[2,2] p) {{ h = Abs(x) h_1 = Neg(h) p = Exp(h_1) }}
            >
        }}"""
    )
    prepared = prepare(model)
    names = [value.name for node in prepared.graph.all_nodes() for value in node.outputs]
    assert len(names) == len(set(names))
    assert {"s", "c", "y", "h", "p"} <= set(names)
    expected, found = (runtime.run(runtime.session(m, use_library=False), X)["y"] for m in (model, prepared))
    np.testing.assert_array_equal(found, expected)


def test_branches_with_initializers_of_one_name_keep_their_values():
    form = FORMS["weights that belong to the branches"]
    proto = form.model()
    branches = [attribute.g for node in proto.graph.node for attribute in node.attribute if attribute.HasField("g")]
    for graph in branches:
        graph.initializer[0].name = "w"
        graph.node[0].input[1] = "w"
    prepared = prepare(files.load(proto))
    weights = {name for graph in prepared.graphs() for name in graph.initializers if name.startswith("w")}
    assert len(weights) == 2
    normal = normalise(prepared)
    assert weights <= set(normal.graph.initializers)
    values = [normal.graph.initializers[name].const_value.numpy() for name in weights]
    assert not np.array_equal(*values)


def test_a_graph_out_of_order_is_refused():
    nodes = [onnx.helper.make_node("Relu", ["a"], ["y"]), onnx.helper.make_node("Relu", ["x"], ["a"])]
    info = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in "xy"]
    model = ir.from_proto(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", info[:1], info[1:])))
    with pytest.raises(ModelError, match="graph 'g' are not in topological order, or form a cycle"):
        prepare(model)


def test_functions_of_another_opset_are_refused():
    model = onnx.parser.parse_model(
        f"""{HEAD} main (float[N,2] x) => (float[N,3] y) {{ y = local.dense(x, w) }}
        <domain: "local", opset_import: ["" : 16]> dense (x, w) => (r) {{ r = MatMul(x, w) }}"""
    )
    model.graph.initializer.append(numpy_helper.from_array(W, "w"))
    with pytest.raises(ModelError, match="Opset mismatch when inlining function 'local::dense'"):
        prepare(ir.from_proto(model))


def test_widened():
    model = files.load(FORMS["bfloat16"].model())
    assert has_bfloat16(model)
    wide = widened(model)
    assert not has_bfloat16(wide)
    assert has_bfloat16(model)
    tensors = model.graph.initializers, wide.graph.initializers
    np.testing.assert_array_equal(*(group["w"].const_value.numpy().astype(np.float32) for group in tensors))
    assert {node.attributes["to"].as_int() for node in wide.graph if node.op_type == "Cast"} == {1}
    x = FORMS["bfloat16"].inputs()
    found = runtime.run(runtime.session(wide, use_library=False), x)["y"]
    weight, bias = (tensors[1][name].const_value.numpy() for name in "wb")
    np.testing.assert_allclose(found, x["x"] @ weight + bias, rtol=1e-4, atol=1e-4)


def test_widened_constants_and_functions():
    model = onnx.parser.parse_model(
        f"""{HEAD} main (float[2] x) => (bfloat16[2] y) {{ h = local.half(x) y = Add(h, h) }}
        <domain: "local", opset_import: ["" : 17]> half (x) => (r) {{ r = Cast<to = 16>(x) }}"""
    )
    wide = widened(ir.from_proto(model))
    assert has_bfloat16(ir.from_proto(model))
    assert not has_bfloat16(wide)
    assert wide.graph.outputs[0].dtype == ir.DataType.FLOAT

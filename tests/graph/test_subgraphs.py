"""Values of subgraphs given out by runs of the whole model, against the same numbers by numpy."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

import onnxpq
from onnxpq import runtime
from onnxpq.graph import subgraphs
from onnxpq.graph.normalising import normalise

W = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
X = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)

BRANCH = """(float[N,4] x, bool c) => (float[N,4] y) {
    h = Tanh(x)
    [choice] y = If(c) <
        then_branch = a () => (float[N,4] p) { t = Relu(h) p = MatMul(t, w) },
        else_branch = b () => (float[N,4] q) { q = Neg(h) }
    >
}"""
NESTED = """(float[N,4] x, bool c) => (float[N,4] y) {
    [outer] y = If(c) <
        then_branch = a () => (float[N,4] p) {
            [choice] p = If(c) <
                then_branch = e () => (float[N,4] r) { t = Relu(x) r = MatMul(t, w) },
                else_branch = f () => (float[N,4] s) { s = Neg(x) }
            >
        },
        else_branch = b () => (float[N,4] q) { q = Neg(x) }
    >
}"""
LOOP = """(float[N,4] x, bool c) => (float[N,4] y) {
    y = Loop(three, c, x) <body = g (int64 i, bool k, float[N,4] s) => (bool m, float[N,4] r) {
        m = Identity(k) t = Relu(s) r = MatMul(t, w)
    }>
}"""
IF_IN_LOOP = """(float[N,4] x, bool c) => (float[N,4] y) {
    y = Loop(three, c, x) <body = g (int64 i, bool k, float[N,4] s) => (bool m, float[N,4] r) {
        m = Identity(k)
        r = If(k) <
            then_branch = a () => (float[N,4] p) { t = Relu(s) p = MatMul(t, w) },
            else_branch = b () => (float[N,4] q) { q = Neg(s) }
        >
    }>
}"""
SCAN = """(float[M,N,4] x, float[N,4] c) => (float[M,N,4] y) {
    last, y = Scan<num_scan_inputs = 1, scan_output_axes = [0], scan_output_directions = [0],
        body = g (float[N,4] s, float[N,4] v) => (float[N,4] n, float[N,4] r) {
            n = Add(s, v) t = Relu(n) r = MatMul(t, w)
        }>(c, x)
}"""


def parse(text: str, opset: int = 17) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\nsmall {text}')
    proto.graph.initializer.append(numpy_helper.from_array(W, "w"))
    proto.graph.initializer.append(numpy_helper.from_array(np.array(3), "three"))
    return normalise(ir.from_proto(proto))


def given_out(model: ir.Model, name: str, x: NDArray[np.float32], c: NDArray[np.generic]) -> NDArray[np.generic]:
    before = ir.to_proto(model)
    exposed = subgraphs.expose(model, [name])
    assert ir.to_proto(model) == before
    value = next(value for node in exposed.graph for value in node.outputs if value.name == name)
    exposed.graph.outputs.append(value)
    found = runtime.run(runtime.session(exposed, use_library=False), {"x": x, "c": c})
    expected = runtime.run(runtime.session(model, use_library=False), {"x": x, "c": c})
    np.testing.assert_array_equal(found["y"], expected["y"])
    return found[name]


@pytest.mark.parametrize(("text", "inner"), [(BRANCH, np.tanh(X)), (NESTED, X)])
def test_a_value_of_a_branch(text: str, inner: NDArray[np.float32]) -> None:
    model = parse(text)
    assert subgraphs.can_expose(model, "t")
    np.testing.assert_allclose(given_out(model, "t", X, np.array(True)), np.maximum(inner, 0), rtol=1e-6)
    assert given_out(model, "t", X, np.array(False)).shape == (0,)


def test_a_value_of_a_loop_is_stacked() -> None:
    rows = [np.maximum(X, 0)]
    for _ in range(2):
        rows.append(np.maximum(rows[-1] @ W, 0))
    model = parse(LOOP)
    assert subgraphs.can_expose(model, "t")
    np.testing.assert_allclose(given_out(model, "t", X, np.array(True)), rows, rtol=1e-5, atol=1e-6)
    assert given_out(model, "t", X, np.array(False)).size == 0


def test_a_value_of_a_scan_is_stacked() -> None:
    x = np.random.default_rng(2).standard_normal((5, 3, 4)).astype(np.float32)
    model = parse(SCAN)
    assert subgraphs.can_expose(model, "t")
    np.testing.assert_allclose(given_out(model, "t", x, X), np.maximum(X + x.cumsum(0), 0), rtol=1e-5, atol=1e-5)


def test_an_input_of_a_body_and_an_output_of_a_branch() -> None:
    np.testing.assert_array_equal(given_out(parse(LOOP), "s", X, np.array(True))[0], X)
    np.testing.assert_allclose(given_out(parse(BRANCH), "q", X, np.array(False)), -np.tanh(X), rtol=1e-6)


def test_values_of_the_main_graph_stay() -> None:
    model = parse(BRANCH)
    assert subgraphs.can_expose(model, "h")
    assert ir.to_proto(subgraphs.expose(model, ["h", "x"])) == ir.to_proto(model)


def test_a_branch_in_a_loop_cannot_be_stacked() -> None:
    model = parse(IF_IN_LOOP)
    assert not subgraphs.can_expose(model, "t")
    assert subgraphs.can_expose(model, "s")


def test_the_first_scan_has_batches_of_its_own() -> None:
    text = SCAN.replace("float[M,N,4] x, float[N,4] c", "float[1,M,N,4] x, float[1,N,4] c")
    text = text.replace("scan_output_axes = [0], scan_output_directions = [0],", "").replace("(c, x)", "(, c, x)")
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 8]>\nsmall {text}')
    proto.graph.initializer.append(numpy_helper.from_array(W, "w"))
    assert not subgraphs.can_expose(normalise(ir.from_proto(proto)), "t")


def test_hoisting_moves_what_computes_a_value() -> None:
    model = parse(BRANCH)
    values = {value.name: value for node in model.graph.all_nodes() for value in node.outputs}
    subgraphs.hoist(model.graph, values["t"], values["p"])
    product = next(node for node in model.graph if node.op_type == "MatMul")
    assert [value.name for value in product.inputs] == ["t", "w"]
    assert model.graph.inputs[-1] is product.inputs[0]
    model = parse(BRANCH)
    values = {value.name: value for node in model.graph.all_nodes() for value in node.outputs}
    subgraphs.hoist(model.graph, values["h"], values["p"])
    assert [node.op_type for node in model.graph] == ["Tanh", "If", "Relu", "MatMul"]
    assert [value.name for value in model.graph.inputs] == ["x", "c"]


def test_outputs_of_a_scan_get_shapes_where_they_say_none() -> None:
    """onnxruntime runs no Scan without, and infers none through the operator library."""
    rng = np.random.default_rng(0)
    text = """<ir_version: 8, opset_import: ["" : 17]>
    main (float[N,5,64] x, float[N,64] start) => (float[N,64] last, float[N,5,64] all) {
        last, all = Scan<num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1],
            body = step (float[N,64] h, float[N,64] e) => (float k, float o) {
                [fc] p = MatMul(h, w) a = Add(p, e) k = Tanh(a) o = Identity(k)
            }>(start, x)
    }"""
    model = onnx.parser.parse_model(text)
    model.graph.initializer.append(numpy_helper.from_array(rng.standard_normal((64, 64), np.float32) / 8, "w"))
    body = model.graph.node[0].attribute[3].g
    for output in body.output:
        output.type.tensor_type.ClearField("shape")
    result = onnxpq.compress(model, config=onnxpq.Config(floor=1e6))
    inputs = {"x": rng.standard_normal((3, 5, 64), np.float32), "start": rng.standard_normal((3, 64), np.float32)}
    before, after = (onnxpq.session(source).run(None, inputs) for source in (model, result.model))
    assert [array.shape for array in after] == [array.shape for array in before]

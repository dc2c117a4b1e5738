import numpy as np
import onnx
from onnx import numpy_helper
from rule_checks import initializer, parse

from onnxpq.graph import files
from onnxpq.rewriting.rules.context import describe
from onnxpq.rewriting.rules.editor import Editor


def test_labels_are_unique_and_the_users_where_they_are():
    text = """(float[4] x) => (float[4] a, float[4] b, float[4] d) {
        [fc] a = Relu(x) [twice] b = Relu(x) [twice] c = Neg(b) d = Exp(c)
    }"""
    model = parse(text)
    assert list(describe(model).labels.values()) == ["fc", "b", "c", "d"]


def test_a_label_that_is_taken_gets_a_mark():
    model = parse("(float[4] x) => (float[4] a, float[4] b) { [b] a = Relu(x) b = Relu(x) }")
    assert list(describe(model).labels.values()) == ["b", "b'"]


def test_ranks_are_declared_or_inferred():
    model = parse("(float[N,4] x) => (float[N,1,4] y) { h = Relu(x) y = Unsqueeze(h, axes) }", axes())
    context = describe(model)
    values = {node.outputs[0].name: node.outputs[0] for node in model.graph}
    assert context.rank(values["h"]) == 2
    assert context.rank(values["y"]) == 3


def test_ranks_are_known_behind_scalers():
    text = """<ir_version: 8, opset_import: ["" : 17, "ai.onnx.ml" : 1]>
    main (double[N,4] x) => (float[N,4] y) {
        a = ai.onnx.ml.Scaler<offset = [0.5], scale = [2.0]>(x)
        b = Relu(a)
        c = ai.onnx.ml.Normalizer<norm = "L2">(b)
        d = Exp(c)
        y = Identity(d)
    }"""
    model = files.load(onnx.parser.parse_model(text))
    assert [describe(model).rank(node.outputs[0]) for node in model.graph] == [2, 2, 2, 2, 2]


def test_ranks_are_known_behind_operators_of_onnxruntime():
    text = """<ir_version: 8, opset_import: ["" : 13, "com.microsoft" : 1]>
    main (float16[N,4] x, float16[4] s) => (float16[N,4] y) {
        a = LayerNormalization(x, s)
        b = com.microsoft.Gelu(a)
        c = SimplifiedLayerNormalization(b, s)
        d = Exp(c)
        y = com.microsoft.SkipLayerNormalization(d, d, s)
    }"""
    model = files.load(onnx.parser.parse_model(text))
    assert [describe(model).rank(node.outputs[0]) for node in model.graph] == [2, 2, 2, 2, 2]


def axes():
    return numpy_helper.from_array(np.array([1], np.int64), "axes")


def test_origins_follow_operators_on_constants_only():
    text = """(float[N,4] x) => (float[N,4] y, int64[2] n) {
        t = Transpose(w) s = Add(t, small) n = Shape(w) y = MatMul(x, s)
    }"""
    model = parse(text, initializer("w", 4, 4), initializer("small", 1))
    context = describe(model)
    values = {node.outputs[0].name: node.outputs[0] for node in model.graph}
    assert (context.origin(values["s"]).name, context.origin(values["s"]).steps) == ("w", ("Transpose", "Add"))
    assert context.origin(values["n"]) is None
    assert context.origin(values["y"]) is None
    assert context.constant(values["s"]) is None


def test_a_node_with_a_subgraph_is_not_constant():
    text = """(float[4] x, bool c) => (float[4] y) {
        k = Constant<value = bool {1}>()
        y = If(k) <
            then_branch = g () => (float[4] p) { p = Identity(x) },
            else_branch = h () => (float[4] q) { q = Neg(x) }
        >
    }"""
    model = parse(text)
    assert describe(model).origin(model.graph.outputs[0]) is None


def test_new_names_avoid_those_of_the_graph_and_its_subgraphs():
    text = """(float[4] x, bool c) => (float[4] y) {
        [n] y = If(c) <
            then_branch = g () => (float[4] p) { p = Neg(x) },
            else_branch = h () => (float[4] q) { [r] q = Exp(x) }
        >
    }"""
    editor = Editor(parse(text).graph, 17)
    assert [editor.unique(name) for name in ("x", "n", "q", "r", "p", "new", "new")] == [
        "x_1", "n_1", "q_1", "r_1", "p_1", "new", "new_1"
    ]  # fmt: skip


def test_nodes_of_subgraphs_have_labels_and_places():
    text = """(float[4] x, bool c) => (float[4] y) {
        [outer] y = If(c) <
            then_branch = g () => (float[4] p) { [twice] p = Neg(x) },
            else_branch = h () => (float[4] q) { [inner] q = If(c) <
                then_branch = i () => (float[4] r) { [twice] r = Exp(x) },
                else_branch = j () => (float[4] s) { s = Abs(x) }
            > }
        >
    }"""
    context = describe(parse(text))
    assert {context.labels[node]: context.place(node) for node in context.labels} == {
        "outer": "",
        "p": "outer.then_branch",
        "inner": "outer.else_branch",
        "r": "outer.else_branch/inner.then_branch",
        "s": "outer.else_branch/inner.else_branch",
    }


def test_shapes_are_known_in_subgraphs():
    text = """(float[N,4] x, bool c) => (float[N,1,4] y) {
        y = If(c) <
            then_branch = g () => (float[N,1,4] p) { h = Relu(x) p = Unsqueeze(h, axes) },
            else_branch = e () => (float[N,1,4] q) { q = Unsqueeze(x, axes) }
        >
    }"""
    model = parse(text, axes())
    context = describe(model)
    values = {v.name: v for node in model.graph.all_nodes() for v in node.outputs}
    assert context.shape(values["h"]) == ("N", 4)

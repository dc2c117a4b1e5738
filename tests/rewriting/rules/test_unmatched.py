import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rule_checks import check_rewrite, initializer, parse, reasons

from onnxpq.graph import files
from onnxpq.rewriting.listing import find


@pytest.mark.parametrize(
    ("body", "shape", "reason"),
    [
        (
            "Conv(x, w)",
            (64, 8, 3, 3),
            "It is a convolution. --only conv takes it.",
        ),
        ("Mul(x, w)", (8, 32, 32), "It is an operator of another kind. --only other takes it."),
        ("Mul(x, w)", (8, 2048, 4), "The constant 'w' is not the weight of a fully-connected layer"),
    ],
)
def test_large_constants_are_explained(body, shape, reason):
    sizes = "8,2048,4" if shape[-1] == 4 else "8,32,32"
    y = "float[1,64,30,30] y" if "Conv" in body else f"float[1,{sizes}] y"
    model = parse(f"(float[1,{sizes}] x) => ({y}) {{ [n] y = {body} }}", initializer("w", *shape))
    assert reasons(model)["n"].startswith(reason)


def test_lookups_of_what_is_no_matrix_are_explained():
    model = parse("(int64[N] i) => (float[N,8,8] y) { [n] y = Gather(w, i) }", initializer("w", 64, 8, 8))
    assert reasons(model) == {
        "n": "The constant 'w' is looked up by index and is no matrix; only rows of a matrix are compressed."
    }


def test_recurrent_layers_are_explained():
    text = "(float[5,N,16] x) => (float[5,1,N,32] y) { [n] y, h, c = LSTM<hidden_size=32>(x, w, r) }"
    model = parse(text, initializer("w", 1, 128, 16), initializer("r", 1, 128, 32))
    assert reasons(model) == {"n": "It is a recurrent layer. --only recurrent takes it."}


def test_quantized_operators_are_explained():
    weight = numpy_helper.from_array(np.ones((64, 64), np.int8), "w")
    model = parse("(int8[N,64] x) => (int32[N,64] y) { [n] y = MatMulInteger(x, w) }", weight)
    assert reasons(model) == {"n": "The constant 'w' is quantized already."}


def test_small_constants_are_not_mentioned():
    model = parse("(float[N,6] x) => (float[N,6] y) { [n] y = Mul(x, w) }", initializer("w", 6))
    assert find(model) == ([], [])


def test_constants_before_a_node_that_folds_are_mentioned_once():
    text = '(float[N,64] x) => (float[N,64,64] y) { v = Transpose(w) [n] y = Einsum<equation="ij,jk->ijk">(x, v) }'
    model = parse(text, initializer("w", 64, 64))
    assert list(reasons(model)) == ["n"]


def test_nodes_in_subgraphs_are_explained():
    text = """(int64[N] i, bool c) => (float[N,64] y) {
        y = If(c) <
            then_branch = g () => (float[N,64] p) { [inner] p = Gather(w, i) },
            else_branch = h () => (float[N,64] q) { v = Neg(w) [deep] q = Gather(v, i) }
        >
    }"""
    assert {name: reason[:60] for name, reason in reasons(parse(text, initializer("w", 64, 64))).items()} == {
        "inner": "It is a table that is looked up, as an embedding is. --table",
        "deep": "The weight 'w' reaches the node through Neg, which computes ",
    }


def test_calls_of_functions_without_layers_are_explained():
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    main (float[N,64] x) => (float[N,64] y) { [call] y = local.scaled(x, w) }
    <domain: "local", opset_import: ["" : 17]>
    scaled (x, w) => (y) { s = ReduceSum<keepdims = 0>(w) y = Mul(x, s) }
    """
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(initializer("w", 64, 64))
    assert reasons(files.load(proto)) == {"call": "It is an operator of another kind. --only other takes it."}


def test_compressed_layers_are_listed_as_such():
    model = parse("(float[N,6] x) => (float[N,6] y) { [fc] y = MatMul(x, w) }", initializer("w", 6, 6))
    _, rewritten = check_rewrite(model, {"x": np.ones((1, 6), np.float32)})
    assert reasons(rewritten) == {"fc": "It is compressed already."}

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rule_checks import check_rewrite, initializer, parse, reasons

from onnxpq import modelio
from onnxpq.rewriting import find


@pytest.mark.parametrize(
    ("body", "shape", "reason"),
    [
        (
            "Conv(x, w)",
            (64, 8, 3, 3),
            "Conv 'n': its constant 'w' is a convolution kernel; only fully-connected layers",
        ),
        ("Mul(x, w)", (8, 32, 32), "Mul 'n': its constant 'w' is not the weight of a fully-connected layer"),
    ],
)
def test_large_constants_are_explained(body, shape, reason):
    y = "float[1,64,30,30] y" if "Conv" in body else "float[1,8,32,32] y"
    model = parse(f"(float[1,8,32,32] x) => ({y}) {{ [n] y = {body} }}", initializer("w", *shape))
    assert reasons(model)["n"].startswith(reason)


def test_embeddings_are_explained():
    model = parse("(int64[N] i) => (float[N,64] y) { [n] y = Gather(w, i) }", initializer("w", 64, 64))
    assert reasons(model) == {
        "n": "Gather 'n': its constant 'w' is looked up by index, as an embedding is, not multiplied."
    }


def test_recurrent_layers_are_explained():
    text = "(float[5,N,16] x) => (float[5,1,N,32] y) { [n] y, h, c = LSTM<hidden_size=32>(x, w, r) }"
    model = parse(text, initializer("w", 1, 128, 16), initializer("r", 1, 128, 32))
    assert reasons(model) == {
        "n": "LSTM 'n': its constant 'r' is the weight of a recurrent layer, which is not supported yet."
    }


def test_quantized_operators_are_explained():
    weight = numpy_helper.from_array(np.ones((64, 64), np.int8), "w")
    model = parse("(int8[N,64] x) => (int32[N,64] y) { [n] y = MatMulInteger(x, w) }", weight)
    assert reasons(model) == {"n": "MatMulInteger 'n': its constant 'w' is quantized already."}


def test_small_constants_are_not_mentioned():
    model = parse("(float[N,6] x) => (float[N,6] y) { [n] y = Mul(x, w) }", initializer("w", 6))
    assert find(model) == ([], [])


def test_constants_before_a_node_that_folds_are_mentioned_once():
    text = "(float[N,64] x) => (float[N,64] y) { v = Transpose(w) [n] y = Sub(x, v) }"
    model = parse(text.replace("Sub(x, v)", 'Einsum<equation="ij,jk->ik">(x, v)'), initializer("w", 64, 64))
    assert list(reasons(model)) == ["n"]


def test_layers_in_subgraphs_are_listed():
    text = """(float[N,6] x, bool c) => (float[N,6] y) {
        [choice] y = If(c) <
            then_branch = g () => (float[N,6] p) { [inner] p = MatMul(x, w) },
            else_branch = h () => (float[N,6] q) { v = Identity(w) [deep] q = Gemm(x, v) }
        >
    }"""
    assert reasons(parse(text, initializer("w", 6, 6))) == {
        "inner": "MatMul 'inner' lies in a subgraph of node 'choice' (If): not yet supported.",
        "deep": "Gemm 'deep' lies in a subgraph of node 'choice' (If): not yet supported.",
    }


def test_layers_in_functions_are_listed():
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
    main (float[N,2] x) => (float[N,64] z) { y = local.dense(x) [call] z = local.wide(y, w) }
    <domain: "local", opset_import: ["" : 17]>
    dense (x) => (y) { w = Constant<value = float[2,2] {1.0, 2.0, 3.0, 4.0}>() [fc] y = MatMul(x, w) }
    <domain: "local", opset_import: ["" : 17]>
    wide (x, w) => (y) { y = MatMul(x, w) }
    """
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(initializer("w", 2, 2048))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2048
    assert reasons(modelio.load(proto)) == {
        "call": "wide 'call': it calls a local function with the constant 'w'; layers in functions are not supported "
        "yet.",
        "fc": "MatMul 'fc' lies in the local function 'local::dense': not yet supported.",
    }


def test_compressed_layers_are_listed_as_such():
    model = parse("(float[N,6] x) => (float[N,6] y) { [fc] y = MatMul(x, w) }", initializer("w", 6, 6))
    _, rewritten = check_rewrite(model, {"x": np.ones((1, 6), np.float32)})
    assert reasons(rewritten) == {"fc": "PQMatMul 'fc' is compressed already."}

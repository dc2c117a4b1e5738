import itertools

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from rule_checks import (
    FLOAT32_BUDGET,
    check_rewrite,
    initializer,
    largest_difference,
    operators,
    parse,
    quantized,
    reasons,
    run,
    with_decoded_weights,
)

from onnxpq.pq.tensor import PQTensor
from onnxpq.rewriting.listing import find
from onnxpq.rewriting.replacing import rewrite

IN, OUT, ROWS = 7, 5, 4

CONSTANT_C = {"scalar": (), "one": (1,), "out": (OUT,), "1xout": (1, OUT), "1x1": (1, 1)}
KEPT_C = {"Nx1": (ROWS, 1), "Nxout": (ROWS, OUT)}


def gemm_model(trans_a=0, trans_b=0, alpha=1.0, beta=1.0, c_shape=None, c_is_input=False, opset=17) -> ir.Model:
    a = f"float[{IN},{ROWS}] a" if trans_a else f"float[{ROWS},{IN}] a"
    dims = f"[{','.join(map(str, c_shape))}]" if c_shape else ""
    c_input = f", float{dims} c" if c_is_input else ""
    attributes = f"transA={trans_a}, transB={trans_b}, alpha={alpha!r}, beta={beta!r}"
    operands = "a, w" if c_shape is None else "a, w, c"
    tensors = [initializer("w", *((OUT, IN) if trans_b else (IN, OUT)))]
    if c_shape is not None and not c_is_input:
        tensors.append(initializer("c", *c_shape, seed=3))
    text = f"({a}{c_input}) => (float[{ROWS},{OUT}] y) {{ [fc] y = Gemm<{attributes}>({operands}) }}"
    return parse(text, *tensors, opset=opset)


def gemm_inputs(trans_a=0, c_shape=None, c_is_input=False, seed=0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    inputs = {"a": rng.standard_normal((IN, ROWS) if trans_a else (ROWS, IN)).astype(np.float32)}
    if c_is_input:
        inputs["c"] = rng.standard_normal(c_shape).astype(np.float32)
    return inputs


@settings(max_examples=40, deadline=None)
@given(
    trans_a=st.integers(0, 1),
    trans_b=st.integers(0, 1),
    alpha=st.sampled_from([1.0, 0.5, -2.25, 0.0]),
    beta=st.sampled_from([1.0, 0.25, -3.0, 0.0]),
    c_shape=st.sampled_from([None, *CONSTANT_C.values(), *KEPT_C.values()]),
    c_is_input=st.booleans(),
)
def test_every_gemm_equals_itself_with_the_decoded_weight(trans_a, trans_b, alpha, beta, c_shape, c_is_input):
    c_is_input = c_is_input and c_shape is not None
    model = gemm_model(trans_a, trans_b, alpha, beta, c_shape, c_is_input)
    _, rewritten = check_rewrite(model, gemm_inputs(trans_a, c_shape, c_is_input))
    assert "Gemm" not in operators(rewritten)
    assert "w" not in rewritten.graph.initializers


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21])
def test_opsets(opset):
    check_rewrite(gemm_model(1, 1, 0.5, 2.0, (ROWS, 1), opset=opset), gemm_inputs(1))


def test_layer():
    layers, skipped = find(gemm_model(trans_b=1, c_shape=(OUT,)), min_weights=0)
    assert not skipped
    (layer,) = layers
    assert (layer.node, layer.op_type, layer.weight, layer.bias) == ("fc", "Gemm", "w", "c")
    assert (layer.out_features, layer.in_features, layer.weight_is_in_out) == (OUT, IN, False)


def test_a_bias_of_the_right_shape_is_used_as_it_is():
    _, rewritten = check_rewrite(gemm_model(c_shape=(OUT,)), gemm_inputs())
    assert operators(rewritten) == ["PQMatMul"]
    node = rewritten.graph.node("fc")
    assert node.inputs[4].name == "c"
    assert [v.name for v in node.inputs[1:4]] == ["w.codebooks", "w.codes", "w.scales"]
    assert sorted(rewritten.graph.initializers) == ["c", "w.codebooks", "w.codes", "w.scales"]


@pytest.mark.parametrize("shape", CONSTANT_C.values(), ids=CONSTANT_C)
def test_a_constant_c_becomes_the_bias(shape):
    _, rewritten = check_rewrite(gemm_model(beta=0.5, c_shape=shape), gemm_inputs())
    assert operators(rewritten) == ["PQMatMul"]
    np.testing.assert_allclose(
        rewritten.graph.initializers["w.bias"].const_value.numpy(),
        np.broadcast_to(0.5 * numpy_helper.to_array(initializer("c", *shape, seed=3)).reshape(-1), OUT),
    )


@pytest.mark.parametrize(("beta", "expected"), [(1.0, ["PQMatMul", "Add"]), (2.0, ["PQMatMul", "Mul", "Add"])])
@pytest.mark.parametrize("shape", KEPT_C.values(), ids=KEPT_C)
def test_a_c_that_varies_by_row_is_added_afterwards(shape, beta, expected):
    layers, rewritten = check_rewrite(gemm_model(beta=beta, c_shape=shape), gemm_inputs())
    assert operators(rewritten) == expected
    assert layers[0].bias is None


def test_beta_zero_drops_c():
    _, rewritten = check_rewrite(gemm_model(beta=0.0, c_shape=(ROWS, OUT)), gemm_inputs())
    assert operators(rewritten) == ["PQMatMul"]
    assert "c" not in rewritten.graph.initializers


def test_alpha_goes_into_the_scales():
    model = gemm_model(alpha=-0.5)
    layers, _ = find(model, min_weights=0)
    tensor = quantized(layers[0])
    rewritten = rewrite(model, layers, {"w": tensor})
    np.testing.assert_array_equal(
        rewritten.graph.initializers["w.scales"].const_value.numpy(), np.float32(-0.5) * tensor.scales
    )


def test_layers_with_one_weight_share_it_and_its_scales_where_alpha_is_equal():
    text = f"""(float[N,{IN}] a, float[N,{IN}] b) => (float[N,{OUT}] p, float[N,{OUT}] q, float[N,{OUT}] r) {{
        [one] p = Gemm(a, w) [two] q = Gemm(b, w) [three] r = Gemm<alpha=0.5>(b, w)
    }}"""
    model = parse(text, initializer("w", IN, OUT))
    inputs = {name: np.random.default_rng(5).standard_normal((3, IN)).astype(np.float32) for name in "ab"}
    layers, rewritten = check_rewrite(model, inputs)
    assert [layer.weight for layer in layers] == ["w", "w", "w"]
    assert sorted(rewritten.graph.initializers) == ["w.bias", "w.codebooks", "w.codes", "w.scales", "w.scales_1"]


def test_the_budget_sees_an_error_of_two_percent():
    model = gemm_model(c_shape=(OUT,))
    layers, _ = find(model, min_weights=0)
    tensors = {"w": quantized(layers[0])}
    expected = run(with_decoded_weights(model, layers, tensors), gemm_inputs())[0]
    wrong = rewrite(model, layers, tensors)
    scales = wrong.graph.initializers["w.scales"]
    scales.const_value = ir.tensor(scales.const_value.numpy() * np.float32(1.02), name="w.scales")
    assert largest_difference(run(wrong, gemm_inputs())[0], expected) > 100 * FLOAT32_BUDGET


@pytest.mark.parametrize(
    ("operands", "reason"),
    [
        ("w, x", "The constant 'w' is the left factor; only a constant right factor is a layer's weight."),
        ("w, w", "Both factors, 'w' and 'w', are constant: fold constants first."),
    ],
)
def test_refused_operands(operands, reason):
    model = parse(f"(float[6,6] x) => (float[6,6] y) {{ [fc] y = Gemm({operands}) }}", initializer("w", 6, 6))
    assert reasons(model) == {"fc": reason}


def test_a_weight_that_callers_may_replace_is_refused():
    model = parse("(float[N,6] x, float[6,6] w) => (float[N,6] y) { [fc] y = Gemm(x, w) }", initializer("w", 6, 6))
    assert reasons(model) == {
        "fc": "The weight 'w' is a graph input too, so that a caller may replace it; remove it from the inputs if "
        "nobody does."
    }


def test_a_c_that_callers_may_replace_is_added_afterwards():
    text = "(float[N,6] x, float[6] c) => (float[N,6] y) { [fc] y = Gemm(x, w, c) }"
    model = parse(text, initializer("w", 6, 6), initializer("c", 6))
    _, rewritten = check_rewrite(model, {"x": np.ones((2, 6), np.float32), "c": np.full(6, 9, np.float32)})
    assert operators(rewritten) == ["PQMatMul", "Add"]


def test_two_computed_matrices_are_no_layer():
    model = parse("(float[6,6] x) => (float[6,6] y) { [fc] y = Gemm(x, x) }")
    assert find(model) == ([], [])


def test_every_combination_of_transposes_by_hand():
    # One codeword per entry (d = 1): the decoded matrix is written out below.
    for trans_a, trans_b in itertools.product((0, 1), (0, 1)):
        text = f"(float[2,2] a) => (float[2,2] y) {{ [fc] y = Gemm<transA={trans_a}, transB={trans_b}>(a, w) }}"
        model = parse(text, initializer("w", 2, 2))
        layers, _ = find(model, min_weights=0)
        codes = np.array([[[0, 1]], [[1, 1]]], np.uint8)
        tensor = PQTensor(
            codebooks=np.array([[[[3], [5]]]], np.float16),
            codes=codes,
            scales=np.array([1, 2], np.float32),
            in_features=2,
        )
        a = np.array([[1, 2], [3, 4]], np.float32)
        # W [out, in] = [[3, 5], [2*5, 2*5]]
        expected = (a.T if trans_a else a) @ np.array([[3, 10], [5, 10]], np.float32)
        np.testing.assert_array_equal(run(rewrite(model, layers, {"w": tensor}), {"a": a})[0], expected)


@pytest.mark.parametrize(("trans_b", "shape", "is_in_out"), [(0, (5, 6), False), (1, (6, 5), True)])
def test_a_weight_behind_a_transpose(trans_b, shape, is_in_out):
    model = parse(
        f"(float[N,6] x) => (float[N,5] y) {{ v = Transpose(w) y = Gemm<transB={trans_b}>(x, v, b) }}",
        initializer("w", *shape),
        initializer("b", 5),
    )
    (layer,), rewritten = check_rewrite(model, {"x": np.ones((2, 6), np.float32)})
    assert (layer.weight, layer.out_features, layer.in_features) == ("w", 5, 6)
    assert layer.weight_is_in_out == is_in_out
    assert operators(rewritten) == ["PQMatMul"]

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, given, settings
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

from onnxpq.pq.reference import decode
from onnxpq.rewriting.listing import find
from onnxpq.rewriting.replacing import rewrite

IN, OUT = 7, 5
DIMS = (2, 3, 4)
ROWS = 4


def x_of_rank(rank: int) -> np.ndarray:
    return np.random.default_rng(rank).standard_normal((*DIMS[: rank - 1], IN)).astype(np.float32)


def matmul_model(rank=2, bias_shape=None, swapped=False, opset=17):
    lead = [*map(str, DIMS[: rank - 1])]
    text = f"(float[{','.join([*lead, str(IN)])}] x) => (float y) {{ "
    if bias_shape is None:
        text += "[fc] y = MatMul(x, w) }"
    else:
        text += f"[fc] p = MatMul(x, w) [add] y = Add({'b, p' if swapped else 'p, b'}) }}"
    tensors = [initializer("w", IN, OUT)]
    if bias_shape is not None:
        tensors.append(initializer("b", *bias_shape, seed=2))
    y_rank = max(rank, len(bias_shape or ()))
    y = [*["1"] * (y_rank - rank), *lead, str(OUT)]
    if bias_shape is not None:
        y = [str(n) for n in np.broadcast_shapes(bias_shape, tuple(map(int, y)))]
    return parse(text.replace("float y", f"float[{','.join(y)}] y"), *tensors, opset=opset)


def broadcasts(*shapes: tuple[int, ...]) -> bool:
    try:
        np.broadcast_shapes(*shapes)
    except ValueError:
        return False
    return True


@settings(max_examples=40, deadline=None)
@given(
    rank=st.integers(1, 4),
    bias_shape=st.sampled_from([None, (), (1,), (OUT,), (1, OUT), (1, 1, OUT), (1, 1, 1), (2, 1, 1), (4, OUT)]),
    swapped=st.booleans(),
)
def test_every_matmul_equals_itself_with_the_decoded_weight(rank, bias_shape, swapped):
    assume(broadcasts(bias_shape or (), (*DIMS[: rank - 1], OUT)))
    model = matmul_model(rank, bias_shape, swapped)
    _, rewritten = check_rewrite(model, {"x": x_of_rank(rank)})
    assert "MatMul" not in operators(rewritten)
    assert "w" not in rewritten.graph.initializers


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21])
def test_opsets(opset):
    check_rewrite(matmul_model(3, (1, OUT), opset=opset), {"x": x_of_rank(3)})


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("bias_shape", [(), (1,), (OUT,), (1, OUT), (1, 1, OUT)], ids=str)
def test_a_constant_bias_is_fused(bias_shape, swapped):
    layers, rewritten = check_rewrite(matmul_model(3, bias_shape, swapped), {"x": x_of_rank(3)})
    assert operators(rewritten) == ["PQMatMul"]
    assert rewritten.graph.node(0).name == "fc"
    assert layers[0].bias == "b"


@pytest.mark.parametrize(("rank", "bias_shape"), [(2, (1, 1, OUT)), (1, (1, OUT)), (3, (2, 1, 1)), (2, (2, OUT))])
def test_an_add_that_changes_the_rank_or_varies_by_row_stays(rank, bias_shape):
    layers, rewritten = check_rewrite(matmul_model(rank, bias_shape), {"x": x_of_rank(rank)})
    assert operators(rewritten) == ["PQMatMul", "Add"]
    assert layers[0].bias is None


@pytest.mark.parametrize(
    "body",
    [
        "[fc] p = MatMul(x, w) [add] y = Add(p, b) z = Relu(p)",
        "[fc] p = MatMul(x, w) [add] y = Add(p, p) z = Identity(b)",
        "[fc] z = MatMul(x, w) [add] y = Add(z, b)",
        "[fc] p = MatMul(x, w) [add] y = Add(p, x) z = Identity(b)",
        "[fc] p = MatMul(x, w) [add] y = Sub(p, b) z = Identity(b)",
    ],
)
def test_an_add_stays_where_the_product_has_another_use_or_no_constant(body):
    text = f"(float[2,6] x) => (float[2,6] y, float z) {{ {body} }}"
    shape = "float[6] z" if "Identity" in body else "float[2,6] z"
    model = parse(text.replace("float z", shape), initializer("w", 6, 6), initializer("b", 6))
    _, rewritten = check_rewrite(model, {"x": np.ones((2, 6), np.float32)})
    assert {"Add", "Sub"} & set(operators(rewritten))


def test_the_rank_of_an_undeclared_value_is_inferred():
    # skl2onnx writes biases as [1, out] and declares no intermediate value.
    text = "(float[N,6] x) => (float[N,6] y) { h = Relu(x) [fc] p = MatMul(h, w) y = Add(p, b) }"
    model = parse(text, initializer("w", 6, 6), initializer("b", 1, 6))
    _, rewritten = check_rewrite(model, {"x": np.ones((2, 6), np.float32)})
    assert operators(rewritten) == ["Relu", "PQMatMul"]


def test_weights_and_biases_in_constant_nodes():
    text = """(float[N,2] x) => (float[N,2] y) {
        w = Constant<value = float[2,2] {1.0, 2.0, 3.0, 4.0}>()
        [fc] p = MatMul(x, w)
        b = Constant<value = float[2] {5.0, 6.0}>()
        y = Add(p, b)
    }"""
    layers, rewritten = check_rewrite(parse(text), {"x": np.ones((3, 2), np.float32)})
    assert (layers[0].weight, layers[0].bias) == ("w", "b")
    assert operators(rewritten) == ["PQMatMul"]


def test_the_budget_sees_an_error_of_two_percent():
    model, inputs = matmul_model(3, (OUT,)), {"x": x_of_rank(3)}
    layers, _ = find(model, min_weights=0)
    tensors = {"w": quantized(layers[0])}
    expected = run(with_decoded_weights(model, layers, tensors), inputs)[0]
    assert largest_difference(1.02 * run(rewrite(model, layers, tensors), inputs)[0], expected) > 100 * FLOAT32_BUDGET


def test_other_types_are_refused_by_name():
    model = parse(
        "(int32[N,6] x) => (int32[N,6] y) { [fc] y = MatMul(x, w) }",
        numpy_helper.from_array(np.ones((6, 6), np.int32), "w"),
    )
    assert reasons(model) == {"fc": "The weight 'w' has type INT32; only floating-point weights are compressed."}


def typed_model(dtype: int, array_type: type, bias_shape: tuple[int, ...], opset: int):
    text = f"""(float[N,7] x) => (float[N,5] y) {{
        h = Cast<to = {dtype}>(x) [fc] p = MatMul(h, w) q = Add(p, b) y = Cast<to = 1>(q)
    }}"""
    rng = np.random.default_rng(0)
    tensors = {"w": rng.standard_normal((IN, OUT)), "b": rng.standard_normal(bias_shape)}
    return parse(text, *(numpy_helper.from_array(a.astype(array_type), n) for n, a in tensors.items()), opset=opset)


FLOAT16_BUDGET = 2e-3
"""Of an output of float16, relative to the largest: it is rounded once or twice, to 11 bits each time."""


@pytest.mark.parametrize("bias_shape", [(), (OUT,), (1, OUT)], ids=str)
@pytest.mark.parametrize(("opset", "expected"), [(17, []), (14, ["Cast", "Cast"])])
def test_float16(opset, expected, bias_shape):
    model = typed_model(10, np.float16, bias_shape, opset)
    inputs = {"x": x_of_rank(2)}
    layers, _ = find(model, min_weights=0)
    tensors = {"w": quantized(layers[0])}
    rewritten = rewrite(model, layers, tensors)
    assert operators(rewritten) == ["Cast", *expected[:1], "PQMatMul", *expected[1:], "Cast"]
    (found,) = run(rewritten, inputs)
    (reference,) = run(with_decoded_weights(model, layers, tensors), inputs)
    assert largest_difference(found, reference) <= FLOAT16_BUDGET
    assert largest_difference(1.02 * found, reference) > 5 * FLOAT16_BUDGET
    assert layers[0].weight_bytes == 2 * IN * OUT


DOUBLE_BUDGET = 1e-6
"""Of an output of double whose layer computes in float32."""


def test_double():
    model = typed_model(11, np.float64, (OUT,), 17)
    layers, _ = find(model, min_weights=0)
    tensors = {"w": quantized(layers[0])}
    rewritten = rewrite(model, layers, tensors)
    assert operators(rewritten) == ["Cast", "Cast", "PQMatMul", "Cast", "Cast"]
    found, reference = (
        run(m, {"x": x_of_rank(2)})[0] for m in (rewritten, with_decoded_weights(model, layers, tensors))
    )
    assert largest_difference(found, reference) <= DOUBLE_BUDGET
    assert layers[0].weight_bytes == 8 * IN * OUT


def test_bfloat16_runs_where_only_layers_compute_in_it():
    # onnxruntime has Cast of bfloat16 on a CPU, and no MatMul.
    model = typed_model(16, ml_dtypes.bfloat16, (OUT,), 17)
    layers, _ = find(model, min_weights=0)
    tensors = {"w": quantized(layers[0])}
    rewritten = rewrite(model, layers, tensors)
    x = x_of_rank(2)
    bias = model.graph.initializers["b"].const_value.numpy().astype(np.float32)
    t = tensors["w"]
    weight = decode(t.codebooks, t.codes, t.scales, t.in_features)
    expected = x.astype(ml_dtypes.bfloat16).astype(np.float64) @ weight.T + bias
    (found,) = run(rewritten, {"x": x})
    assert largest_difference(found, expected) <= 2**-8
    assert largest_difference(1.02 * found, expected) > 2**-8


@pytest.mark.parametrize(
    ("body", "shape", "reason"),
    [
        ("MatMul(w, w)", (6, 6), "Both factors, 'w' and 'w', are constant: fold constants first."),
        ("MatMul(x, w)", (6,), "The weight 'w' has shape [6]; only matrices are compressed here."),
        ("MatMul(x, w)", (6, 0), "The weight 'w' is empty: its shape is [6, 0]."),
    ],
)
def test_refusals(body, shape, reason):
    dims = ",".join(str(n) for n in np.matmul(np.ones((6, 6)), np.ones(shape)).shape)
    model = parse(f"(float[6,6] x) => (float[{dims}] y) {{ [fc] y = {body} }}", initializer("w", *shape))
    assert reasons(model) == {"fc": reason}


@pytest.mark.parametrize(
    ("chain", "steps"),
    [
        ("v = Abs(w)", "Abs"),
        ("h = Cast<to=7>(w) v = Cast<to=1>(h)", "Cast, Cast"),
        ("t = Transpose(w) v = Mul(t, s)", "Transpose, Mul"),
    ],
)
def test_a_weight_behind_other_operators_is_refused(chain, steps):
    model = parse(
        f"(float[N,6] x) => (float[N,6] y) {{ {chain} [fc] y = MatMul(x, v) }}",
        initializer("w", 6, 6),
        initializer("s", 1),
    )
    assert reasons(model) == {
        "fc": f"The weight 'w' reaches the node through {steps}, which computes other numbers; fold constants first "
        "(onnxruntime's basic optimization does)."
    }


@pytest.mark.parametrize(
    ("chain", "shape", "is_in_out"),
    [
        ("v = Transpose<perm=[1,0]>(w)", (5, 6), False),
        ("v = Transpose(w)", (5, 6), False),
        ("v = Transpose<perm=[0,1]>(w)", (6, 5), True),
        ("v = Identity(w)", (6, 5), True),
        ("c = Cast<to=1>(w) t = Transpose(c) v = Identity(t)", (5, 6), False),
        ("t = Transpose(w) v = Transpose(t)", (6, 5), True),
    ],
)
def test_a_weight_is_seen_through_views(chain, shape, is_in_out):
    model = parse(
        f"(float[N,6] x) => (float[N,5] y) {{ {chain} h = MatMul(x, v) y = Add(h, b) }}",
        initializer("w", *shape),
        initializer("b", 5),
    )
    (layer,), rewritten = check_rewrite(model, {"x": np.ones((2, 6), np.float32)})
    assert (layer.weight, layer.out_features, layer.in_features) == ("w", 5, 6)
    assert layer.weight_is_in_out == is_in_out
    assert operators(rewritten) == ["PQMatMul"]
    assert "w" not in rewritten.graph.initializers


def test_a_weight_is_seen_through_a_cast_that_rounds():
    text = "(float[N,6] x) => (float[N,5] y) { c = Cast<to=10>(w) v = Cast<to=1>(c) [fc] y = MatMul(x, v) }"
    (layer,), _ = find(parse(text, initializer("w", 6, 5)), min_weights=0)
    assert (layer.weight, layer.weight_bytes) == ("w", 4 * 6 * 5)


def test_two_layers_behind_one_transpose_share_the_weight():
    model = parse(
        "(float[N,6] x) => (float[N,6] y) { v = Transpose(w) h = MatMul(x, v) g = Relu(h) y = MatMul(g, v) }",
        initializer("w", 6, 6),
    )
    layers, rewritten = check_rewrite(model, {"x": np.ones((2, 6), np.float32)})
    assert [layer.weight for layer in layers] == ["w", "w"]
    assert operators(rewritten) == ["PQMatMul", "Relu", "PQMatMul"]


@pytest.mark.parametrize(
    ("body", "sentence"),
    [
        ("t = Transpose(w) e = Gather(w, i) [fc] y = MatMul(e, t)", "is used by node 'e' (Gather) too"),
        ("t = Transpose(w) s = Abs(t) e = Gather(s, i) [fc] y = MatMul(e, t)", "is used by node 's' (Abs) too"),
        ("t = Transpose(w) e = Gather(w, i) z = MatMul(e, w) [fc] y = MatMul(z, t)", "as it is and transposed"),
    ],
)
def test_a_weight_behind_a_transpose_that_would_stay_is_refused(body, sentence):
    model = parse(f"(int64[N] i) => (float[N,6] y) {{ {body} }}", initializer("w", 6, 6))
    assert sentence in reasons(model)["fc"]


def test_a_quantized_weight_is_refused():
    model = parse(
        "(float[N,6] x) => (float[N,6] y) { v = DequantizeLinear(w, s) [fc] y = MatMul(x, v) }",
        numpy_helper.from_array(np.ones((6, 6), np.int8), "w"),
        numpy_helper.from_array(np.array(0.5, np.float32), "s"),
    )
    assert reasons(model) == {"fc": "The weight 'w' is quantized already (INT8); pass the model as it was before."}


def test_a_weight_that_callers_may_replace_is_refused():
    model = parse("(float[N,6] x, float[6,6] w) => (float[N,6] y) { [fc] y = MatMul(x, w) }", initializer("w", 6, 6))
    assert "is a graph input too, so that a caller may replace it" in reasons(model)["fc"]


@settings(max_examples=30, deadline=None)
@given(
    trans_a=st.integers(0, 1),
    trans_b=st.integers(0, 1),
    alpha=st.sampled_from([1.0, 0.5, -2.0]),
    rank=st.integers(2, 4),
    with_bias=st.booleans(),
)
def test_every_fused_matmul_equals_itself_with_the_decoded_weight(trans_a, trans_b, alpha, rank, with_bias):
    lead = ",".join(map(str, DIMS[: rank - 2]))
    sizes = [IN, ROWS] if trans_a else [ROWS, IN]
    x, y = (f"float[{lead}{',' if lead else ''}{a},{b}]" for a, b in (sizes, (ROWS, OUT)))
    fused = f"com.microsoft.FusedMatMul<transA = {trans_a}, transB = {trans_b}, alpha = {alpha}>(x, w)"
    body = f"[fc] p = {fused} y = Add(p, b)" if with_bias else f"[fc] y = {fused}"
    tensors = [initializer("w", *((OUT, IN) if trans_b else (IN, OUT))), initializer("b", OUT, seed=2)]
    model = parse(f"({x} x) => ({y} y) {{ {body} }}", *tensors, domains=("com.microsoft",))
    values = np.random.default_rng(rank).standard_normal((*DIMS[: rank - 2], *sizes)).astype(np.float32)
    _, rewritten = check_rewrite(model, {"x": values})
    assert operators(rewritten) == ["Transpose", "PQMatMul"][1 - trans_a :]


def test_fused_matmul_of_an_unknown_rank_is_refused():
    text = "(float[6,N] x) => (float[N,6] y) { h = other.Op(x) [fc] y = com.microsoft.FusedMatMul<transA = 1>(h, w) }"
    model = parse(text, initializer("w", 6, 6), domains=("com.microsoft", "other"))
    assert "is transposed and has an unknown rank" in reasons(model)["fc"]


def test_attention_scores_are_no_layer():
    model = parse("(float[6,6] x) => (float[6,6] y) { y = MatMul(x, x) }")
    assert find(model, min_weights=0) == ([], [])

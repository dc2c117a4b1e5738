import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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

from onnxpq.rewriting.listing import find
from onnxpq.rewriting.replacing import rewrite

IN, OUT, ROWS = 7, 5, 4


def sizes(numbers) -> str:
    return f"float[{','.join(map(str, numbers))}]"


def batched_model(stack: tuple[int, ...], lead: tuple[int, ...] = (), opset: int = 17, transposed: bool = False):
    x, y = (*lead, *stack, ROWS, IN), (*lead, *stack, ROWS, OUT)
    perm = [*range(len(stack)), len(stack) + 1, len(stack)]
    body = f"t = Transpose<perm = {perm}>(w) [fc] y = MatMul(x, t)" if transposed else "[fc] y = MatMul(x, w)"
    shape = (*stack, OUT, IN) if transposed else (*stack, IN, OUT)
    model = parse(f"({sizes(x)} x) => ({sizes(y)} y) {{ {body} }}", initializer("w", *shape), opset=opset)
    return model, {"x": np.random.default_rng(1).standard_normal(x).astype(np.float32)}


@settings(max_examples=20, deadline=None)
@given(
    stack=st.sampled_from([(1,), (2,), (3,), (1, 3), (3, 1), (1, 1)]),
    lead=st.sampled_from([(), (2,), (2, 1)]),
    opset=st.sampled_from([9, 12, 13, 17, 18]),
    transposed=st.booleans(),
)
def test_every_stack_equals_itself_with_the_decoded_weights(stack, lead, opset, transposed):
    model, inputs = batched_model(stack, lead, opset, transposed)
    (layer,), rewritten = check_rewrite(model, inputs)
    count = int(np.prod(stack))
    assert (layer.out_features, layer.in_features) == (count * OUT, IN)
    products = ["PQMatMul"] if count == 1 else ["Split", *["PQMatMul"] * count, "Concat"]
    assert operators(rewritten) == products
    assert "w" not in rewritten.graph.initializers


@pytest.mark.parametrize("lead", [(1,), (2, 1)])
def test_one_input_for_all_matrices(lead):
    y = (*lead[:-1], 3, ROWS, OUT)
    text = f"({sizes((*lead, ROWS, IN))} x) => ({sizes(y)} y) {{ [fc] y = MatMul(x, w) }}"
    x = np.random.default_rng(1).standard_normal((*lead, ROWS, IN)).astype(np.float32)
    _, rewritten = check_rewrite(parse(text, initializer("w", 3, IN, OUT)), {"x": x})
    assert operators(rewritten) == ["PQMatMul"] * 3 + ["Concat"]


def test_matrices_share_their_codebooks():
    model, inputs = batched_model((3,))
    _, rewritten = check_rewrite(model, inputs)
    products = [node for node in rewritten.graph if node.op_type == "PQMatMul"]
    assert [node.name for node in products] == ["fc.0", "fc.1", "fc.2"]
    assert len({node.inputs[1].name for node in products}) == 1
    assert len({node.inputs[2].name for node in products}) == 3
    assert len({node.inputs[4].name for node in products}) == 1


def test_the_budget_sees_an_error_of_two_percent():
    model, inputs = batched_model((3,))
    layers, _ = find(model, min_weights=0)
    tensors = {"w": quantized(layers[0])}
    (expected,), (found,) = (
        run(m, inputs) for m in (with_decoded_weights(model, layers, tensors), rewrite(model, layers, tensors))
    )
    assert largest_difference(1.02 * found, expected) > 100 * FLOAT32_BUDGET
    wrong = np.concatenate([found[1:], found[:1]])
    assert largest_difference(wrong, expected) > 100 * FLOAT32_BUDGET


@pytest.mark.parametrize(
    ("x", "weight", "sentence"),
    [
        ((4, 6), (3, 6, 5), "more axes than its input 'x' of shape [4, 6]"),
        (("N", 4, 6), (3, 6, 5), ", its input 'x' ['N', 4, 6], which must be known to have 3 there too, or 1."),
        ((65, 4, 6), (65, 6, 5), "65 matrices, more than the 64 that get a node each."),
        ((2, 3, 4, 6), (2, 3, 6, 5), "only stacks along one axis are supported."),
    ],
)
def test_refusals(x, weight, sentence):
    y = (*weight[:-2], 4, 5) if len(x) <= 3 else (*x[:-1], 5)
    model = parse(f"({sizes(x)} x) => ({sizes(y)} y) {{ [fc] y = MatMul(x, w) }}", initializer("w", *weight))
    reason = reasons(model)["fc"]
    assert reason.startswith(f"The weight 'w' has shape {list(weight)}")
    assert reason.endswith(sentence) or sentence in reason


def test_an_input_of_unknown_shape_is_refused():
    text = "(float[3,4,6] x) => (float[3,4,5] y) { h = other.Op(x) [fc] y = MatMul(h, w) }"
    model = parse(text, initializer("w", 3, 6, 5), domains=("other",))
    assert "more axes than its input 'h' of unknown shape" in reasons(model)["fc"]

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

IN, OUT = 7, 5
DIMS = (2, 3)


def left_model(rank: int, weight: str = "w"):
    lead = DIMS[: max(rank - 2, 0)]
    x = [*lead, IN, 4] if rank > 1 else [IN]
    y = [*lead, OUT, 4] if rank > 1 else [OUT]
    x_type, y_type = (f"float[{','.join(map(str, sizes))}]" for sizes in (x, y))
    body = f"t = Transpose(w) [fc] y = MatMul({weight}, x)" if weight == "t" else f"[fc] y = MatMul({weight}, x)"
    shape = (IN, OUT) if weight == "t" else (OUT, IN)
    model = parse(f"({x_type} x) => ({y_type} y) {{ {body} }}", initializer("w", *shape))
    return model, {"x": np.random.default_rng(rank).standard_normal(x).astype(np.float32)}


@settings(max_examples=16, deadline=None)
@given(rank=st.integers(1, 4), weight=st.sampled_from(["w", "t"]))
def test_every_product_equals_itself_with_the_decoded_weight(rank, weight):
    model, inputs = left_model(rank, weight)
    (layer,), rewritten = check_rewrite(model, inputs)
    assert (layer.out_features, layer.in_features, layer.weight_is_in_out) == (OUT, IN, weight == "t")
    assert operators(rewritten) == (["PQMatMul"] if rank == 1 else ["Transpose", "PQMatMul", "Transpose"])
    assert "w" not in rewritten.graph.initializers


def test_the_budget_sees_an_error_of_two_percent():
    model, inputs = left_model(3)
    layers, _ = find(model, min_weights=0)
    tensors = {"w": quantized(layers[0])}
    (expected,), (found,) = (
        run(m, inputs) for m in (with_decoded_weights(model, layers, tensors), rewrite(model, layers, tensors))
    )
    assert largest_difference(1.02 * found, expected) > 100 * FLOAT32_BUDGET


@pytest.mark.parametrize(
    ("text", "shape", "sentence"),
    [
        (
            "(float[2,6,4] x) => (float[2,6,4] y) { [fc] y = MatMul(w, x) }",
            (2, 6, 6),
            "The left factor 'w' has shape [2, 6, 6]; only matrices are compressed.",
        ),
        (
            "(float[6,4] x) => (float[6,4] y) { h = other.Op(x) [fc] y = MatMul(w, h) }",
            (6, 6),
            "The constant 'w' is the left factor, and the rank of the right one, 'h', is not known; export the model "
            "with the shapes of its values.",
        ),
    ],
)
def test_refusals(text, shape, sentence):
    assert reasons(parse(text, initializer("w", *shape), domains=("other",)))["fc"] == sentence

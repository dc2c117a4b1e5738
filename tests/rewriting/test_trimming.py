"""What is left beside the compressed weights: metadata goes, equal constants are one, the rest may be float16."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import numpy_helper
from rule_checks import initializer, largest_difference, parse, quantized, run

from onnxpq.graph import files
from onnxpq.rewriting import trimmed
from onnxpq.rewriting.listing import find
from onnxpq.rewriting.replacing import rewrite

HALF_BUDGET = 2e-3
"""Largest difference of outputs of 72 products with a kernel of float16, relative to the largest output."""

TEXT = """(float[1,8,9,9] x) => (float[1,24,7,7] y, float[1,24,7,7] z) {
    [conv] c = Conv(x, w, b)
    y = Add(c, one)
    z = Add(c, two)
}"""


def model() -> ir.Model:
    constants = [
        initializer("w", 24, 8, 3, 3),
        initializer("b", 24),
        *(initializer(n, 24, 7, 7) for n in ("one", "two")),
    ]
    return parse(TEXT, *constants)


def test_notes_of_exporters_go_and_those_of_the_model_stay() -> None:
    source = model()
    source.metadata_props["mean"] = "0.1307"
    source.doc_string = "about"
    source.graph.node("conv").metadata_props["stack_trace"] = "at line 5" * 100
    source.graph.node("conv").doc_string = "long"
    source.graph.node("conv").outputs[0].metadata_props["origin"] = "torch"
    before = files.to_bytes(source)
    found = trimmed(source, rest="float32", keep_metadata=False)
    assert files.to_bytes(source) == before
    assert found.metadata_props == {"mean": "0.1307"}
    assert found.doc_string == "about"
    assert b"stack_trace" not in files.to_bytes(found)
    assert b"origin" not in files.to_bytes(found)
    assert b"stack_trace" in files.to_bytes(trimmed(source, rest="float32", keep_metadata=True))


def test_equal_constants_are_one() -> None:
    found = trimmed(model(), rest="float32", keep_metadata=False)
    assert sorted(found.graph.initializers) == ["b", "one", "w"]
    x = {"x": np.ones((1, 8, 9, 9), np.float32)}
    for one, other in zip(run(found, x), run(model(), x), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_rest_is_stored_in_half_the_bytes_and_folded_at_load() -> None:
    found = trimmed(model(), rest="float16", keep_metadata=False)
    onnx.checker.check_model(ir.to_proto(found), full_check=True)
    stored = {name: value.const_value.dtype.name for name, value in found.graph.initializers.items()}
    assert stored == {"b": "FLOAT", "w.half": "FLOAT16", "one.half": "FLOAT16"}  # 24 numbers are too few
    x = {"x": np.random.default_rng(0).standard_normal((1, 8, 9, 9)).astype(np.float32)}
    for one, other in zip(run(found, x), run(model(), x), strict=True):
        assert 0 < largest_difference(one, other) < HALF_BUDGET
        assert largest_difference(1.02 * one, other) > HALF_BUDGET


@pytest.mark.parametrize("value", [1e-9, 7e4, np.inf])
def test_numbers_that_float16_does_not_hold_stay(value: float) -> None:
    array = np.ones((24, 7, 7), np.float32)
    array[3, 3, 3] = value
    text = "(float[1,24,7,7] x) => (float[1,24,7,7] y) { y = Add(x, one) }"
    found = trimmed(parse(text, numpy_helper.from_array(array, "one")), rest="float16", keep_metadata=False)
    assert [v.const_value.dtype.name for v in found.graph.initializers.values()] == ["FLOAT"]


def test_biases_of_our_layers_need_no_cast_and_their_scales_stay() -> None:
    text = "(float[N,64] x) => (float[N,96] y) { [fc] m = MatMul(x, w) y = Add(m, b) }"
    source = parse(text, initializer("w", 64, 96), initializer("b", 96))
    layers, _ = find(source)
    rewritten = rewrite(source, layers, {"w": quantized(layers[0])})
    found = trimmed(rewritten, rest="float16", keep_metadata=False)
    assert [node.op_type for node in found.graph] == ["PQMatMul"]
    stored = {name: value.const_value.dtype.name for name, value in found.graph.initializers.items()}
    assert stored == {"w.codebooks": "FLOAT16", "w.codes": "UINT8", "w.scales": "FLOAT", "b.half": "FLOAT16"}
    x = {"x": np.ones((2, 64), np.float32)}
    assert largest_difference(run(found, x)[0], run(rewritten, x)[0]) < HALF_BUDGET

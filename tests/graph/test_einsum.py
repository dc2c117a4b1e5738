"""Einsum spelt as MatMul, against onnxruntime's Einsum."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from onnxpq import runtime
from onnxpq.graph import einsum
from onnxpq.graph.preparing import prepare

pytestmark = pytest.mark.rounding

SIZES = dict(zip("abcdefgh", (2, 3, 4, 5, 6, 7, 2, 3), strict=True))
BUDGET = 1e-5
"""Relative L2 difference of float32 sums in another order."""


def model(equation: str, x: str, w: str, *, weight_first: bool = False) -> ir.Model:
    shapes = {name: [SIZES[axis] for axis in term] for name, term in (("x", x), ("w", w))}
    weight = numpy_helper.from_array(np.random.default_rng(1).standard_normal(shapes["w"]).astype(np.float32), "w")
    factors = ["w", "x"] if weight_first else ["x", "w"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Einsum", factors, ["y"], name="fc", equation=equation)],
        "g",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shapes["x"])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [weight],
    )
    return ir.from_proto(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8))


def assert_same(original: ir.Model, spelt: ir.Model, x: str) -> None:
    inputs = {"x": np.random.default_rng(0).standard_normal([SIZES[axis] for axis in x]).astype(np.float32)}
    (expected,), (found,) = (
        runtime.run(runtime.session(entry, use_library=False), inputs).values() for entry in (original, spelt)
    )
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= BUDGET * np.linalg.norm(expected)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), weight_first=st.booleans(), spaces=st.booleans())
def test_every_order_of_axes(data: st.DataObject, weight_first: bool, spaces: bool) -> None:
    axes = data.draw(st.permutations(list("abcdefgh")))
    rows, summed, kept = (
        axes[start : start + data.draw(st.integers(least, 2))] for start, least in ((0, 0), (2, 1), (4, 1))
    )
    x, w, y = ("".join(data.draw(st.permutations(term))) for term in (rows + summed, summed + kept, rows + kept))
    equation = f"{w},{x}->{y}" if weight_first else f"{x},{w}->{y}"
    original = model(equation.replace(",", " , ") if spaces else equation, x, w, weight_first=weight_first)
    spelt = prepare(original)
    operators = [node.op_type for node in spelt.graph]
    assert operators.count("MatMul") == 1
    assert set(operators) <= {"MatMul", "Reshape", "Transpose"}
    assert next(node for node in spelt.graph if node.op_type == "MatMul").name == "fc"
    assert_same(original, spelt, x)


@pytest.mark.parametrize("equation", ["ab,bc->ac", "ab,bc", "...b,bc->...c", "ab, bc -> ac"])
def test_a_product_of_matrices_is_nothing_but_matmul(equation: str) -> None:
    original = model(equation, "ab", "bc")
    spelt = prepare(original)
    assert [(node.op_type, node.name) for node in spelt.graph] == [("MatMul", "fc")]
    assert [value.name for value in spelt.graph.outputs] == ["y"]
    assert_same(original, spelt, "ab")


def test_a_prepared_model_is_left_as_it_is() -> None:
    once = prepare(model("ab,cb->ca", "ab", "cb"))
    assert ir.to_proto(prepare(once)) == ir.to_proto(once)


@pytest.mark.parametrize(
    ("equation", "x", "w", "why"),
    [
        ("abc,acd->abd", "abc", "acd", "an axis of all three terms is a batch of matrices"),
        ("ab,b->ab", "ab", "b", "nothing is summed"),
        ("ab,b->a", "ab", "b", "nothing of w is kept"),
        ("abc,cd->ad", "abc", "cd", "b is summed over x alone"),
        ("ab,bcd->ac", "ab", "bcd", "d is summed over w alone"),
        ("aab,bc->ac", "aab", "bc", "a diagonal is taken"),
        ("...b,bc->c...", "ab", "bc", "the order of axes of unknown number"),
    ],
)
def test_other_sums_stay(equation: str, x: str, w: str, why: str) -> None:
    assert [node.op_type for node in prepare(model(equation, x, w)).graph] == ["Einsum"], why


def test_weights_that_a_caller_may_replace_stay() -> None:
    original = model("ab,bc->ac", "ab", "bc")
    original.graph.inputs.append(original.graph.initializers["w"])
    assert [node.op_type for node in prepare(original).graph] == ["Einsum"]


def test_another_node_is_refused() -> None:
    (node,) = prepare(model("ab,bc->ac", "ab", "bc")).graph
    assert not einsum.is_layer(node)
    with pytest.raises(ValueError, match=r"'fc' \(MatMul\) is no Einsum"):
        einsum.spell_as_matmul(node, set())

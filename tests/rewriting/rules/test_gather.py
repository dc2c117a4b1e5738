import numpy as np
import onnx
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
    run,
    with_decoded_weights,
)

from onnxpq.graph.layers import tables
from onnxpq.rewriting.listing import TABLE_REASON, find
from onnxpq.rewriting.replacing import rewrite

ROWS, COLUMNS, OUT = 41, 10, 6


def lookup(node="[table] y = Gather(w, x)", *more, columns=COLUMNS, **settings):
    text = f"(int64[N,3] x) => (float[N,3,{columns}] y) {{ {node} }}"
    return parse(text, initializer("w", ROWS, COLUMNS), *more, **settings)


def rows(*shape):
    return {"x": np.random.default_rng(5).integers(-ROWS, ROWS, shape or (4, 3))}


def with_tables(model):
    return find(model, min_weights=0, tables=True)


@pytest.mark.parametrize("axis", ["", "<axis = 0>", "<axis = -2>"])
@pytest.mark.parametrize("opset", [9, 13, 17])
def test_rows_equal_those_of_the_decoded_table(axis, opset):
    ((layer,), rewritten) = check_rewrite(lookup(f"[table] y = Gather{axis}(w, x)", opset=opset), rows(), tables=True)
    assert (layer.out_features, layer.in_features, layer.weight_is_in_out) == (ROWS, COLUMNS, False)
    assert layer.is_table
    assert operators(rewritten) == ["PQGather"]
    assert rewritten.graph[0].name == "table"
    assert "w" not in rewritten.graph.initializers
    assert [function.name for function in rewritten.functions.values()] == ["PQGather"], "no PQMatMul is called"


@settings(max_examples=16, deadline=None)
@given(shape=st.lists(st.integers(0, 4), min_size=1, max_size=3))
def test_rows_may_have_any_shape(shape):
    sizes = ",".join(map(str, shape))
    text = f"(int64[{sizes}] x) => (float[{','.join(map(str, [*shape, COLUMNS]))}] y) {{ [table] y = Gather(w, x) }}"
    check_rewrite(parse(text, initializer("w", ROWS, COLUMNS)), {"x": rows(*shape)["x"].reshape(shape)}, tables=True)


def test_a_transposed_table():
    model = parse(
        f"(int64[N] x) => (float[N,{COLUMNS}] y) {{ t = Transpose(w) [table] y = Gather(t, x) }}",
        initializer("w", COLUMNS, ROWS),
    )
    (layer,), rewritten = check_rewrite(model, {"x": np.array([0, 40, -1])}, tables=True)
    assert layer.weight_is_in_out
    assert operators(rewritten) == ["PQGather"]


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_a_table_of_another_type_gives_rows_of_it(dtype):
    name = {np.float16: "float16", np.float64: "double"}[dtype]
    values = np.random.default_rng(0).standard_normal((ROWS, COLUMNS)).astype(dtype)
    model = parse(
        f"(int64[N] x) => ({name}[N,{COLUMNS}] y) {{ [table] y = Gather(w, x) }}",
        numpy_helper.from_array(values, "w"),
    )
    (layer,), _ = with_tables(model)
    tensor = quantized(layer)
    rewritten = rewrite(model, [layer], {"w": tensor})
    inputs = {"x": np.array([0, 5, -1])}
    (found,), (expected,) = run(rewritten, inputs), run(with_decoded_weights(model, [layer], {"w": tensor}), inputs)
    assert found.dtype == dtype
    assert largest_difference(found.astype(np.float64), expected.astype(np.float64)) <= 2**-10


def test_one_that_is_multiplied_by_too_is_stored_once():
    """The embedding of a language model, whose transpose gives the scores of the words."""
    text = (
        f"(int64[N,3] x) => (float[N,3,{ROWS}] y) "
        "{ [table] h = Gather(w, x) r = Tanh(h) t = Transpose(w) [head] y = MatMul(r, t) }"
    )
    model = parse(text, initializer("w", ROWS, COLUMNS))
    layers, rewritten = check_rewrite(model, rows(), tables=True)
    assert [layer.node for layer in layers] == ["table", "head"]
    assert tables(layers) == frozenset(), "one that a layer multiplies by is no mere table"
    assert tables(layers[:1]) == {"w"}
    codes = [node.inputs[2] for node in rewritten.graph if node.domain == "onnxpq"]
    assert len(codes) == 2
    assert codes[0] is codes[1]
    chosen, skipped = find(model, min_weights=0)
    assert not chosen, "the table would stay in the file"
    assert {entry.node: entry.reason for entry in skipped} == {
        "table": TABLE_REASON,
        "head": "The weight 'w' is used by node 'table' (Gather) too, which is left as it is: the weight would stay in "
        "the file.",
    }


def test_several_lookups_share_what_replaces_the_table():
    model = lookup("[one] a = Gather(w, x) n = Neg(x) [two] b = Gather(w, n) y = Add(a, b)")
    layers, rewritten = check_rewrite(model, {"x": np.array([[0, 1, 40]])}, tables=True)
    assert [layer.node for layer in layers] == ["one", "two"]
    assert sorted(rewritten.graph.initializers) == ["w.codebooks", "w.codes", "w.scales"]


def test_the_budget_sees_an_error_of_two_percent():
    model = lookup()
    layers, _ = with_tables(model)
    tensors = {"w": quantized(layers[0])}
    (expected,), (found,) = (
        run(m, rows()) for m in (with_decoded_weights(model, layers, tensors), rewrite(model, layers, tensors))
    )
    assert largest_difference(found, expected) <= FLOAT32_BUDGET
    assert largest_difference(1.02 * found, expected) > 100 * FLOAT32_BUDGET


def test_they_are_left_alone_unless_asked_for():
    layers, (skipped,) = find(lookup(), min_weights=0)
    assert not layers
    assert (skipped.node, skipped.reason) == ("table", TABLE_REASON)


def test_small_ones_are_left_alone():
    layers, (skipped,) = find(lookup(), min_weights=411, tables=True)
    assert not layers
    assert skipped.reason.startswith("It has fewer than 411 weights")


def test_a_compressed_one_is_known_as_such():
    _, rewritten = check_rewrite(lookup(), rows(), tables=True)
    layers, (skipped,) = with_tables(rewritten)
    assert not layers
    assert skipped.reason == "It is compressed already."


def test_columns_are_refused():
    model = parse(
        f"(int64[3] x) => (float[{ROWS},3] y) {{ [table] y = Gather<axis = 1>(w, x) }}", initializer("w", ROWS, COLUMNS)
    )
    _, (skipped,) = with_tables(model)
    assert skipped.reason == (
        "The table 'w' has shape [41, 10] and is looked up along axis 1; only rows of a matrix are compressed."
    )


@pytest.mark.parametrize(
    "table",
    [
        numpy_helper.from_array(np.zeros((ROWS, COLUMNS), np.int64), "w"),
        numpy_helper.from_array(np.zeros((5000, 1, 2), np.float32), "w"),
    ],
    ids=["integers", "no matrix"],
)
def test_other_constants_are_none(table: onnx.TensorProto):
    kind = "int64" if table.data_type == onnx.TensorProto.INT64 else "float"
    sizes = ",".join(map(str, table.dims[1:]))
    layers, _ = with_tables(parse(f"(int64[N] x) => ({kind}[N,{sizes}] y) {{ y = Gather(w, x) }}", table))
    assert not layers


def test_rows_that_are_constant_are_a_rearrangement():
    """What exporters cut out of a weight in this way is the weight of the MatMul."""
    index = numpy_helper.from_array(np.arange(COLUMNS), "index")
    model = parse(
        f"(float[N,{COLUMNS}] x) => (float[N,{OUT}] y) {{ t = Gather(w, index) [fc] y = MatMul(x, t) }}",
        initializer("w", ROWS, OUT),
        index,
    )
    (layer,), _ = with_tables(model)
    assert layer.op_type == "MatMul"

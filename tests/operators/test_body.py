"""The function body in stock onnxruntime, and in ONNX's own reference implementation."""

from pathlib import Path

import numpy as np
import onnx
import onnx.reference
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from pq_layers import (
    FLOAT_BUDGET,
    IR_VERSION,
    PQLayer,
    layers,
    lookup_model_of,
    model_of,
    normal_rows,
    random_layer,
)

from onnxpq.errors import ModelError
from onnxpq.operators.body import CAST_LIKE_OPSET, MIN_INTEGER_OPSET, MIN_OPSET, Dialect, function, functions
from onnxpq.operators.schema import INTEGER_OP_TYPE, LOOKUP_OP_TYPE, MAX_MAGNITUDE, OP_TYPE
from onnxpq.pq.reference import decode, pq_matmul

NEWEST_OPSET = 26  # of onnxruntime 1.32
OPSETS = range(MIN_OPSET, NEWEST_OPSET + 1)

LAYERS = {
    "nibbles": random_layer(1, 10, 33),
    "few codewords": random_layer(2, 33, 7, d=3, codewords=5, groups=2, stages=3),
    "bytes, shared": random_layer(3, 40, 64, d=8, codewords=256, groups=1, stages=2, codebook_type=np.float32),
    "bytes, half scales": random_layer(4, 17, 10, d=4, codewords=17, scale_type=np.float16),
    "int8": random_layer(5, 40, 30, d=4, codebook_type=np.int8),
    "int8, one codebook, nothing to cut": random_layer(6, 32, 32, codewords=64, groups=1, codebook_type=np.int8),
}


def session(model: onnx.ModelProto, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if optimized:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def skip_if_unknown(opset: int) -> None:
    """An older onnxruntime than the newest does not know the newest opsets."""
    nothing = helper.make_graph(
        [helper.make_node("Identity", ["X"], ["Y"])],
        "nothing",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [1])],
    )
    try:
        session(helper.make_model(nothing, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION))
    except (ort_errors.Fail, ort_errors.InvalidArgument) as error:
        pytest.skip(f"onnxruntime {onnxruntime.__version__} does not know opset {opset}: {error}")


def worst(layer: PQLayer, x: np.ndarray, y: np.ndarray) -> float:
    exact = pq_matmul(x, *layer.arguments)
    assert y.shape == exact.shape
    return float(np.max(abs(y - exact) / layer.magnitude(x), initial=0))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", LAYERS)
def test_equals_reference_in_every_opset(name: str, opset: int) -> None:
    skip_if_unknown(opset)
    layer = LAYERS[name]
    model = model_of(layer, opset=opset)
    onnx.checker.check_model(model, full_check=True)
    x = normal_rows(opset, 5, layer.in_features)
    (y,) = session(model).run(None, {"X": x})
    assert worst(layer, x, y) < FLOAT_BUDGET


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", LAYERS)
def test_weight_is_decoded_once_at_load(name: str, opset: int, tmp_path: Path) -> None:
    skip_if_unknown(opset)
    session(model_of(LAYERS[name], opset=opset), tmp_path / "optimized.onnx")
    left = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert left <= {"Gemm", "MatMul", "Add"}


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (2, 3), (2, 0), (2, 1, 3)], ids=str)
def test_x_of_any_rank(shape: tuple[int, ...]) -> None:
    layer = LAYERS["nibbles"]
    x = normal_rows(0, *shape, layer.in_features)
    model = model_of(layer, x_shape=[*[None for _ in shape], layer.in_features])
    (y,) = session(model).run(None, {"X": x})
    assert worst(layer, x, y) < FLOAT_BUDGET


@pytest.mark.parametrize("name", LAYERS)
def test_reference_implementation_agrees(name: str) -> None:
    layer = LAYERS[name]
    x = normal_rows(9, 2, layer.in_features)
    (y,) = onnx.reference.ReferenceEvaluator(model_of(layer, opset=18)).run(None, {"X": x})
    assert worst(layer, x, y) < FLOAT_BUDGET


@settings(max_examples=40, deadline=None)
@given(layers(st.integers(2, 256)), st.sampled_from([9, 10, 11, 12, 13, 18]))
def test_any_shape(layer: PQLayer, opset: int) -> None:
    x = normal_rows(opset, 3, layer.in_features)
    (y,) = session(model_of(layer, opset=opset)).run(None, {"X": x})
    assert worst(layer, x, y) < FLOAT_BUDGET


def test_budget_notices_two_percent() -> None:
    layer = LAYERS["nibbles"]
    x = normal_rows(0, 5, layer.in_features)
    assert worst(layer, x, 1.02 * pq_matmul(x, *layer.arguments)) > FLOAT_BUDGET


def test_old_opset_is_refused() -> None:
    with pytest.raises(ModelError, match="uses opset 8; the function body of onnxpq::PQMatMul needs opset 9 or newer"):
        function(OP_TYPE, Dialect(8, frozenset({1})))


MOST_STATEMENTS = {OP_TYPE: 26, INTEGER_OP_TYPE: 26, LOOKUP_OP_TYPE: 32}
"""Of a layer of one stage: a host may limit them, and 300 layers load in their number."""


@pytest.mark.parametrize("op_type", MOST_STATEMENTS)
def test_bodies_are_short_and_every_statement_has_a_name(op_type: str) -> None:
    made = functions([op_type], Dialect(17, frozenset({1, 2}), crops_rows=True))
    statements = [node for each in made for node in each]
    assert len(statements) <= MOST_STATEMENTS[op_type]
    for each in made:
        names = [node.name for node in each]
        assert all(names)
        assert len(set(names)) == len(names)


def dynamically_quantized(layer: PQLayer, x: np.ndarray) -> np.ndarray:
    """What the body in int8 means: X rounded to uint8 between the smallest and largest of it and zero."""
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = np.float32((high - low) / 255)
    zero = np.rint(np.clip(-low / scale, 0, 255))
    rounded = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * np.float64(scale)
    return pq_matmul(rounded, *layer.arguments)


INT8_BUDGET = 3e-5
"""Largest error of the body in int8 against the definition of its rounding, relative to the sum of the magnitudes."""

INT8_LAYERS = ["int8", "int8, one codebook, nothing to cut"]


@pytest.mark.parametrize("opset", range(MIN_INTEGER_OPSET, NEWEST_OPSET + 1))
@pytest.mark.parametrize("name", INT8_LAYERS)
def test_body_in_int8_is_one_fused_operator(name: str, opset: int, tmp_path: Path) -> None:
    skip_if_unknown(opset)
    layer = LAYERS[name]
    model = model_of(layer, opset=opset, op_type=INTEGER_OP_TYPE)
    onnx.checker.check_model(model, full_check=True)
    x = normal_rows(opset, 5, layer.in_features)
    (y,) = session(model, tmp_path / "optimized.onnx").run(None, {"X": x})
    exact, measure = dynamically_quantized(layer, x), layer.magnitude(x)
    assert np.max(abs(y - exact) / measure) < INT8_BUDGET
    assert np.max(abs(1.02 * y - exact) / measure) > INT8_BUDGET
    assert [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node] == ["DynamicQuantizeMatMul"]


@pytest.mark.parametrize("name", INT8_LAYERS)
def test_body_in_int8_takes_float16_and_any_rank(name: str) -> None:
    layer = LAYERS[name]
    x = normal_rows(3, 2, 3, layer.in_features).astype(np.float16)
    model = model_of(layer, x_type=TensorProto.FLOAT16, x_shape=["N", "T", layer.in_features], op_type=INTEGER_OP_TYPE)
    (y,) = session(model).run(None, {"X": x})
    assert y.dtype == np.float16
    exact = dynamically_quantized(layer, x.astype(np.float32))
    assert np.max(abs(y - exact) / layer.magnitude(x.astype(np.float32))) < FLOAT16_BUDGET


def test_largest_int8_codewords_do_not_saturate_without_vnni() -> None:
    """Processors without VNNI add two products of uint8 and int8 as int16, with saturation (x86's vpmaddubsw)."""
    largest_pair = 2 * 255 * MAX_MAGNITUDE
    assert largest_pair <= np.iinfo(np.int16).max
    assert np.iinfo(np.int16).max < 2 * 255 * (MAX_MAGNITUDE + 1)


def test_body_in_int8_needs_dynamic_quantize_linear() -> None:
    with pytest.raises(
        ModelError, match="opset 10; the function body of onnxpq::PQDynamicQuantizeMatMul needs opset 11"
    ):
        function(INTEGER_OP_TYPE, Dialect(10, frozenset({1})))


FLOAT16_BUDGET = 2**-10
"""Largest error of an output of float16, relative to the sum of the magnitudes: X and Y are rounded to 11 bits."""


@pytest.mark.parametrize("opset", range(CAST_LIKE_OPSET, NEWEST_OPSET + 1))
@pytest.mark.parametrize(("x_type", "budget"), [(np.float16, FLOAT16_BUDGET), (np.float32, FLOAT_BUDGET)])
def test_a_body_for_any_type_gives_back_that_of_x(opset: int, x_type: type, budget: float, tmp_path: Path) -> None:
    skip_if_unknown(opset)
    layer = LAYERS["nibbles"]
    model = model_of(layer, opset=opset, x_type=helper.np_dtype_to_tensor_dtype(np.dtype(x_type)))
    dialect = Dialect.of(opset, [layer.sizes], any_float=True)
    del model.functions[:]
    model.functions.extend(ir.to_proto(made) for made in functions([OP_TYPE], dialect))
    onnx.checker.check_model(model, full_check=True)
    x = normal_rows(opset, 5, layer.in_features).astype(x_type)
    (y,) = session(model, tmp_path / "optimized.onnx").run(None, {"X": x})
    assert y.dtype == x_type
    assert worst(layer, x.astype(np.float32), y) < budget
    assert worst(layer, x.astype(np.float32), 1.02 * y) > budget
    left = {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}
    assert left <= {"Gemm", "MatMul", "Add", "Cast"}, "the weight is decoded at load"


def test_a_body_for_any_type_needs_cast_like() -> None:
    with pytest.raises(ModelError, match="opset 14; the function body of onnxpq::PQMatMul needs opset 15 or newer"):
        function(OP_TYPE, Dialect(14, frozenset({1}), any_float=True))


def looked_up(table: PQLayer, rows: np.ndarray) -> np.ndarray:
    return decode(table.codebooks, table.codes, table.scales, table.in_features)[rows]


def worst_row(table: PQLayer, rows: np.ndarray, y: np.ndarray) -> float:
    exact = looked_up(table, rows)
    assert y.shape == exact.shape
    return float(np.max(abs(y - exact), initial=0) / np.max(abs(exact), initial=1e-30))


@pytest.mark.parametrize("opset", OPSETS)
@pytest.mark.parametrize("name", LAYERS)
def test_rows_of_a_table_equal_the_reference_in_every_opset(name: str, opset: int) -> None:
    skip_if_unknown(opset)
    table = LAYERS[name]
    model = lookup_model_of(table, opset=opset)
    onnx.checker.check_model(model, full_check=True)
    rows = np.arange(-len(table.scales), len(table.scales))  # all of them, from the end as well
    (y,) = session(model).run(None, {"rows": rows})
    assert y.dtype == np.float32
    assert worst_row(table, rows, y) < FLOAT_BUDGET
    assert worst_row(table, rows, 1.02 * y) > FLOAT_BUDGET


@pytest.mark.parametrize("shape", [(), (0,), (1,), (2, 3), (2, 0), (0, 2), (2, 1, 3)], ids=str)
@pytest.mark.parametrize("opset", [9, 17])
@pytest.mark.parametrize("rows_type", [np.int32, np.int64])
def test_rows_of_any_shape_and_type(shape: tuple[int, ...], opset: int, rows_type: type) -> None:
    table = LAYERS["few codewords"]
    rows = np.random.default_rng(0).integers(-33, 33, shape).astype(rows_type)
    model = lookup_model_of(
        table,
        opset=opset,
        rows_shape=[None for _ in shape],
        rows_type=helper.np_dtype_to_tensor_dtype(np.dtype(rows_type)),
    )
    (y,) = session(model).run(None, {"rows": rows})
    assert worst_row(table, rows, y) < FLOAT_BUDGET


@pytest.mark.parametrize("name", LAYERS)
def test_reference_implementation_agrees_on_rows(name: str) -> None:
    table = LAYERS[name]
    rows = np.array([[0, 9], [3, -1]])
    model = lookup_model_of(table, opset=18, rows_shape=[2, 2])
    (y,) = onnx.reference.ReferenceEvaluator(model).run(None, {"rows": rows})
    assert worst_row(table, rows, y) < FLOAT_BUDGET


@settings(max_examples=40, deadline=None)
@given(layers(st.integers(2, 256)), st.sampled_from([9, 10, 11, 12, 13, 18]), st.data())
def test_any_table(table: PQLayer, opset: int, data: st.DataObject) -> None:
    size = len(table.scales)
    rows = np.array(data.draw(st.lists(st.integers(-size, size - 1), max_size=5)), np.int64)
    (y,) = session(lookup_model_of(table, opset=opset)).run(None, {"rows": rows})
    assert worst_row(table, rows, y) < FLOAT_BUDGET


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("excess", [0, 1, 1000])
def test_a_row_that_there_is_not_is_an_error(name: str, excess: int) -> None:
    table = LAYERS[name]
    size = len(table.scales)
    opened = session(lookup_model_of(table))
    for row in (size + excess, -size - 1 - excess):
        with pytest.raises(ort_errors.InvalidArgument, match="out of"):
            opened.run(None, {"rows": np.array([0, row])})


def test_a_table_is_not_decoded_at_load(tmp_path: Path) -> None:
    """Memory holds the codes and what is looked up, not the table."""
    table = random_layer(0, 5000, 64, d=4, codewords=256, groups=1)
    session(lookup_model_of(table), tmp_path / "optimized.onnx")
    assert (tmp_path / "optimized.onnx").stat().st_size < 1.1 * sum(
        array.nbytes for array in table.constants().values()
    )


def test_an_old_opset_is_refused_for_tables() -> None:
    with pytest.raises(ModelError, match="uses opset 8; the function body of onnxpq::PQGather needs opset 9 or newer"):
        function(LOOKUP_OP_TYPE, Dialect(8, frozenset({1})))

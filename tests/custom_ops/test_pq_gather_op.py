"""The kernel of PQGather in real sessions: against its definition, against the function body, and on bad input."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from pq_layers import PQLayer, layers, lookup_model_of, random_layer

import onnxpq
from onnxpq.errors import DataError, ModelError
from onnxpq.pq.reference import decode, group_of
from onnxpq.runtime.sessions import run

pytestmark = pytest.mark.skipif(not onnxpq.library_available(), reason="onnxpq was built without a C++ compiler")

BODY_BUDGET = 1e-6
"""Largest difference to the function body, relative to the largest entry: its sums over stages may have another
order."""


def kernel(model: onnx.ModelProto, rows: np.ndarray, **options: Any) -> np.ndarray:
    """Y of the operator library; without the function body, nothing else could compute it."""
    return onnxpq.session(model, **options).run(None, {"rows": rows})[0]


def defined(table: PQLayer) -> np.ndarray:
    """The whole table, in float32 in the order of the definition."""
    out, stages, sub_vectors = table.codes.shape
    _, groups, _, d = table.codebooks.shape
    weight = np.zeros((out, sub_vectors * d), np.float32)
    for m in range(sub_vectors):
        for r in range(stages):
            codebook = table.codebooks[r, group_of(m, groups, sub_vectors)].astype(np.float32)
            weight[:, m * d : (m + 1) * d] += codebook[table.codes[:, r, m]]
    return weight[:, : table.in_features] * table.scales.astype(np.float32)[:, None]


def test_definition_by_hand() -> None:
    codebooks = np.array([[[[1, 10], [2, 20]]], [[[0, 0], [4, 40]]]], np.float16)  # R=2, G=1, d=2, K=2
    codes = np.array([[[0, 1], [1, 0]], [[1, 1], [0, 0]]], np.uint8)
    table = PQLayer(codebooks, codes, np.array([1, 3], np.float32), np.zeros(2, np.float32), 3)
    rows = np.array([[1], [0]])
    expected = np.array([[[6, 60, 6]], [[5, 50, 2]]], np.float32)
    np.testing.assert_array_equal(kernel(lookup_model_of(table, rows_shape=[2, 1], with_body=False), rows), expected)
    np.testing.assert_array_equal(defined(table)[rows], expected)


@settings(max_examples=150, deadline=None)
@given(layers(st.integers(2, 256), max_in=60), st.lists(st.integers(0, 4), max_size=3), st.booleans(), st.data())
def test_kernel_equals_its_definition_bit_for_bit(
    table: PQLayer, shape: list[int], short: bool, data: st.DataObject
) -> None:
    size, count = len(table.scales), int(np.prod(shape))
    numbers = data.draw(st.lists(st.integers(-size, size - 1), min_size=count, max_size=count))
    rows = np.array(numbers, np.int32 if short else np.int64).reshape(shape)
    rows_type = TensorProto.INT32 if short else TensorProto.INT64
    model = lookup_model_of(table, rows_shape=list(shape), rows_type=rows_type, with_body=False)
    y = kernel(model, rows)
    assert (y.dtype, y.shape) == (np.float32, (*shape, table.in_features))
    np.testing.assert_array_equal(y, defined(table)[rows])


TABLES = {
    "K=16": random_layer(1, 1000, 384),
    "K=256": random_layer(2, 1000, 384, codewords=256, groups=1),
    "not divisible, stages, groups": random_layer(3, 1041, 101, d=5, codewords=13, groups=4, stages=3),
    "bytes, stages": random_layer(4, 301, 99, d=2, codewords=100, stages=2, scale_type=np.float16),
}


@pytest.mark.parametrize("name", TABLES)
def test_kernel_and_function_body_agree(name: str) -> None:
    table = TABLES[name]
    rows = np.random.default_rng(0).integers(-len(table.scales), len(table.scales), (40, 50))
    model = lookup_model_of(table, rows_shape=["N", "T"])
    native = kernel(model, rows)
    body = onnxpq.session(model, use_library=False).run(None, {"rows": rows})[0]
    assert np.abs(native - body).max() <= BODY_BUDGET * np.abs(body).max()
    exact = decode(table.codebooks, table.codes, table.scales, table.in_features)[rows]
    assert np.abs(native - exact).max() <= BODY_BUDGET * np.abs(exact).max()


@pytest.mark.parametrize("name", TABLES)
def test_threads_change_no_bit(name: str) -> None:
    table = TABLES[name]
    rows = np.random.default_rng(1).integers(0, len(table.scales), 3000)
    model, expected = lookup_model_of(table, with_body=False), defined(table)[rows]
    for threads in (1, 2, 4):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxpq.session(model, options=options)
        with ThreadPoolExecutor(4) as pool:
            for y in pool.map(lambda _, s=session: s.run(None, {"rows": rows})[0], range(8)):
                np.testing.assert_array_equal(y, expected)


def test_no_rows() -> None:
    table = TABLES["K=16"]
    assert kernel(lookup_model_of(table, with_body=False), np.zeros(0, np.int64)).shape == (0, 384)


@pytest.mark.parametrize("row", [1000, -1001, 2**62, -(2**63)])
def test_a_row_that_there_is_not_is_an_error(row: int) -> None:
    session = onnxpq.session(lookup_model_of(TABLES["K=16"], with_body=False))
    message = f"node 'table': input 'rows' holds {row} in place 2; expected -1000 to 999, as the table has 1000 rows"
    with pytest.raises((ModelError, DataError), match=message):
        run(session, {"rows": np.array([0, 1, row])})
    assert run(session, {"rows": np.array([999])})["Y"].shape == (1, 384)


@pytest.mark.parametrize("columns", [380, 385, -1, None, 1.0, "384"])
def test_columns_are_checked(columns: int | float | str | None) -> None:
    model = lookup_model_of(TABLES["K=16"], with_body=False)
    (attribute,) = (a for a in model.graph.node[0].attribute if a.name == "columns")
    model.graph.node[0].attribute.remove(attribute)
    if columns is not None:
        model.graph.node[0].attribute.append(helper.make_attribute("columns", columns))
    found = f"is {columns}; expected 381 to 384" if isinstance(columns, int) else "is missing, or no integer"
    with pytest.raises(ModelError, match=f"node 'table': attribute 'columns' {found}"):
        onnxpq.session(model)


@pytest.mark.parametrize(
    ("name", "replacement", "message"),
    [
        ("codes", np.zeros((32, 96, 15), np.uint8), "input 'codes' has shape"),
        ("codebooks", np.zeros((1, 97, 16, 4), np.float16), "97 groups; expected at most one for each of the 96"),
        ("codebooks", np.zeros((1, 96, 16, 4), np.float64), "input 'codebooks' is of another type"),
        ("scales", np.zeros((1000, 1), np.float32), "input 'scales' has shape"),
    ],
)
def test_constants_are_checked(name: str, replacement: np.ndarray, message: str) -> None:
    model = lookup_model_of(TABLES["K=16"], constants={name: replacement}, with_body=False)
    with pytest.raises(ModelError, match=f"onnxpq::PQGather node 'table': .*{message}"):
        onnxpq.session(model)


def damaged(array: np.ndarray, data: st.DataObject) -> np.ndarray:
    """Another type, another rank, or fewer entries along an axis."""
    kind = data.draw(st.sampled_from(["type", "flat", "axis", "short"]))
    if kind == "type":
        return array.astype(data.draw(st.sampled_from([np.int8, np.uint8, np.float16, np.float32, np.float64])))
    if kind == "flat":
        return array.reshape(-1)
    axis = data.draw(st.integers(0, array.ndim - 1))
    if kind == "axis":
        return np.expand_dims(array, axis)
    return array.take(range(data.draw(st.integers(0, array.shape[axis]))), axis)


@settings(max_examples=200, deadline=None)
@given(layers(st.integers(2, 256)), st.sampled_from(["codebooks", "codes", "scales"]), st.data())
def test_damaged_constants_are_refused_or_give_rows(table: PQLayer, name: str, data: st.DataObject) -> None:
    """What is wrong is for the sanitizers to see (custom_ops/tests/sanitize.sh), and which sentence for the fuzzer."""
    changed = {name: damaged(table.constants()[name], data)}
    refusal = ""
    try:
        session = onnxpq.session(lookup_model_of(table, constants=changed, with_body=False))
    except ModelError as error:
        refusal = str(error)
    if refusal:
        assert "PQGather" in refusal
        return
    size = len(changed.get("scales", table.scales))
    rows = np.array([0, size - 1, -size])
    y = session.run(None, {"rows": rows})[0]
    assert y.shape == (3, table.in_features)
    np.testing.assert_array_equal(y[0], y[2])


def test_code_past_the_codebook_is_refused() -> None:
    table = random_layer(1, 40, 33, codewords=13)
    codes = table.constants()["codes"].copy()
    codes[0, 0, 3] = 0xD0
    with pytest.raises(ModelError, match="holds the code 13 in byte 3, past the end of its codebook"):
        onnxpq.session(lookup_model_of(table, constants={"codes": codes}, with_body=False))


@pytest.mark.parametrize("name", ["codebooks", "codes", "scales"])
def test_constants_must_be_constant(name: str) -> None:
    model = lookup_model_of(TABLES["K=16"], as_inputs=(name,), with_body=False)
    with pytest.raises(ModelError, match=f"PQGather node 'table': input '{name}' is computed when the model runs"):
        onnxpq.session(model)


def test_rows_of_another_type_are_refused() -> None:
    model = lookup_model_of(TABLES["K=16"], rows_type=TensorProto.INT16, with_body=False)
    with pytest.raises(ModelError, match=r"PQGather"):
        onnxpq.session(model)


def test_shapes_after_it_are_known(tmp_path: Any) -> None:
    model = lookup_model_of(TABLES["K=16"], rows_shape=["N", 7])
    model.graph.output[0].type.tensor_type.ClearField("shape")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    (output,) = onnxpq.session(model, options=options).get_outputs()
    assert output.shape == ["N", 7, 384]

"""The operator library in real sessions: against the reference, against the function body, and on bad input."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper
from pq_layers import FLOAT_BUDGET, PQLayer, layers, model_of, normal_rows, random_layer, rms

import onnxpq
from onnxpq.errors import DataError, ModelError
from onnxpq.pq.reference import TABLE_GROUP, pq_matmul, pq_matmul_tables

TABLE_BUDGET = 4e-3
"""Error of y through the tables, relative to the rms of y."""

FAST_BUDGET = 0.018
"""The same through fast tables."""

pytestmark = pytest.mark.skipif(not onnxpq.library_available(), reason="onnxpq was built without a C++ compiler")


def kernel(model: onnx.ModelProto, x: np.ndarray, **options: Any) -> np.ndarray:
    """Y of the operator library; without the function body, nothing else could compute it."""
    return onnxpq.session(model, **options).run(None, {"X": x})[0]


@settings(max_examples=100, deadline=None)
@given(layers(st.integers(2, 16), max_in=200), st.lists(st.integers(0, 4), max_size=3))
def test_nibble_kernel_equals_its_definition_bit_for_bit(layer: PQLayer, leading: list[int]) -> None:
    x = normal_rows(1, *leading, layer.in_features)
    model = model_of(layer, x_shape=[*leading, layer.in_features], with_body=False)
    np.testing.assert_array_equal(kernel(model, x), pq_matmul_tables(x, *layer.arguments))


@settings(max_examples=100, deadline=None)
@given(layers(st.integers(2, 16), max_in=200), st.lists(st.integers(0, 4), max_size=3), st.booleans())
def test_fast_nibble_kernel_equals_its_definition_bit_for_bit(layer: PQLayer, leading: list[int], fast: bool) -> None:
    x = normal_rows(1, *leading, layer.in_features)
    model = model_of(layer, x_shape=[*leading, layer.in_features], with_body=False, fast=fast)
    np.testing.assert_array_equal(kernel(model, x), pq_matmul_tables(x, *layer.arguments, fast=fast))


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("stages", [1, 2])
def test_extreme_sums_do_not_overflow(stages: int, fast: bool) -> None:
    # Every sub-vector of output 0 takes its largest entry, of output 1 the smallest: what 15 and 16 bits must hold.
    layer = random_layer(3, 40, 4 * 3 * TABLE_GROUP + 4, groups=1, stages=stages)
    x = np.tile(normal_rows(4, 1, 4), 3 * TABLE_GROUP + 1)
    for stage in range(stages):
        table = layer.codebooks[stage, 0].astype(np.float32) @ x[0, :4]
        layer.codes[0, stage], layer.codes[1, stage] = table.argmax(), table.argmin()
    y = kernel(model_of(layer, fast=fast), x)
    np.testing.assert_array_equal(y, pq_matmul_tables(x, *layer.arguments, fast=fast))
    exact = pq_matmul(x, *layer.arguments)
    assert rms((y - exact)[:, :2]) < (FAST_BUDGET if fast else TABLE_BUDGET) * rms(exact[:, :2])


@settings(max_examples=60, deadline=None)
@given(layers(st.integers(2, 40), max_in=100), st.lists(st.integers(0, 40), max_size=2))
def test_float16_rows_are_rounded_and_nothing_else(layer: PQLayer, leading: list[int]) -> None:
    x = normal_rows(1, *leading, layer.in_features).astype(np.float16)
    shape: list[str | int | None] = [*leading, layer.in_features]
    half = kernel(model_of(layer, x_shape=shape, with_body=False, x_type=TensorProto.FLOAT16), x)
    wide = kernel(model_of(layer, x_shape=shape, with_body=False), x.astype(np.float32))
    assert half.dtype == np.float16
    np.testing.assert_array_equal(half, wide.astype(np.float16))


def test_large_float16_batch_is_cut_into_tiles() -> None:
    layer = random_layer(1, 700, 1500)
    x = normal_rows(2, 300, 1500).astype(np.float16)
    half = kernel(model_of(layer, with_body=False, x_type=TensorProto.FLOAT16), x)
    wide = kernel(model_of(layer, with_body=False), x.astype(np.float32))
    np.testing.assert_array_equal(half, wide.astype(np.float16))


def test_other_types_of_x_are_refused() -> None:
    model = model_of(random_layer(1, 40, 33), with_body=False, x_type=TensorProto.DOUBLE)
    with pytest.raises(ModelError, match=r"tensor\(double\)' of input parameter \(X\) of operator \(PQMatMul\)"):
        onnxpq.session(model)


def test_fast_attribute_is_checked() -> None:
    wide = model_of(random_layer(1, 40, 33, codewords=17), with_body=False, fast=True)
    with pytest.raises(ModelError, match="node 'fc': attribute 'fast' is 1 with 17 codewords; expected 0 where"):
        onnxpq.session(wide)
    layer = random_layer(1, 40, 33)
    model = model_of(layer, with_body=False, fast=True)
    (fast,) = (attribute for attribute in model.graph.node[0].attribute if attribute.name == "fast")
    fast.i = 2
    with pytest.raises(ModelError, match="node 'fc': attribute 'fast' is 2; expected 0 or 1"):
        onnxpq.session(model)
    for value in (1.0, "1", [1]):
        fast.CopyFrom(helper.make_attribute("fast", value))
        with pytest.raises(ModelError, match="node 'fc': attribute 'fast' is no integer; expected 0 or 1"):
            onnxpq.session(model)
    model.graph.node[0].attribute.remove(fast)
    x = normal_rows(0, 2, 33)
    np.testing.assert_array_equal(kernel(model, x), pq_matmul_tables(x, *layer.arguments))


@settings(max_examples=60, deadline=None)
@given(layers(st.integers(17, 256)), st.lists(st.integers(0, 4), max_size=3))
def test_byte_kernel_equals_reference(layer: PQLayer, leading: list[int]) -> None:
    x = normal_rows(1, *leading, layer.in_features)
    y = kernel(model_of(layer, x_shape=[*leading, layer.in_features], with_body=False), x)
    exact = pq_matmul(x, *layer.arguments)
    assert y.shape == exact.shape
    assert np.all(abs(y - exact) <= FLOAT_BUDGET * layer.magnitude(x))


LARGE = {
    "classic": random_layer(1, 500, 800),
    "not divisible": random_layer(2, 1041, 1041, d=5, codewords=13),
    "wide, shared": random_layer(3, 6625, 120, groups=1),
    "two stages": random_layer(4, 300, 784, d=8, stages=2),
    "bytes": random_layer(5, 300, 512, d=8, codewords=256),
    "bytes, shared": random_layer(6, 100, 99, d=2, codewords=100, groups=1),
}


@pytest.mark.parametrize("rows", [1, 2, 65])
@pytest.mark.parametrize("name", LARGE)
def test_kernel_and_function_body_agree(name: str, rows: int) -> None:
    layer = LARGE[name]
    x = normal_rows(rows, rows, layer.in_features)
    model = model_of(layer)
    native = onnxpq.session(model).run(None, {"X": x})[0]
    body = onnxpq.session(model, use_library=False).run(None, {"X": x})[0]
    assert rms(native - body) < TABLE_BUDGET * rms(body)


@pytest.mark.parametrize(("fast", "budget"), [(False, TABLE_BUDGET), (True, FAST_BUDGET)])
def test_table_budgets_hold_and_notice_two_percent(fast: bool, budget: float) -> None:
    layer = LARGE["classic"]
    x = normal_rows(0, 4, layer.in_features)
    exact = pq_matmul(x, *layer.arguments)
    y = kernel(model_of(layer, fast=fast), x)
    assert rms(y - exact) < budget * rms(exact)
    assert rms(1.02 * y - exact) > budget * rms(exact)


@pytest.mark.parametrize("name", ["classic", "bytes"])
def test_row_does_not_depend_on_its_batch(name: str) -> None:
    layer = LARGE[name]
    x = normal_rows(0, 130, layer.in_features)
    session = onnxpq.session(model_of(layer))
    together = session.run(None, {"X": x})[0]
    for row in (0, 1, 64, 129):
        np.testing.assert_array_equal(session.run(None, {"X": x[row : row + 1]})[0], together[row : row + 1])


@pytest.mark.parametrize("name", ["classic", "bytes"])
def test_one_session_in_eight_threads_gives_the_same_bits(name: str) -> None:
    layer = LARGE[name]
    batches = [normal_rows(seed, 1 + seed % 5, layer.in_features) for seed in range(32)]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxpq.session(model_of(layer), options=options)
    alone = [session.run(None, {"X": x})[0] for x in batches]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda x: session.run(None, {"X": x})[0], batches))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["classic", "bytes"])
def test_value_that_is_not_finite_stays_in_its_row_and_shows(name: str, value: float) -> None:
    layer = LARGE[name]
    x = normal_rows(0, 3, layer.in_features)
    before = kernel(model_of(layer), x)
    x[1, 77] = value
    after = kernel(model_of(layer), x)
    assert not np.isfinite(after[1]).any()
    np.testing.assert_array_equal(after[[0, 2]], before[[0, 2]])


@pytest.mark.parametrize(
    ("x_shape", "y_shape"),
    [
        (["N", 33], ["N", 10]),
        (["N", "T", 33], ["N", "T", 10]),
        (["N", "features"], ["N", 10]),
        ([7, 33], [7, 10]),
        # onnxruntime cannot pass on a size without name: see infer_shape in pq_matmul_op.cpp.
        ([None, 33], []),
    ],
    ids=str,
)
def test_shape_inference_keeps_symbolic_sizes(x_shape: list[Any], y_shape: list[Any]) -> None:
    model = model_of(random_layer(1, 10, 33), x_shape=x_shape)
    model.graph.node.append(helper.make_node("Relu", ["Y"], ["Z"]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("Z", TensorProto.FLOAT, None))
    assert onnxpq.session(model).get_outputs()[0].shape == y_shape


def test_size_without_a_name_does_not_disturb_later_nodes() -> None:
    layer = random_layer(1, 10, 33)
    model = model_of(layer, x_shape=[None, 33])
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((4, 10), np.float32), "ones"))
    model.graph.node.append(helper.make_node("Add", ["Y", "ones"], ["Z"]))
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("Z", TensorProto.FLOAT, None))
    assert kernel(model, normal_rows(0, 4, 33)).shape == (4, 10)


NIBBLES = random_layer(1, 40, 33)  # M = 9, codes [2, 9, 16]
FEW = random_layer(2, 17, 6, d=3, codewords=20, groups=1, stages=2)  # M = 2, codes [2, 4, 16]


def f32(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def u8(*shape: int, fill: int = 0) -> np.ndarray:
    return np.full(shape, fill, np.uint8)


@pytest.mark.parametrize(
    ("layer", "constants", "message"),
    [
        (NIBBLES, {"codebooks": f32(9, 16, 4)}, "input 'codebooks' has shape [9, 16, 4]; expected [R, G, K, d]"),
        (NIBBLES, {"codebooks": f32(1, 9, 16, 0)}, "input 'codebooks' has shape [1, 9, 16, 0]; expected [R, G, K, d]"),
        (NIBBLES, {"codebooks": f32(1, 9, 257, 4)}, "has shape [1, 9, 257, 4], 257 codewords; expected 2 to 256."),
        (NIBBLES, {"codebooks": f32(1, 9, 1, 4)}, "has shape [1, 9, 1, 4], 1 codewords; expected 2 to 256."),
        (NIBBLES, {"codebooks": f32(1, 10, 16, 4)}, "10 groups; expected at most one for each of the 9 sub-vectors"),
        (NIBBLES, {"codebooks": f32(1, 9, 16, 4).astype(np.float64)}, "input 'codebooks' is of another type; expected"),
        (NIBBLES, {"codes": u8(9, 16)}, "input 'codes' has shape [9, 16]; expected [B, R*M, 16], no size zero."),
        (NIBBLES, {"codes": u8(2, 0, 16)}, "input 'codes' has shape [2, 0, 16]; expected [B, R*M, 16], no size zero."),
        (NIBBLES, {"codes": u8(2, 9, 8)}, "input 'codes' has shape [2, 9, 8]; expected [2, a multiple of 1, 16]"),
        (NIBBLES, {"codes": u8(3, 9, 16)}, "has shape [3, 9, 16]; expected [2, a multiple of 1, 16] for 40 outputs"),
        (
            FEW,
            {"codes": u8(2, 3, 16)},
            "expected [2, a multiple of 2, 16] for 17 outputs (the size of 'scales'), 20 code",
        ),
        (FEW, {"codes": u8(2, 4, 16, fill=20)}, "holds the code 20 in byte 0, past the end of its codebook; expected"),
        (NIBBLES, {"codebooks": f32(1, 9, 5, 4), "codes": u8(2, 9, 16, fill=0x51)}, "holds the code 5 in byte 0, past"),
        (NIBBLES, {"scales": f32(40, 1)}, "input 'scales' has shape [40, 1]; expected [out], no size zero."),
        (NIBBLES, {"scales": f32(0)}, "input 'scales' has shape [0]; expected [out], no size zero."),
        (
            NIBBLES,
            {"scales": f32(40).astype(np.int32)},
            "input 'scales' is of another type; expected float16 or float32",
        ),
        (NIBBLES, {"bias": f32(39)}, "input 'bias' has shape [39]; expected [40], the shape of 'scales'."),
        (
            NIBBLES,
            {"bias": f32(40).astype(np.float64)},
            "input 'bias' is of another type; expected float16 or float32.",
        ),
    ],
)
def test_bad_constant_is_refused_with_a_sentence(layer: PQLayer, constants: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=re.escape(message)) as refusal:
        onnxpq.session(model_of(layer, constants=constants, with_body=False))
    assert "onnxpq::PQMatMul node 'fc'" in str(refusal.value)


@pytest.mark.parametrize("name", ["codebooks", "codes", "scales", "bias"])
def test_constant_that_is_an_input_is_refused_with_a_sentence(name: str) -> None:
    message = f"onnxpq::PQMatMul node 'fc': input '{name}' is computed when the model runs, or may be replaced"
    with pytest.raises(ModelError, match=re.escape(message)):
        onnxpq.session(model_of(NIBBLES, as_inputs=(name,)))


def test_codes_of_another_type_are_refused() -> None:
    signed = NIBBLES.constants()["codes"].view(np.int8)
    with pytest.raises(ModelError, match=r"Type 'tensor\(int8\)' of input parameter \(codes\).*\(fc\) is invalid"):
        onnxpq.session(model_of(NIBBLES, constants={"codes": signed}, with_body=False))


@pytest.mark.parametrize("shape", [(3, 32), (3, 37), (3, 0), ()], ids=str)
def test_x_that_does_not_fit_is_refused_with_a_sentence(shape: tuple[int, ...]) -> None:
    session = onnxpq.session(model_of(NIBBLES, x_shape=[f"size_{i}" for i in range(len(shape))]))
    message = (
        f"onnxpq::PQMatMul node 'fc': input 'X' has shape {list(shape)}; expected [..., in] with in from 33 to 36,"
        " as the codes and codebooks have it."
    )
    with pytest.raises(DataError, match=re.escape(message)):
        onnxpq.runtime.run(session, {"X": np.ones(shape, np.float32)})


def in_other_process(simd: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The kernel's level is chosen once a process."""
    script = (
        "import numpy as np, onnxpq, sys; from pq_layers import *\n"
        "layer = random_layer(1, 100, 70)\n"
        "y = onnxpq.session(model_of(layer)).run(None, {'X': normal_rows(2, 5, 70)})[0]\n"
        "sys.stdout.write(y.tobytes().hex())"
    )
    # Other tests add folders to sys.path, the repository's root too, where the package has no operator library.
    paths = (Path(__file__).parents[1], Path(onnxpq.__file__).parents[1])
    environment = {**os.environ, "ONNXPQ_SIMD": simd, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return subprocess.run(
        [sys.executable, "-c", script], env=environment, cwd=folder, capture_output=True, text=True, check=False
    )


def test_level_is_chosen_by_the_environment_and_all_give_the_same_bits(tmp_path: Path) -> None:
    layer = random_layer(1, 100, 70)
    expected = kernel(model_of(layer), normal_rows(2, 5, 70)).tobytes().hex()
    forced = in_other_process("scalar", tmp_path)
    assert forced.returncode == 0, forced.stderr
    assert forced.stdout == expected


def test_unknown_level_is_refused_with_a_sentence(tmp_path: Path) -> None:
    result = in_other_process("sse9", tmp_path)
    assert result.returncode != 0
    assert "RuntimeLibraryError" in result.stderr
    assert "ONNXPQ_SIMD is 'sse9'; this library on this processor has: scalar" in result.stderr

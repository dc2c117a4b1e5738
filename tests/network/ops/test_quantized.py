import numpy as np
import pytest
import torch
from node_check import Case, assert_all_covered, cases_of_versions, check, normal, positive

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops import quantized
from onnxpq.network.ops.quantized import quantize_linear

SCALE = np.float32(0.05)
SCALES = np.array([0.02, 0.05, 0.1], dtype=np.float32)
POINT = np.uint8(100)
POINTS = np.array([10, 100, 200], dtype=np.uint8)
NEW = (21, 23, 24, 25, 28)
PER_AXIS = (13, 19, *NEW)
rng = np.random.default_rng(1)
BIAS = rng.integers(-500, 500, 3, dtype=np.int32)


def u8(*shape):
    return rng.integers(0, 256, shape, dtype=np.uint8)


def i8(*shape):
    # onnxruntime's products of uint8 and int8 overflow 16 bits for larger ones on CPUs without VNNI.
    return rng.integers(-60, 60, shape, dtype=np.int8)


def fixed(op_type, inputs, attributes=None, versions=None, outputs=1):
    return Case(op_type, inputs, attributes or {}, versions, outputs, differentiable=False)


CASES = [
    fixed("QuantizeLinear", [8 * normal(4, 3), SCALE, POINT]),
    fixed("QuantizeLinear", [8 * normal(4, 3), SCALE]),
    fixed("QuantizeLinear", [8 * normal(4, 3), SCALE, np.int8(-7)]),
    fixed("QuantizeLinear", [8 * normal(4, 3, 2), SCALES, POINTS], versions=PER_AXIS),
    fixed("QuantizeLinear", [8 * normal(4, 3), SCALES, POINTS], {"axis": -1}, versions=PER_AXIS),
    fixed("QuantizeLinear", [8 * normal(2, 6), positive(2, 3) / 9, u8(2, 3)], {"block_size": 2}, versions=NEW),
    Case("DequantizeLinear", [u8(4, 3), SCALE, POINT]),
    Case("DequantizeLinear", [i8(4, 3), SCALE]),
    Case("DequantizeLinear", [rng.integers(-(2**30), 2**30, (2, 3), dtype=np.int32), SCALE]),
    Case("DequantizeLinear", [u8(4, 3, 2), SCALES, POINTS], versions=PER_AXIS),
    Case("DequantizeLinear", [u8(3, 4), SCALES, POINTS], {"axis": 0}, versions=PER_AXIS),
    Case("DequantizeLinear", [i8(6, 2), positive(3, 2), i8(3, 2)], {"axis": 0, "block_size": 2}, versions=NEW),
    fixed("DynamicQuantizeLinear", [normal(4, 5)], outputs=3),
    fixed("DynamicQuantizeLinear", [1 + positive(4, 5)], outputs=3),
    fixed("MatMulInteger", [u8(2, 3), u8(3, 4), POINT, np.uint8(7)]),
    fixed("MatMulInteger", [u8(2, 3), i8(3, 4)]),
    fixed("QLinearMatMul", [u8(2, 3), SCALE, POINT, i8(3, 4), SCALE, np.int8(3), np.float32(0.9), np.uint8(128)]),
    fixed("ConvInteger", [u8(1, 2, 5, 5), u8(3, 2, 3, 3), POINT, np.uint8(7)], {"pads": [1, 1, 1, 1]}),
    fixed(
        "QLinearConv",
        [
            u8(1, 2, 5, 5),
            SCALE,
            POINT,
            i8(3, 2, 3, 3),
            SCALES,
            np.zeros(3, np.int8),
            np.float32(0.9),
            np.uint8(128),
            BIAS,
        ],
        {"strides": [2, 2]},
    ),
]


@pytest.mark.parametrize(("case", "version"), cases_of_versions(CASES), ids=str)
def test_quantized(case, version):
    check(case, version)


def test_every_operator_and_version_has_a_case():
    assert_all_covered(quantized, CASES)


def test_quantizing_to_another_type_is_refused():
    with pytest.raises(UnsupportedOperatorError, match=r"QuantizeLinear to torch.int64 is not supported"):
        quantize_linear(torch.ones(2), torch.tensor(1.0), torch.tensor(0))

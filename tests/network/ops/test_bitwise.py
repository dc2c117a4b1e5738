import numpy as np
import onnx_ir as ir
import pytest
import torch
from node_check import Case, assert_all_covered, cases_of_versions, check, single_node_model

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.module import Network
from onnxpq.network.ops import bitwise
from onnxpq.network.ops.bitwise import bit_shift

A = np.array([[1, -7, 12], [100, 5, 0]], dtype=np.int32)
B = np.array([3, 6, -1], dtype=np.int32)
BYTES = np.array([1, 77, 200], dtype=np.uint8)
COUNTS = np.array([1, 0, 3], dtype=np.uint8)

CASES = [
    *[Case(op, [A, B]) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor")],
    Case("BitwiseNot", [A]),
    Case("BitwiseNot", [BYTES]),
    Case("BitShift", [BYTES, COUNTS], {"direction": "LEFT"}),
    Case("BitShift", [BYTES, COUNTS], {"direction": "RIGHT"}),
]


@pytest.mark.parametrize(("case", "version"), cases_of_versions(CASES), ids=str)
def test_bitwise(case, version):
    check(case, version)


def test_every_operator_and_version_has_a_case():
    assert_all_covered(bitwise, CASES)


def test_an_unknown_direction_is_refused():
    with pytest.raises(UnsupportedOperatorError, match="direction 'UP'; expected LEFT or RIGHT"):
        bit_shift(torch.tensor(1), torch.tensor(1), direction="UP")


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32, np.uint64])
@pytest.mark.parametrize(("op_type", "attributes"), [("BitwiseNot", {}), ("BitShift", {"direction": "LEFT"})])
def test_wide_unsigned_integers_have_the_bits_of_their_type(op_type, attributes, dtype):
    x = np.array([0, 1, 2**15, 77], dtype)
    counts = [np.array([1, 2, 3, 4], dtype)] if op_type == "BitShift" else []
    model, feeds = single_node_model(Case(op_type, [x, *counts], attributes), 18 if op_type == "BitwiseNot" else 11)
    found = Network(ir.from_proto(model))({name: torch.from_numpy(array) for name, array in feeds.items()})
    expected = np.bitwise_not(x) if op_type == "BitwiseNot" else x << counts[0]
    assert found["y0"].numpy().astype(dtype).tolist() == expected.tolist()
    if dtype is not np.uint64:
        assert found["y0"].min() >= 0

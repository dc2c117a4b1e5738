import numpy as np
import pytest
import torch
from node_check import Case, assert_all_covered, cases_of_versions, check

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.ops import bitwise
from onnxpq.ops.bitwise import bit_shift

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

import numpy as np
import pytest
import torch
from node_check import Case, assert_all_covered, cases_of_versions, check, ints, normal, positive

from onnxpq.network.ops import math, registry
from onnxpq.network.ops.math import gemm

pytestmark = pytest.mark.rounding

SMALL_UNARY = ["Acos", "Asin", "Atanh", "Acosh"]
SMOOTH_UNARY = ["Abs", "Asinh", "Atan", "Cos", "Cosh", "Erf", "Exp", "Neg", "Sign", "Sin", "Sinh", "Tan"]
STEPS = ["Ceil", "Floor", "Round"]
INTS = np.array([[-7, 5, 9], [4, -3, 2]], dtype=np.int32)
DIVISORS = np.array([2, -3, 4], dtype=np.int32)
BOOLS = [np.array([[True], [False]]), np.array([True, False])]
SPECIAL = np.array([np.inf, -np.inf, np.nan, 0, 1], dtype=np.float32)

CASES = [
    *[Case(op, [(positive(2, 3) - 0.4) / 2 + (op == "Acosh")]) for op in SMALL_UNARY],
    *[Case(op, [normal(2, 3)]) for op in SMOOTH_UNARY],
    *[Case(op, [3 * normal(2, 3)], differentiable=False) for op in STEPS],
    *[Case(op, [positive(2, 3)]) for op in ("Log", "Sqrt", "Reciprocal")],
    Case("Round", [np.array([0.5, 1.5, 2.5, -0.5, -1.5], dtype=np.float32)], differentiable=False),
    Case("Det", [normal(2, 3, 3)]),
    Case("IsNaN", [SPECIAL]),
    Case("IsInf", [SPECIAL]),
    Case("IsInf", [SPECIAL], {"detect_negative": 0}),
    Case("IsInf", [SPECIAL], {"detect_positive": 0}),
    Case("Not", [BOOLS[0]]),
    *[Case(op, BOOLS) for op in ("And", "Or", "Xor")],
    *[Case(op, [normal(2, 1, 3), normal(4, 1)]) for op in ("Add", "Sub", "Mul", "Div")],
    Case("Div", [INTS, DIVISORS]),
    Case("Equal", [INTS, np.array([5], dtype=np.int32)]),
    *[Case(op, [normal(2, 3), normal(3)]) for op in ("Greater", "Less", "GreaterOrEqual", "LessOrEqual")],
    Case("Pow", [positive(2, 3), normal(3)]),
    Case("Pow", [normal(2, 3), ints(2)], versions=(12, 13, 15)),
    Case("Mod", [INTS, DIVISORS]),
    Case("Mod", [INTS, DIVISORS], {"fmod": 1}),
    Case("Mod", [normal(2, 3), positive(3)], {"fmod": 1}),
    *[Case(op, [normal(2, 3), normal(2, 3), normal(2, 3)]) for op in ("Max", "Min", "Sum", "Mean")],
    *[Case(op, [normal(2, 3), normal(3)], versions=(8, 13)) for op in ("Max", "Min", "Sum", "Mean")],
    Case("MatMul", [normal(2, 3), normal(3, 4)]),
    Case("MatMul", [normal(5, 2, 3), normal(3, 4)]),
    Case("MatMul", [normal(3), normal(2, 3, 4)]),
    Case("Gemm", [normal(2, 3), normal(3, 4), normal(4)]),
    Case("Gemm", [normal(3, 2), normal(4, 3), normal(2, 1)], {"transA": 1, "transB": 1, "alpha": 0.5, "beta": 2.0}),
    Case("Gemm", [normal(2, 3), normal(4, 3)], {"transB": 1}, versions=(11, 13)),
    Case("Gemm", [normal(2, 3), normal(3, 4), normal(4)], {"beta": 0.0}),
    Case("Clip", [normal(2, 3)], {"min": -0.5, "max": 0.5}, versions=(6,)),
    Case("Clip", [normal(2, 3)], versions=(6,)),
    Case("Clip", [normal(2, 3), np.float32(-0.5), np.float32(0.5)], versions=(11, 12, 13)),
    Case("Clip", [normal(2, 3), None, np.float32(0.5)], versions=(11, 12, 13)),
    Case("Clip", [normal(2, 3)], versions=(11, 12, 13)),
    Case("Where", [BOOLS[0], normal(2, 3), normal(3)]),
    Case("CumSum", [normal(2, 3), ints(1)]),
    Case("CumSum", [normal(2, 3), np.int64(-2)], {"exclusive": 1, "reverse": 1}),
    Case("CumProd", [normal(2, 3), np.int64(1)]),
    Case("CumProd", [np.array([2, 0, 3, 4], np.float32), np.int64(0)], {"exclusive": 1, "reverse": 1}),
    Case("Einsum", [normal(2, 3), normal(3, 4)], {"equation": "ij, jk -> ki"}),
]


@pytest.mark.parametrize(("case", "version"), cases_of_versions(CASES), ids=str)
def test_as_in_onnxruntime(case, version):
    check(case, version)


def test_every_claimed_version_is_tried():
    assert_all_covered(math, CASES)


def test_gemm_by_hand():
    a, b, c = torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0], [5.0, 6.0]]), torch.tensor([10.0, 20.0])
    assert gemm(a, b, c).tolist() == [[23.0, 36.0]]
    assert gemm(a, b, c, transB=1, alpha=2.0, beta=0.5).tolist() == [[27.0, 44.0]]


def test_a_gemm_that_is_off_by_two_percent_is_noticed(monkeypatch):
    monkeypatch.setitem(registry._built_in["", "Gemm"], 13, lambda a, b, c=None: 1.02 * gemm(a, b, c))
    with pytest.raises(AssertionError):
        check(Case("Gemm", [normal(2, 3), normal(3, 4)]), 13)

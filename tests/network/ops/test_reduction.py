import numpy as np
import pytest
import torch
from node_check import Case, assert_all_covered, cases_of_versions, check, ints, normal, positive

from onnxpq.network.ops import reduction, resolve

NAMES = ["Sum", "Mean", "Prod", "L1", "L2", "SumSquare", "Max", "Min", "LogSum", "LogSumExp"]
BY_ATTRIBUTE = dict.fromkeys(NAMES, (1, 11, 13)) | {"Sum": (1, 11), "Max": (1, 11, 12, 13), "Min": (1, 11, 12, 13)}
BY_INPUT = dict.fromkeys(NAMES, (18,)) | {
    "Sum": (13,),
    "Max": (18, 20),
    "Min": (18, 20),
    "LogSum": (18, 28),
    "LogSumExp": (18, 28),
}

CASES = [
    *[Case(f"Reduce{n}", [positive(2, 3, 4)], {"axes": [0, 2]}, BY_ATTRIBUTE[n]) for n in NAMES],
    *[Case(f"Reduce{n}", [positive(2, 3, 4)], {"keepdims": 0}, BY_ATTRIBUTE[n]) for n in NAMES],
    *[Case(f"Reduce{n}", [positive(2, 3, 4), ints(0, -1)], {"keepdims": 0}, BY_INPUT[n]) for n in NAMES],
    *[Case(f"Reduce{n}", [positive(2, 3, 4)], {}, BY_INPUT[n]) for n in NAMES],
    *[Case(f"Reduce{n}", [positive(2, 3)], {"noop_with_empty_axes": 1}, BY_INPUT[n][:1]) for n in ("Sum", "Max")],
    Case("ReduceSum", [np.arange(6, dtype=np.int32).reshape(2, 3), ints(1)], {}, (13,)),
    Case("ReduceMean", [np.array([[-7, 0], [4, 4]], dtype=np.int32), ints(1)], {}, (18,)),
    Case("ArgMax", [normal(3, 4)]),
    Case("ArgMax", [normal(3, 4)], {"axis": 1, "keepdims": 0}),
    Case("ArgMin", [normal(3, 4)]),
    Case("ArgMin", [normal(3, 4)], {"axis": -1, "keepdims": 0}, (11, 12, 13)),
    *[
        Case(op, [np.array([[1, 2, 2, 1, 1]], dtype=np.float32)], {"axis": 1, "select_last_index": last}, (12, 13))
        for op in ("ArgMax", "ArgMin")
        for last in (0, 1)
    ],
]


@pytest.mark.parametrize(("case", "version"), cases_of_versions(CASES), ids=str)
def test_as_in_onnxruntime(case, version):
    check(case, version)


def test_every_claimed_version_is_tried():
    assert_all_covered(reduction, CASES)


def test_gradient_of_a_norm_at_zero_is_finite():
    x = torch.zeros(1, 3, requires_grad=True)
    resolve("", "ReduceL2", 18, "norm")(x).sum().backward()
    assert torch.isfinite(x.grad).all()

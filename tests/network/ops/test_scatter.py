import numpy as np
import pytest
import torch
from node_check import Case, assert_all_covered, cases_of_versions, check, ints, normal

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops import scatter
from onnxpq.network.ops.scatter import reverse_sequence, scatter_elements

AT = np.array([[0, 2, 1], [1, -1, 0]], dtype=np.int64)
PAIRS = np.array([[[0, 1]], [[-1, 0]]], dtype=np.int64)
REDUCING = (16, 18)
MASK = np.array([True, False, True])
REPEATED = np.array([3, 1, 3, 2, 1], dtype=np.float32)

CASES = [
    Case("Scatter", [normal(3, 3), AT, normal(2, 3)], versions=(9,)),
    Case("ScatterElements", [normal(3, 3), AT, normal(2, 3)]),
    Case("ScatterElements", [normal(3, 3), AT, normal(2, 3)], {"axis": -1}),
    Case("ScatterElements", [normal(3, 3), AT % 2, normal(2, 3)], {"reduction": "add"}, REDUCING),
    Case("ScatterElements", [normal(3, 3), AT, normal(2, 3)], {"reduction": "mul"}, REDUCING),
    *[Case("ScatterElements", [normal(3, 3), AT, normal(2, 3)], {"reduction": r}, (18,)) for r in ("max", "min")],
    Case("ScatterND", [normal(2, 3, 4), PAIRS, normal(2, 1, 4)]),
    Case("ScatterND", [normal(5), ints(1, -2).reshape(2, 1), normal(2)]),
    Case("ScatterND", [normal(5, 2), ints(1, 1).reshape(2, 1), normal(2, 2)], {"reduction": "add"}, REDUCING),
    Case("ScatterND", [normal(5, 2), ints(1, 3).reshape(2, 1), normal(2, 2)], {"reduction": "mul"}, REDUCING),
    *[Case("ScatterND", [normal(2, 3, 4), PAIRS, normal(2, 1, 4)], {"reduction": r}, (18,)) for r in ("max", "min")],
    Case("TensorScatter", [normal(2, 4, 3), normal(2, 2, 3), ints(1, 2)]),
    Case("TensorScatter", [normal(2, 1, 4, 3), normal(2, 1, 2, 3), ints(3, 1)], {"mode": "circular"}),
    Case("OneHot", [ints(1, -1, 7), np.int64(4), np.array([0.5, 2], np.float32)], differentiable=False),
    Case("OneHot", [AT, np.int64(3), np.array([0, 1], np.int64)], {"axis": 1}),
    Case("NonZero", [np.array([[1, 0], [2, 3]], np.float32)], differentiable=False),
    Case("Compress", [normal(3, 2), MASK], {"axis": 0}),
    Case("Compress", [normal(2, 2), MASK]),
    Case("EyeLike", [normal(3, 4)], {"k": 1}, differentiable=False),
    Case("EyeLike", [normal(3, 3)], {"k": -1, "dtype": 7}),
    Case("ReverseSequence", [normal(4, 3, 2), ints(4, 1, 2)]),
    Case("ReverseSequence", [normal(3, 4), ints(4, 1, 2)], {"batch_axis": 0, "time_axis": 1}),
    Case("Unique", [REPEATED], outputs=4, differentiable=False),
    Case("Unique", [REPEATED], {"sorted": 0}, outputs=4, differentiable=False),
    Case("Unique", [np.array([[1, 2], [0, 3], [1, 2]], np.float32)], {"axis": 0}, outputs=4, differentiable=False),
]


@pytest.mark.parametrize(("case", "version"), cases_of_versions(CASES), ids=str)
def test_scatter(case, version):
    check(case, version)


def test_every_operator_and_version_has_a_case():
    # Scatter-11 is deprecated: ONNX's checker takes no such node.
    assert_all_covered(scatter, [*CASES, Case("Scatter", [], versions=(11,))])


def test_reversing_twice_changes_nothing():
    x, lengths = torch.from_numpy(normal(4, 3, 2)), torch.tensor([4, 1, 3])
    assert torch.equal(reverse_sequence(reverse_sequence(x, lengths), lengths), x)


def test_an_unknown_reduction_is_refused():
    with pytest.raises(UnsupportedOperatorError, match="Reduction 'median'; expected none, add, mul"):
        scatter_elements(torch.ones(2), torch.tensor([0]), torch.ones(1), reduction="median")

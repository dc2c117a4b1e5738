import numpy as np
import pytest
from node_check import Case, assert_all_covered, cases_of_versions, check, normal

from onnxpq.network.ops import activations

SIMPLE = ["Relu", "Sigmoid", "Tanh", "LeakyRelu", "ThresholdedRelu", "Elu", "Celu", "Selu", "Gelu", "HardSigmoid"]
SIMPLE += ["HardSwish", "Swish", "Mish", "Softplus", "Softsign", "Shrink"]
WITH_ALPHA = ["LeakyRelu", "ThresholdedRelu", "Elu", "Celu", "Selu", "HardSigmoid", "Swish"]
SOFTMAX = ["Softmax", "LogSoftmax", "Hardmax"]

CASES = [
    Case("SwiGLU", [normal(2, 3), normal(2, 3)], {"alpha": 1.5}),
    *[Case(op, [3 * normal(2, 5)]) for op in SIMPLE],
    *[Case(op, [3 * normal(2, 5)], {"alpha": 0.7}) for op in WITH_ALPHA],
    Case("Gelu", [3 * normal(2, 5)], {"approximate": "tanh"}),
    Case("Selu", [normal(2, 5)], {"alpha": 1.5, "gamma": 0.8}),
    Case("HardSigmoid", [3 * normal(2, 5)], {"beta": 0.1}),
    Case("Shrink", [normal(2, 5)], {"bias": 0.3, "lambd": 0.4}),
    Case("Softplus", [np.array([-200.0, 0.0, 200.0], dtype=np.float32)]),
    Case("PRelu", [normal(2, 3, 4), normal(3, 1)]),
    *[Case(op, [normal(2, 3, 4)], differentiable=op != "Hardmax") for op in SOFTMAX],
    *[Case(op, [normal(2, 3, 4)], {"axis": 2}, differentiable=op != "Hardmax") for op in SOFTMAX],
    *[Case(op, [normal(2, 3, 4)], {"axis": 0}, differentiable=op != "Hardmax") for op in SOFTMAX],
]


@pytest.mark.parametrize(("case", "version"), cases_of_versions(CASES), ids=str)
def test_as_in_onnxruntime(case, version):
    check(case, version)


def test_every_claimed_version_is_tried():
    assert_all_covered(activations, CASES)

import numpy as np
import pytest
import torch
from node_check import Case, assert_all_covered, cases_of_versions, check, normal, positive

from onnxpq.network.ops import losses
from onnxpq.network.ops.losses import softmax_cross_entropy_loss

LABELS = np.array([2, 0, 1, 2], dtype=np.int64)
MAP = np.array([[2, 0], [1, 1]], dtype=np.int64)
LOSSES = {"NegativeLogLikelihoodLoss": 1, "SoftmaxCrossEntropyLoss": 2}

CASES = [
    Case(op_type, inputs, attributes, outputs=outputs)
    for op_type, outputs in LOSSES.items()
    for inputs, attributes in (
        ([normal(4, 3), LABELS], {}),
        ([normal(4, 3), LABELS], {"reduction": "sum"}),
        ([normal(4, 3), LABELS, positive(3)], {"ignore_index": 0}),
        ([normal(2, 3, 2), MAP, positive(3)], {"reduction": "none"}),
    )
]


@pytest.mark.parametrize(("case", "version"), cases_of_versions(CASES), ids=str)
def test_loss(case, version):
    check(case, version)


def test_every_operator_and_version_has_a_case():
    assert_all_covered(losses, CASES)


def test_two_classes_by_hand():
    loss, log_prob = softmax_cross_entropy_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]))
    assert loss.item() == pytest.approx(np.log(2))
    assert log_prob.tolist() == [[pytest.approx(-np.log(2))] * 2]

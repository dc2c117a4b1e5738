import pytest
import torch
from node_check import Case, assert_all_covered, cases_of_versions, check, normal, positive

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops import normalization

pytestmark = pytest.mark.rounding

STATISTICS = [normal(4), normal(4), normal(4), positive(4)]

CASES = [
    Case("BatchNormalization", [normal(2, 4, 5, 3), *STATISTICS]),
    Case("BatchNormalization", [normal(2, 4), *STATISTICS], {"epsilon": 0.1}),
    Case("InstanceNormalization", [normal(2, 4, 5, 3), normal(4), normal(4)]),
    Case("InstanceNormalization", [normal(2, 4, 9), normal(4), normal(4)], {"epsilon": 0.1}),
    Case("LayerNormalization", [normal(2, 3, 4), normal(4), normal(4)]),
    Case("LayerNormalization", [normal(2, 3, 4), normal(3, 4)], {"axis": 1, "epsilon": 0.1}),
    Case("LayerNormalization", [normal(2, 3, 4), normal(4), normal(4)], outputs=3),
    Case("RMSNormalization", [normal(2, 3, 4), normal(4)]),
    Case("RMSNormalization", [normal(2, 3, 4), normal(3, 4)], {"axis": 1, "epsilon": 0.1}),
    Case("GroupNormalization", [normal(2, 4, 5, 3), normal(2), normal(2)], {"num_groups": 2}, (18,)),
    Case("GroupNormalization", [normal(2, 4, 5, 3), normal(4), normal(4)], {"num_groups": 2, "epsilon": 0.1}, (21,)),
    Case("LRN", [normal(2, 6, 3, 3)], {"size": 3}),
    Case("LRN", [normal(2, 6, 3, 3)], {"size": 3, "alpha": 0.5, "beta": 0.6, "bias": 2.0}),
    Case("LpNormalization", [normal(2, 3, 4)]),
    Case("LpNormalization", [normal(2, 3, 4)], {"axis": 1, "p": 1}),
    Case("LpNormalization", [0 * normal(2, 3)]),
    Case("MeanVarianceNormalization", [normal(2, 4, 5, 3)]),
    Case("MeanVarianceNormalization", [normal(2, 4, 5, 3)], {"axes": [0, 2]}),
]


@pytest.mark.parametrize(("case", "version"), cases_of_versions(CASES), ids=str)
def test_as_in_onnxruntime(case, version):
    check(case, version)


def test_every_claimed_version_is_tried():
    assert_all_covered(normalization, CASES)


def test_training_mode_is_refused():
    x, s = torch.zeros(2, 4), torch.ones(4)
    with pytest.raises(
        UnsupportedOperatorError, match="training mode is not supported; export the model for inference"
    ):
        normalization.batch_norm(x, s, s, s, s, training_mode=1)
    with pytest.raises(UnsupportedOperatorError, match="spatial=0"):
        normalization.batch_norm_before_14(x, s, s, s, s, spatial=0)

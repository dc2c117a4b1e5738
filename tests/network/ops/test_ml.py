import numpy as np
import pytest
import torch
from node_check import Case, assert_all_covered, cases_of_versions, check, ints, normal

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops import ml

ML = "ai.onnx.ml"

CASES = [
    Case("ArrayFeatureExtractor", [normal(3, 4), ints(2, 0)], domain=ML),
    Case("ArrayFeatureExtractor", [np.array([5, 6, 7], dtype=np.int64), ints(2, 0, 1, 1)], domain=ML),
    Case("Scaler", [normal(3, 4)], {"offset": [1.0, 2.0, 3.0, 4.0], "scale": [0.5, 2.0, 3.0, 1.0]}, domain=ML),
    Case("Scaler", [normal(3, 4)], {"offset": [1.0], "scale": [0.5]}, domain=ML),
    Case("Scaler", [np.arange(6, dtype=np.int64).reshape(2, 3)], {"offset": [1.0], "scale": [0.5]}, domain=ML),
    *[Case("Normalizer", [normal(3, 4)], {"norm": norm}, domain=ML) for norm in ("L1", "L2", "MAX")],
    Case("Normalizer", [0 * normal(3, 4)], {"norm": "L2"}, domain=ML),
    Case("Binarizer", [normal(3, 4)], {"threshold": 0.2}, domain=ML, differentiable=False),
]


@pytest.mark.parametrize(("case", "version"), cases_of_versions(CASES), ids=str)
def test_as_in_onnxruntime(case, version):
    check(case, version)


def test_every_claimed_version_is_tried():
    # A map output cannot be compared as an array; test_importing does it with whole classifiers.
    assert_all_covered(ml, [*CASES, Case("ZipMap", [], domain=ML)])


def test_zip_map_is_the_score_matrix():
    scores = torch.rand(3, 2)
    assert ml.zip_map(scores, classlabels_strings=["no", "yes"]) is scores
    assert ml.zip_map(scores, classlabels_int64s=[10, 9]).tolist() == scores.flip(1).tolist()


def test_array_feature_extractor_of_strings():
    labels = np.array(["a", "b", "c"], dtype=object)
    assert ml.array_feature_extractor(labels, torch.tensor([2, 0])).tolist() == [["c", "a"]]


def test_unknown_norm_is_refused():
    with pytest.raises(UnsupportedOperatorError, match="norm 'L3'; MAX, L1 and L2 are supported"):
        ml.normalizer(torch.ones(1, 1), norm="L3")

import numpy as np
import pytest
import torch
from node_check import Case, assert_all_covered, cases_of_versions, check, ints, normal, positive

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops import regions
from onnxpq.network.ops.regions import col2im, deform_conv, max_unpool, non_max_suppression, roi_align

ROIS = np.array([[0, 0, 4, 3], [1.5, 0.5, 5.2, 4.9], [-2, -1, 3, 9], [2, 2, 2.5, 2.25]], np.float32)
IMAGES = ints(0, 1, 1, 0)
BIN = {"output_height": 2, "output_width": 3, "spatial_scale": 0.8}
CORNERS = np.random.default_rng(0).uniform(0, 10, (2, 12, 4)).astype(np.float32)
SCORES = np.random.default_rng(1).uniform(0, 1, (2, 3, 12)).astype(np.float32)
LIMITS = [ints(4), np.array([0.2], np.float32), np.array([0.3], np.float32)]

CASES = [
    Case("Col2Im", [normal(2, 12, 9), ints(4, 4), ints(2, 2)]),
    Case("Col2Im", [normal(1, 12, 6), ints(5, 4), ints(2, 3)], {"pads": [1, 0, 0, 1], "strides": [2, 2]}),
    Case("Col2Im", [normal(1, 8, 6), ints(5, 4), ints(2, 2)], {"dilations": [2, 1], "strides": [1, 2]}),
    Case("Col2Im", [normal(1, 4, 4), ints(8), ints(2)], {"strides": [2]}),
    Case(
        "MaxUnpool",
        [positive(1, 1, 2, 2), ints(5, 7, 13, 15).reshape(1, 1, 2, 2)],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
    ),
    Case(
        "MaxUnpool",
        [positive(1, 1, 2, 2), ints(5, 7, 13, 15).reshape(1, 1, 2, 2), ints(1, 1, 5, 4)],
        {"kernel_shape": [2, 2], "strides": [2, 2]},
    ),
    *[Case("RoiAlign", [normal(2, 3, 6, 7), ROIS, IMAGES], {**BIN, "sampling_ratio": ratio}) for ratio in (0, 2)],
    Case("RoiAlign", [normal(2, 3, 6, 7), ROIS, IMAGES], {**BIN, "mode": "max", "sampling_ratio": 2}),
    Case(
        "RoiAlign",
        [normal(2, 3, 6, 7), ROIS, IMAGES],
        {**BIN, "coordinate_transformation_mode": "output_half_pixel"},
        versions=(16, 22),
    ),
    Case("NonMaxSuppression", [CORNERS, SCORES, *LIMITS], differentiable=False),
    Case("NonMaxSuppression", [CORNERS, SCORES, *LIMITS], {"center_point_box": 1}, differentiable=False),
    Case("NonMaxSuppression", [CORNERS, SCORES, *LIMITS[:1]], differentiable=False),
    Case("NonMaxSuppression", [CORNERS, SCORES], differentiable=False),
    Case("DeformConv", [normal(2, 4, 6, 5), normal(6, 4, 3, 2), 0.7 * normal(2, 12, 4, 4)]),
    Case(
        "DeformConv",
        [normal(2, 4, 6, 5), normal(6, 2, 3, 3), normal(2, 36, 3, 2), normal(6), positive(2, 18, 3, 2)],
        {"group": 2, "offset_group": 2, "strides": [2, 3], "pads": [1, 1, 1, 1]},
    ),
    Case("DeformConv", [normal(1, 2, 7, 7), normal(3, 2, 2, 2), normal(1, 8, 5, 5), normal(3)], {"dilations": [2, 2]}),
]


@pytest.mark.parametrize(("case", "version"), cases_of_versions(CASES), ids=str)
def test_regions(case, version):
    check(case, version)


def test_every_operator_and_version_has_a_case():
    assert_all_covered(regions, CASES)


def test_blocks_that_do_not_overlap_are_the_image():
    image = torch.arange(16.0).reshape(1, 1, 4, 4)
    blocks = torch.nn.functional.unfold(image, 2, stride=2)
    assert torch.equal(col2im(blocks, torch.tensor([4, 4]), torch.tensor([2, 2]), strides=[2, 2]), image)


def test_unpooling_undoes_pooling():
    x = torch.from_numpy(normal(2, 3, 4, 4))
    pooled, at = torch.nn.functional.max_pool2d(x, 2, return_indices=True)
    flat = at + 16 * torch.arange(6).reshape(2, 3, 1, 1)
    y = max_unpool(pooled, flat, kernel_shape=[2, 2], strides=[2, 2])
    assert torch.equal(torch.nn.functional.max_pool2d(y.where(y != 0, -9.0), 2), pooled)


def test_offsets_of_zero_are_a_convolution():
    x, w = torch.from_numpy(normal(1, 2, 5, 5)), torch.from_numpy(normal(3, 2, 3, 3))
    assert torch.allclose(
        deform_conv(x, w, torch.zeros(1, 18, 3, 3)), torch.nn.functional.conv2d(x, w), rtol=1e-4, atol=1e-5
    )


def test_no_region_and_no_box():
    assert roi_align(torch.zeros(1, 2, 4, 4), torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)).shape == (
        0,
        2,
        1,
        1,
    )
    assert non_max_suppression(torch.zeros(1, 0, 4), torch.zeros(1, 2, 0), torch.tensor([3])).shape == (0, 3)


def test_refusals():
    with pytest.raises(UnsupportedOperatorError, match="mode 'median'; expected avg or max"):
        roi_align(torch.zeros(1, 2, 4, 4), torch.zeros(1, 4), torch.zeros(1, dtype=torch.int64), mode="median")
    with pytest.raises(UnsupportedOperatorError, match="input of 5 axes; only images"):
        deform_conv(torch.zeros(1, 2, 4, 4, 4), torch.zeros(1, 2, 2, 2, 2), torch.zeros(1, 24, 3, 3, 3))

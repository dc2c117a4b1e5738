import itertools

import numpy as np
import pytest
import torch
from node_check import Case, assert_all_covered, cases_of_versions, check, ints, normal

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops import resize as family
from onnxpq.network.ops.resize import resize

IMAGE = normal(1, 2, 5, 6)
UP = np.array([1, 1, 1.7, 2], dtype=np.float32)
DOWN = np.array([1, 1, 0.6, 0.5], dtype=np.float32)
DOUBLE = np.array([1, 1, 2, 2], dtype=np.float32)
PLACES = ("half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners")
ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")
THETA = normal(2, 2, 3)


def case(scales, versions=None, **attributes):
    return Case("Resize", [IMAGE, None, scales], attributes, versions or (13, 18, 19))


CASES = [
    Case("Upsample", [IMAGE], {"scales": [1.0, 1.0, 2.0, 3.0]}, versions=(7,)),
    *[Case("Upsample", [IMAGE, DOUBLE], {"mode": mode}, versions=(9,)) for mode in ("nearest", "linear")],
    *[Case("Resize", [IMAGE, scales], {"mode": "nearest"}, versions=(10,)) for scales in (UP, DOWN)],
    Case("Resize", [IMAGE, UP], {"mode": "linear"}, versions=(10,)),
    *[
        case(scales, mode=mode, coordinate_transformation_mode=places)
        for scales, mode, places in itertools.product((UP, DOWN), ("linear", "cubic"), PLACES)
    ],
    *[
        case(scales, nearest_mode=rounding, coordinate_transformation_mode=places)
        for scales, rounding, places in itertools.product((UP, DOWN), ROUNDINGS, PLACES[:2])
    ],
    Case("Resize", [IMAGE, np.zeros(0, np.float32), UP], {"mode": "linear"}, versions=(11,)),
    Case(
        "Resize",
        [IMAGE, np.zeros(0, np.float32), DOUBLE],
        {"coordinate_transformation_mode": "tf_half_pixel_for_nn"},
        (11,),
    ),
    case(UP, mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1),
    case(UP, (19,), mode="linear", coordinate_transformation_mode="half_pixel_symmetric"),
    Case("Resize", [IMAGE, None, None, ints(1, 2, 7, 3)], {"mode": "linear"}, versions=(13, 18, 19)),
    Case("Resize", [IMAGE, None, None, ints(7, 3)], {"mode": "linear", "axes": [2, 3]}, versions=(18, 19)),
    *[
        Case(
            "Resize",
            [IMAGE, None, None, ints(7, 9)],
            {"mode": "linear", "axes": [2, 3], "keep_aspect_ratio_policy": policy},
            versions=(18, 19),
        )
        for policy in ("not_larger", "not_smaller")
    ],
    Case(
        "Resize",
        [IMAGE, np.array([0, 0, 0.2, 0.1, 1, 1, 0.8, 1.3], np.float32), None, ints(1, 2, 4, 4)],
        {"mode": "linear", "coordinate_transformation_mode": "tf_crop_and_resize", "extrapolation_value": 7.0},
        versions=(13, 18, 19),
    ),
    *[
        Case("GridSample", [IMAGE, normal(1, 3, 4, 2)], {"mode": mode, "padding_mode": padding}, versions=(16,))
        for mode in ("bilinear", "nearest", "bicubic")
        for padding in ("zeros", "border", "reflection")
    ],
    *[
        Case("GridSample", [IMAGE, normal(1, 3, 4, 2)], {"mode": mode}, versions=(20, 22))
        for mode in ("linear", "cubic")
    ],
    Case("GridSample", [normal(1, 2, 3, 4, 5), normal(1, 2, 2, 2, 3)], {"align_corners": 1}, versions=(20, 22)),
    Case("AffineGrid", [THETA, ints(2, 3, 4, 5)]),
    Case("AffineGrid", [normal(2, 3, 4), ints(2, 3, 4, 5, 6)], {"align_corners": 1}),
]


@pytest.mark.parametrize(("case", "version"), cases_of_versions(CASES), ids=str)
def test_resize(case, version):
    check(case, version)


def test_every_operator_and_version_has_a_case():
    # Upsample-10 is deprecated: ONNX's helpers make no such node.
    assert_all_covered(family, [*CASES, Case("Upsample", [], versions=(10,))])


def test_antialiasing_averages_by_hand():
    x = torch.tensor([[[0.0, 2.0, 4.0, 6.0]]])
    y = resize(x, None, torch.tensor([1.0, 1.0, 0.5]), mode="linear", antialias=1, exclude_outside=1)
    # Triangles of half-width 2 around 0.5 and 2.5, without what lies outside of x.
    weights = np.array([0.75, 0.75, 0.25])
    first = (weights * [0, 2, 4]).sum() / weights.sum()
    assert y.flatten().tolist() == pytest.approx([first, 6 - first])


def test_what_is_not_known_is_refused():
    x = torch.ones(1, 1, 4)
    with pytest.raises(UnsupportedOperatorError, match="Resize has neither scales nor sizes"):
        resize(x)
    with pytest.raises(UnsupportedOperatorError, match="mode 'spline'; expected nearest, linear or cubic"):
        resize(x, None, torch.tensor([1.0, 1.0, 2.0]), mode="spline")
    with pytest.raises(UnsupportedOperatorError, match="coordinate transformation 'polar'"):
        resize(x, None, torch.tensor([1.0, 1.0, 2.0]), coordinate_transformation_mode="polar")

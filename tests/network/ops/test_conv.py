import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from node_check import Case, assert_all_covered, cases_of_versions, check, normal

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops import conv

pytestmark = pytest.mark.rounding

GEOMETRIES = [
    {},
    {"strides": [2, 1], "pads": [1, 0, 2, 1]},
    {"dilations": [2, 1], "pads": [1, 1, 1, 1]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER"},
    {"auto_pad": "VALID", "strides": [3, 2]},
]
POOLS = [
    {},
    {"strides": [2, 3], "pads": [1, 0, 0, 1]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [2, 2]},
]
CEILED = {"kernel_shape": [3, 2], "strides": [2, 3], "pads": [1, 0, 1, 1], "ceil_mode": 1}
DILATED = {"kernel_shape": [3, 2], "dilations": [2, 1], "pads": [1, 0, 0, 1]}
PLANE = (2, 4, 7, 8)

CASES = [
    *[Case("Conv", [normal(*PLANE), normal(6, 4, 3, 2), normal(6)], geometry) for geometry in GEOMETRIES],
    Case("Conv", [normal(*PLANE), normal(6, 2, 3, 3)], {"group": 2, "kernel_shape": [3, 3]}),
    Case("Conv", [normal(2, 4, 9), normal(3, 4, 3)], {"pads": [2, 1]}),
    Case("Conv", [normal(1, 2, 5, 5, 5), normal(3, 2, 3, 3, 3), normal(3)]),
    Case("ConvTranspose", [normal(*PLANE), normal(4, 3, 3, 2), normal(3)]),
    Case("ConvTranspose", [normal(*PLANE), normal(4, 3, 3, 2)], {"strides": [2, 3], "pads": [1, 0, 0, 1]}),
    Case("ConvTranspose", [normal(*PLANE), normal(4, 3, 3, 3)], {"strides": [2, 2], "output_padding": [1, 1]}),
    Case("ConvTranspose", [normal(*PLANE), normal(4, 3, 3, 3)], {"strides": [2, 2], "output_shape": [14, 15]}),
    Case(
        "ConvTranspose", [normal(*PLANE), normal(4, 3, 3, 3)], {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, (11, 22)
    ),
    Case("ConvTranspose", [normal(*PLANE), normal(4, 3, 3, 3)], {"group": 2, "dilations": [2, 1]}),
    Case("ConvTranspose", [normal(2, 4, 5), normal(4, 3, 3)], {"strides": [2]}),
    *[Case("MaxPool", [normal(*PLANE)], {"kernel_shape": [3, 2], **geometry}) for geometry in POOLS],
    *[Case("AveragePool", [normal(*PLANE)], {"kernel_shape": [3, 2], **geometry}) for geometry in POOLS],
    Case("MaxPool", [normal(*PLANE)], CEILED, (10, 11, 12, 22)),
    Case("MaxPool", [normal(*PLANE)], DILATED, (10, 11, 12, 22)),
    Case("MaxPool", [normal(*PLANE)], {"kernel_shape": [2, 3], "pads": [1, 1, 0, 0]}, (8, 12, 22), outputs=2),
    Case("MaxPool", [normal(*PLANE)], {"kernel_shape": [2, 3], "storage_order": 1}, (8, 12, 22), outputs=2),
    Case("MaxPool", [np.arange(64, dtype=np.int8).reshape(1, 1, 8, 8)], {"kernel_shape": [2, 2]}, (12, 22)),
    Case("MaxPool", [normal(2, 3, 9)], {"kernel_shape": [2]}),
    Case("MaxPool", [normal(1, 2, 5, 6, 7)], {"kernel_shape": [2, 2, 2], "strides": [2, 2, 2]}),
    Case("AveragePool", [normal(*PLANE)], {"kernel_shape": [3, 2], "pads": [1, 0, 1, 1], "count_include_pad": 1}),
    Case("AveragePool", [normal(*PLANE)], CEILED, (10, 11, 19, 22)),
    Case("AveragePool", [normal(*PLANE)], {**CEILED, "count_include_pad": 1}, (19, 22)),
    Case("AveragePool", [normal(*PLANE)], DILATED, (19, 22)),
    Case("AveragePool", [normal(2, 3, 9)], {"kernel_shape": [2]}),
    Case("LpPool", [normal(*PLANE)], {"kernel_shape": [2, 3], "strides": [2, 1]}),
    Case("LpPool", [normal(*PLANE)], {"kernel_shape": [2, 3], "pads": [1, 0, 1, 2], "p": 3}),
    Case("LpPool", [normal(*PLANE)], {"kernel_shape": [2, 2], "dilations": [2, 1], "ceil_mode": 1}, (18, 22)),
    *[Case("GlobalLpPool", [normal(*PLANE)], {"p": p}, (2,)) for p in (2, 3)],
    Case("CausalConvWithState", [normal(2, 3, 5), normal(3, 1, 4), normal(3), normal(2, 3, 3)], outputs=2),
    Case("CausalConvWithState", [normal(2, 3, 5), normal(3, 1, 4)], {"activation": "silu"}, outputs=2),
    *[Case(op, [normal(*PLANE)]) for op in ("GlobalAveragePool", "GlobalMaxPool")],
    *[Case(op, [normal(2, 3, 5)]) for op in ("GlobalAveragePool", "GlobalMaxPool")],
]


@pytest.mark.parametrize(("case", "version"), cases_of_versions(CASES), ids=str)
def test_as_in_onnxruntime(case, version):
    check(case, version)


def test_every_claimed_version_is_tried():
    # Neither onnxruntime nor ONNX's reference computes GlobalLpPool-22, which only adds bfloat16.
    assert_all_covered(conv, [*CASES, Case("GlobalLpPool", [], versions=(22,))])


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(4, 9), st.integers(4, 9)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    pads=st.tuples(*[st.integers(0, 1)] * 4),
    op_type=st.sampled_from(["Conv", "MaxPool", "AveragePool"]),
    ceil_mode=st.integers(0, 1),
)
def test_any_geometry_as_in_onnxruntime(size, kernel, strides, pads, op_type, ceil_mode):
    pads = [min(p, kernel[i % 2] - 1) for i, p in enumerate(pads)]
    attributes = {"kernel_shape": list(kernel), "strides": list(strides), "pads": pads}
    inputs = [normal(1, 2, *size)]
    if op_type == "Conv":
        inputs.append(normal(3, 2, *kernel))
    else:
        attributes["ceil_mode"] = ceil_mode
    check(Case(op_type, inputs, attributes), 22)


def test_more_than_three_spatial_dimensions_are_refused():
    with pytest.raises(UnsupportedOperatorError, match="MaxPool over 4 spatial dimensions; 1, 2 and 3 are supported"):
        conv.max_pool(torch.zeros(1, 1, 2, 2, 2, 2), kernel_shape=[1, 1, 1, 1])

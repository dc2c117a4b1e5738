import numpy as np
import onnx
import onnxruntime.capi.onnxruntime_pybind11_state as ort_state
import pytest
import torch
from node_check import Case, assert_all_covered, cases_of_versions, check, normal, positive

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops import contrib
from onnxpq.network.ops.contrib import attention, fused_matmul, multi_head_attention
from onnxpq.network.ops.registry import attributes_of, registered

pytestmark = pytest.mark.rounding

X, W, B = normal(2, 3, 8), normal(8, 24), normal(24)
PADDING = np.array([[1, 1, 1], [1, 1, 0]], dtype=np.int32)
IDS = np.array([[1, 0, 2], [3, 3, 1]], dtype=np.int32)


def case(op_type, inputs, attributes=None, outputs=1, differentiable=True):
    return Case(op_type, inputs, attributes or {}, (1,), outputs, "com.microsoft", differentiable)


CASES = [
    case("Gelu", [normal(2, 3)]),
    case("BiasGelu", [normal(2, 3), normal(3)]),
    case("FastGelu", [normal(2, 3)]),
    case("FastGelu", [normal(2, 3), normal(3)]),
    case("QuickGelu", [normal(2, 3)]),
    case("QuickGelu", [normal(2, 3)], {"alpha": 1.1}),
    case("FusedMatMul", [normal(2, 3), normal(3, 4)]),
    case("FusedMatMul", [normal(5, 3, 2), normal(4, 3)], {"transA": 1, "transB": 1, "alpha": 0.5}),
    case("FusedGemm", [normal(2, 3), normal(3, 4), normal(4)], {"activation": "Relu"}),
    case(
        "FusedGemm",
        [normal(3, 2), normal(4, 3), normal(2, 1)],
        {
            "activation": "LeakyRelu",
            "activation_alpha": 0.3,
            "transA": 1,
            "transB": 1,
            "alpha": 0.5,
            "beta": 2.0,
        },
    ),
    case("SkipLayerNormalization", [X, normal(2, 3, 8), positive(8), normal(8), normal(8)]),
    case("SkipLayerNormalization", [X, normal(2, 3, 8), positive(8)], {"epsilon": 0.1}),
    case("SkipSimplifiedLayerNormalization", [X, normal(2, 3, 8), positive(8), normal(8)]),
    case(
        "EmbedLayerNormalization",
        [IDS, PADDING, normal(4, 8), normal(5, 8), normal(2, 8), positive(8), normal(8), PADDING],
        outputs=2,
        differentiable=True,
    ),
    case("Attention", [X, W, B], {"num_heads": 2}),
    case("Attention", [X, W, B, PADDING], {"num_heads": 2}),
    case("Attention", [X, W, B], {"num_heads": 4, "unidirectional": 1}),
    case("MultiHeadAttention", [X, normal(2, 5, 8), normal(2, 5, 8)], {"num_heads": 2}),
    case("MultiHeadAttention", [X, X, X, B, PADDING], {"num_heads": 2, "scale": 0.3}),
]


@pytest.mark.parametrize(("case", "version"), cases_of_versions(CASES), ids=str)
def test_contrib(case, version):
    check(case, version)


def test_every_operator_and_version_has_a_case():
    assert_all_covered(contrib, CASES)


def test_attributes_and_defaults_are_those_of_onnxruntime():
    schemas = {s.name: s for s in ort_state.get_all_operator_schema() if s.domain == "com.microsoft"}
    for (domain, op_type, _), handler in registered().items():
        if domain != "com.microsoft":
            continue
        taken = attributes_of(handler)
        assert set(taken) == set(schemas[op_type].attributes)
        for name, attribute in schemas[op_type].attributes.items():
            proto = onnx.AttributeProto.FromString(attribute._default_value)
            if proto.name:
                assert taken[name] == pytest.approx(onnx.helper.get_attribute_value(proto))


def test_what_is_not_computed_is_refused():
    x = torch.from_numpy(X)
    with pytest.raises(UnsupportedOperatorError, match="transposed batch axes"):
        fused_matmul(x, x, transBatchA=1)
    with pytest.raises(UnsupportedOperatorError, match="with a past or rotary embedding"):
        attention(x, torch.from_numpy(W), past=x, num_heads=2)
    with pytest.raises(UnsupportedOperatorError, match="on packed inputs"):
        multi_head_attention(x, num_heads=2)

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper
from rule_checks import (
    FLOAT32_BUDGET,
    check_rewrite,
    initializer,
    largest_difference,
    operators,
    parse,
    quantized,
    reasons,
    run,
    with_decoded_weights,
)

from onnxpq.rewriting.listing import CONV1X1_REASON, find
from onnxpq.rewriting.replacing import rewrite

CHANNELS, OUT = 6, 9
SIZES = (5, 4, 3)


def conv_model(axes: int = 2, stride: int = 1, bias: bool = True, opset: int = 17, attributes: str = ""):
    spatial = SIZES[:axes]
    results = [-(-size // stride) for size in spatial]
    x, y = (f"float[2,{c},{','.join(map(str, s))}]" for c, s in ((CHANNELS, spatial), (OUT, results)))
    strides = f"strides = {[stride] * axes}" if stride > 1 else ""
    listed = ", ".join(part for part in (strides, attributes) if part)
    text = f"({x} x) => ({y} y) {{ [fc] y = Conv{f'<{listed}>' if listed else ''}(x, w{', b' if bias else ''}) }}"
    tensors = [initializer("w", OUT, CHANNELS, *[1] * axes), initializer("b", OUT, seed=2)]
    inputs = {"x": np.random.default_rng(0).standard_normal((2, CHANNELS, *spatial)).astype(np.float32)}
    return parse(text, *tensors, opset=opset), inputs


@settings(max_examples=25, deadline=None)
@given(
    axes=st.integers(1, 3),
    stride=st.integers(1, 3),
    bias=st.booleans(),
    opset=st.sampled_from([9, 10, 13, 17, 22]),
    attributes=st.sampled_from(["", "dilations = {d}", 'auto_pad = "SAME_UPPER"', 'auto_pad = "VALID"', "group = 1"]),
)
def test_every_convolution_equals_itself_with_the_decoded_weight(axes, stride, bias, opset, attributes):
    model, inputs = conv_model(axes, stride, bias, opset, attributes.format(d=[2] * axes))
    (layer,), rewritten = check_rewrite(model, inputs, conv1x1=True)
    assert (layer.out_features, layer.in_features, layer.weight_is_in_out) == (OUT, CHANNELS, False)
    assert layer.bias == ("b" if bias else None)
    subsample = [] if stride == 1 else ["Slice" if opset >= 10 else "MaxPool"]
    assert operators(rewritten) == [*subsample, "Transpose", "PQMatMul", "Transpose"]


def test_the_budget_sees_an_error_of_two_percent():
    model, inputs = conv_model(stride=2)
    layers, _ = find(model, min_weights=0, conv1x1=True)
    tensors = {"w": quantized(layers[0])}
    (expected,), (found,) = (
        run(m, inputs) for m in (with_decoded_weights(model, layers, tensors), rewrite(model, layers, tensors))
    )
    assert largest_difference(1.02 * found, expected) > 100 * FLOAT32_BUDGET


def test_they_are_left_alone_unless_asked_for():
    model, _ = conv_model()
    assert reasons(model) == {"fc": CONV1X1_REASON}


@pytest.mark.parametrize("opset", [9, 10, 11, 17])
@pytest.mark.parametrize("stride", [1, 2])
def test_padded_convolutions(opset, stride):
    size = (5 + 3 - 1) // stride + 1, (5 + 2 - 1) // stride + 1
    text = f"(float[2,6,5,5] x) => (float[2,9,{size[0]},{size[1]}] y) {{ [fc] y = Conv<@>(x, w, b) }}"
    attributes = f"pads = [1, 0, 2, 2], strides = [{stride}, {stride}]"
    tensors = initializer("w", 9, 6, 1, 1), initializer("b", 9, seed=2)
    model = parse(text.replace("@", attributes), *tensors, opset=opset)
    inputs = {"x": np.random.default_rng(0).standard_normal((2, 6, 5, 5)).astype(np.float32)}
    _, rewritten = check_rewrite(model, inputs, conv1x1=True)
    assert operators(rewritten)[0] == "Pad"


def test_groups_are_refused():
    text = "(float[1,6,5,5] x) => (float[1,1600,5,5] y) { [fc] y = Conv<group = 2>(x, w) }"
    layers, skipped = find(parse(text, initializer("w", 1600, 3, 1, 1)), min_weights=0, conv1x1=True)
    assert not layers
    assert "3 weights for each output, which need 16 to share a scale" in skipped[0].reason


def test_a_computed_bias_is_refused():
    text = "(float[1,6,5,5] x, float[9] c) => (float[1,9,5,5] y) { [fc] y = Conv(x, w, c) }"
    layers, skipped = find(parse(text, initializer("w", 9, 6, 1, 1)), min_weights=0, conv1x1=True)
    assert not layers
    assert [entry.reason for entry in skipped] == ["The bias of the 1x1 convolution is not constant: not supported."]


def test_quantized_kernels_are_refused():
    text = "(float[1,64,5,5] x) => (float[1,64,5,5] y) { v = DequantizeLinear(w, s) [fc] y = Conv(x, v) }"
    tensors = (
        numpy_helper.from_array(np.ones((64, 64, 1, 1), np.int8), "w"),
        numpy_helper.from_array(np.array(0.5, np.float32), "s"),
    )
    assert "is quantized already" in reasons(parse(text, *tensors))["fc"]

"""Weights of every kind: convolutions as PQConv, all else as a constant that PQWeight gives to its node."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper
from rule_checks import FLOAT32_BUDGET, initializer, largest_difference, parse, quantized, run, with_decoded_weights

from onnxpq import session
from onnxpq.graph import Layer, files
from onnxpq.rewriting.listing import find
from onnxpq.rewriting.replacing import rewrite
from onnxpq.runtime.sessions import library_available
from onnxpq.support.kinds import ALL, KINDS

CONVOLUTIONS = {
    "3x3": ("Conv<pads = [1, 1, 1, 1]>(x, w, b)", (24, 8, 3, 3), (2, 8, 7, 5)),
    "no bias": ("Conv(x, w)", (24, 8, 3, 3), (2, 8, 7, 5)),
    "stride, dilation": ("Conv<strides = [2, 1], dilations = [1, 2]>(x, w, b)", (24, 8, 3, 3), (1, 8, 9, 9)),
    "auto_pad": ('Conv<auto_pad = "SAME_UPPER", strides = [2, 2]>(x, w)', (24, 8, 3, 3), (1, 8, 9, 9)),
    "groups": ("Conv<group = 2, kernel_shape = [3, 3]>(x, w, b)", (24, 4, 3, 3), (1, 8, 6, 6)),
    "1-D": ("Conv<pads = [2, 2]>(x, w, b)", (24, 8, 5), (2, 8, 11)),
    "3-D": ("Conv(x, w, b)", (24, 4, 2, 3, 2), (1, 4, 4, 5, 4)),
    "one point": ("Conv(x, w, b)", (24, 16, 1, 1), (1, 16, 4, 5)),
    "transposed": ("ConvTranspose<strides = [2, 2]>(x, w, b)", (8, 24, 4, 4), (1, 8, 5, 4)),
    "transposed, groups": ("ConvTranspose<group = 2>(x, w)", (8, 12, 3), (1, 8, 6)),
}

RECURRENT = {
    "LSTM": ("LSTM<hidden_size = 32>(x, w, r, b)", 4, 1),
    "LSTM both ways": ('LSTM<hidden_size = 32, direction = "bidirectional">(x, w, r, b)', 4, 2),
    "GRU": ("GRU<hidden_size = 32, linear_before_reset = 1>(x, w, r, b)", 3, 1),
    "RNN backwards": ('RNN<hidden_size = 32, direction = "reverse">(x, w, r, b)', 1, 1),
}


def checked(model: ir.Model, x: dict[str, np.ndarray], tmp_path: Path) -> tuple[list[Layer], Counter[str]]:
    """The layers of all kinds, and operators of the rewritten model as onnxruntime runs it.

    It must give what the original gives with decoded weights, with the operator library and without.
    """
    layers, _ = find(model, min_weights=0, kinds=KINDS)
    tensors = {layer.weight: quantized(layer) for layer in layers}
    rewritten = rewrite(model, layers, tensors)
    onnx.checker.check_model(ir.to_proto(rewritten), full_check=True)
    expected = run(with_decoded_weights(model, layers, tensors), x)
    files.save(rewritten, tmp_path / "m.onnx")
    ways = [run(rewritten, x)]
    if library_available():
        ways.append(session(tmp_path / "m.onnx").run(None, x))
    for found in ways:
        for one, other in zip(found, expected, strict=True):
            assert largest_difference(one, other) < FLOAT32_BUDGET
            assert largest_difference(1.02 * one, other) > FLOAT32_BUDGET
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), options, providers=["CPUExecutionProvider"])
    optimized = onnx.load(tmp_path / "optimized.onnx")
    assert not optimized.functions
    return layers, Counter(node.op_type for node in optimized.graph.node)


@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_end_as_the_plain_operator(name: str, opset: int, tmp_path: Path) -> None:
    body, weight, x = CONVOLUTIONS[name]
    out = 24
    sizes, unknown = ",".join(map(str, x)), ",".join("ABCDE"[: len(x)])
    model = parse(
        f"(float[{sizes}] x) => (float[{unknown}] y) {{ [n] y = {body} }}",
        initializer("w", *weight),
        initializer("b", out, seed=1),
        opset=opset,
    )
    layers, operators = checked(model, {"x": np.random.default_rng(2).standard_normal(x).astype(np.float32)}, tmp_path)
    assert [layer.kind for layer in layers] == ["conv"]
    plain = "ConvTranspose" if "Transpose" in body else "Conv"
    assert set(operators) <= {plain, "FusedConv", "ReorderInput", "ReorderOutput"}


@pytest.mark.parametrize("opset", [9, 13, 17])
@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_take_decoded_weights(name: str, opset: int, tmp_path: Path) -> None:
    body, gates, directions = RECURRENT[name]
    outputs = "y, h, c" if "LSTM" in body else "y, h"
    model = parse(
        f"(float[6,N,20] x) => (float[6,D,N,32] y, float[D,N,32] h) {{ [n] {outputs} = {body} }}",
        initializer("w", directions, 32 * gates, 20),
        initializer("r", directions, 32 * gates, 32, seed=1),
        initializer("b", directions, 64 * gates, seed=2),
        opset=opset,
    )
    x = np.random.default_rng(2).standard_normal((6, 3, 20)).astype(np.float32)
    layers, operators = checked(model, {"x": x}, tmp_path)
    assert {layer.weight for layer in layers} >= {"w", "r"}
    assert {layer.kind for layer in layers} == {"recurrent"}
    assert operators == {body.split("<")[0]: 1}


def test_a_weight_that_a_loop_carries_unchanged(tmp_path: Path) -> None:
    """As tf2onnx writes LSTM and GRU."""
    model = parse(
        """(float[N,32] x) => (float[N,32] y) {
            steps = Constant<value = int64 {3}>()
            yes = Constant<value = bool {1}>()
            y, last = Loop(steps, yes, x, w) <
                body = inner (int64 i, bool go, float[M,32] h, float[32,32] v)
                    => (bool on, float[M,32] after, float[32,32] same) {
                    on = Identity(go)
                    product = MatMul(h, v)
                    after = Tanh(product)
                    same = Identity(v)
                }
            >
        }""",
        initializer("w", 32, 32),
        opset=13,
    )
    layers, operators = checked(model, {"x": np.ones((2, 32), np.float32)}, tmp_path)
    assert [(layer.op_type, layer.weight, layer.kind) for layer in layers] == [("Loop", "w", "other")]
    assert set(operators) == {"Loop"}


def test_a_weight_inside_of_a_branch_and_one_that_two_nodes_share(tmp_path: Path) -> None:
    model = parse(
        """(float[1,8,9,9] x, bool c) => (float[1,24,7,7] y) {
            z = If(c) <
                then_branch = one () => (float[1,24,7,7] a) { a = Conv(x, w) },
                else_branch = two () => (float[1,24,7,7] b) { p = Conv(x, w) b = Tanh(p) }
            >
            q = Conv(x, w)
            y = Add(q, z)
        }""",
        initializer("w", 24, 8, 3, 3),
    )
    for condition in (True, False):
        x = {"x": np.ones((1, 8, 9, 9), np.float32), "c": np.array(condition)}
        layers, _ = checked(model, x, tmp_path)
        assert [layer.weight for layer in layers] == ["w", "w", "w"]


def test_stacks_and_operators_of_onnxruntime(tmp_path: Path) -> None:
    model = parse(
        """(float[N,5,32] x) => (float[N,5,32] y) {
            [attention] a = com.microsoft.Attention<num_heads = 2>(x, w, b)
            y = Mul(a, s)
        }""",
        initializer("w", 32, 96),
        initializer("b", 96),
        initializer("s", 1, 5, 32),
        domains=("com.microsoft",),
    )
    layers, operators = checked(model, {"x": np.ones((2, 5, 32), np.float32)}, tmp_path)
    assert [(layer.node, layer.weight) for layer in layers] == [("attention", "w"), ("y", "s")]
    assert operators == {"Attention": 1, "Mul": 1}


def test_float16_kernels_stay_float16(tmp_path: Path) -> None:
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((24, 8, 3)).astype(np.float16), "w")
    model = parse("(float16[1,8,9] x) => (float16[1,24,7] y) { [n] y = Conv(x, w) }", weight)
    layers, _ = find(model, min_weights=0, kinds=["conv"])
    rewritten = rewrite(model, layers, {"w": quantized(layers[0])})
    (y,) = run(rewritten, {"x": np.ones((1, 8, 9), np.float16)})
    assert y.dtype == np.float16


def test_kinds_that_are_not_wanted_are_left_alone() -> None:
    text = "(float[1,8,9,9] x) => (float[1,24,7,7] y) { [n] y = Conv(x, w) }"
    model = parse(text, initializer("w", 24, 8, 3, 3))
    layers, skipped = find(model)
    assert not layers
    assert [entry.reason for entry in skipped] == ["It is a convolution. --only conv takes it."]
    assert [layer.node for layer in find(model, kinds=["conv"])[0]] == ["n"]


def test_rows_that_do_not_fill_a_block_are_left_alone() -> None:
    model = parse("(float[N,1041] x) => (float[N,1] y) { [n] y = MatMul(x, w) }", initializer("w", 1041, 1))
    layers, skipped = find(model)
    assert not layers
    assert "Its 1 rows do not fill a block of codes" in skipped[0].reason
    assert ALL not in KINDS

import re

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from tiny_models import build, initializer, mlp

from onnxpq.config.settings import Config, PQConfig
from onnxpq.errors import ConfigError, ModelError, OnnxpqError
from onnxpq.quantization.inspection import describe


def lines(model: onnx.ModelProto, config: Config | None = None) -> list[str]:
    """Lines of the text, with runs of blanks as one."""
    return [re.sub(r"\s+", " ", line).strip() for line in describe(model, config or Config()).splitlines()]


def with_convolution() -> onnx.ModelProto:
    nodes = [
        helper.make_node("Conv", ["x", "K"], ["c"], name="conv"),
        helper.make_node("Flatten", ["c"], ["f"], name="flat"),
        helper.make_node("MatMul", ["f", "W"], ["y"], name="fc"),
    ]
    weights = [initializer("K", 64, 8, 3, 3, seed=0), initializer("W", 64, 100, seed=1)]
    return build(nodes, {"x": ["N", 8, 3, 3]}, {"y": ["N", 100]}, weights)


def test_layers_and_sizes() -> None:
    found = lines(mlp())
    # W1 128 x 64, b1 128, W2 10 x 128, b2 10: 9610 floats
    assert found[0] == "38,440 bytes of constants, opset 17, IR version 8"
    start = found.index("Can be compressed")
    assert found[start + 1 : start + 4] == [
        "layer operator weight out x in d K G bytes compressed",
        # codes of 4 blocks x 8 sub-vectors x 16 bytes, a codebook of 256, scales 512
        "fc1 Gemm W1 128 x 64 8 16 2 32768 1280",
        # 1 x 16 x 16, 256, 40
        "fc2 Gemm W2 10 x 128 8 16 1 5120 424",
    ]
    assert f"Constants after compression: about {38440 - 32768 + 1280 - 5120 + 424:,} bytes" in found
    assert "Left alone" not in found


def test_settings_change_the_sizes() -> None:
    pq = PQConfig(sub_vector=4, codewords=256, codebooks="position")
    found = lines(mlp(), Config(pq=pq, min_weights=2000))
    # codes of 8 blocks x 16 sub-vectors x 16 bytes, 16 codebooks of 2048, scales 512
    assert f"fc1 Gemm W1 128 x 64 4 256 16 32768 {8 * 16 * 16 + 16 * 1024 + 512}" in found
    why = "It has fewer than 2000 weights (--min-weights), and would gain too little."
    # with its bias of 10 numbers
    assert f"5,160 bytes in 1 Gemm (fc2): {why}" in found


def test_other_nodes_have_their_reason() -> None:
    found = lines(with_convolution(), Config(exclude=("fc",)))
    assert "No layer can be compressed." in found
    at = found.index("Left alone")
    assert found[at + 1 : at + 3] == [
        "25,600 bytes in 1 MatMul (fc): Excluded by 'fc'.",
        "18,432 bytes in 1 Conv (conv): It is a convolution. --only conv takes it.",
    ]


def test_constants_that_are_left_alone_are_counted_once_and_those_of_layers_not() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "K"], ["c1"], name="c1", pads=[1] * 4),
        helper.make_node("Conv", ["c1", "K"], ["c2"], name="c2", pads=[1] * 4),
        helper.make_node("Conv", ["c2", "L"], ["c3"], name="c3", pads=[1] * 4),
        helper.make_node("Reshape", ["c3", "rows"], ["r"], name="rows of channels"),
        helper.make_node("MatMul", ["r", "W"], ["y"], name="fc"),
        helper.make_node("MatMul", ["r", "V"], ["z"], name="small"),
    ]
    weights = [
        *(initializer(name, 32, 32, 3, 3, seed=seed) for seed, name in enumerate("KL")),
        numpy_helper.from_array(np.array([-1, 32]), "rows"),
        initializer("W", 32, 100, seed=1),
        initializer("V", 32, 4, seed=2),
    ]
    model = build(nodes, {"x": ["N", 32, 4, 4]}, {"y": ["M", 100], "z": ["M", 4]}, weights)
    found = lines(model)
    at = found.index("Left alone")
    why = "It is a convolution. --only conv takes it."
    assert found[at + 1 :] == [
        f"{2 * 4 * 32 * 32 * 9:,} bytes in 3 Conv (c1, c2, c3): {why}",
        "512 bytes in 1 MatMul (small): It has fewer than 1024 weights (--min-weights), and would gain too little.",
    ]


def test_weights_of_constant_nodes_are_counted() -> None:
    # As Paddle's exporter writes them.
    nodes = [
        helper.make_node("Constant", [], ["W"], value=initializer("W", 64, 64, seed=0)),
        helper.make_node("MatMul", ["x", "W"], ["y"], name="fc"),
    ]
    found = lines(build(nodes, {"x": ["N", 64]}, {"y": ["N", 64]}, []))
    assert found[0].startswith("16,384 bytes of constants")
    assert "Constants after compression: about 640 bytes" in found


def test_a_weight_is_counted_once() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["h"], name="first"),
        helper.make_node("MatMul", ["h", "W"], ["y"], name="second"),
    ]
    model = build(nodes, {"x": ["N", 64]}, {"y": ["N", 64]}, [initializer("W", 64, 64, seed=0)])
    found = lines(model)
    assert "first MatMul W 64 x 64 8 16 1 16384 640" in found
    assert "second MatMul W 64 x 64 8 16 1 shared shared" in found
    assert "Constants after compression: about 640 bytes" in found


@pytest.mark.parametrize(
    ("model", "config", "kind", "message"),
    [
        ("nowhere.onnx", Config(), ModelError, "'nowhere.onnx' does not exist. Check the path."),
        (
            mlp(),
            Config(exclude=("foo",)),
            ConfigError,
            "The 'exclude' pattern 'foo' matches no node with a weight. Names there are: 'fc1', 'fc2'.",
        ),
        (
            mlp(),
            Config(pq=PQConfig(codebooks=9)),
            ConfigError,
            "Layer 'fc1' has 8 sub-vectors of length 8, so it can have at most that many codebooks; 9 were asked for.",
        ),
    ],
)
def test_refusals(model: onnx.ModelProto | str, config: Config, kind: type[OnnxpqError], message: str) -> None:
    with pytest.raises(kind, match=f"^{re.escape(message)}"):
        describe(model, config)

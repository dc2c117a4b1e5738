"""Which outputs are read as scores of classes: heads of well-known models, in small."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper
from tiny_models import build, initializer

from onnxpq import runtime
from onnxpq.graph.normalising import normalise
from onnxpq.verification.outputs import not_scores, pooled

WIDE = 6
SAMPLES = 8

Node = tuple[str, list[str], str] | tuple[str, list[str], str, dict[str, object]]

CONSTANTS = [
    initializer("W", WIDE, WIDE, seed=1),
    initializer("K", 5, 3, 1, 1, seed=2),
    initializer("table", 9, WIDE, seed=3),
    initializer("one", WIDE, seed=4),
    onnx.numpy_helper.from_array(np.eye(WIDE, dtype=np.float32), "eye"),
    helper.make_tensor("two", onnx.TensorProto.FLOAT, [], [2.0]),
    helper.make_tensor("last", onnx.TensorProto.INT64, [1], [-1]),
    helper.make_tensor("first", onnx.TensorProto.INT64, [1], [1]),
]
"""Those that a model does not use stay in it and do not matter."""


def reason(nodes: list[Node], shape: list[int] | None = None) -> str | None:
    """What is said of output y; a node is named like its output."""
    made = [
        helper.make_node(op, given, [result], name=result, **(rest[0] if rest else {}))
        for op, given, result, *rest in nodes
    ]
    sizes = [SAMPLES, *(shape or [WIDE])]
    model = build(made, {"x": [*sizes]}, {"y": []}, CONSTANTS)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    x = np.random.default_rng(0).standard_normal(sizes).astype(np.float32)
    values = runtime.run(runtime.session(model.SerializeToString()), {"x": x})["y"]
    return not_scores(normalise(ir.from_proto(model)).graph, "y", values)


LINEAR: Node = ("MatMul", ["x", "W"], "h")
IMAGE = [3, 4, 4]
WORDS = [5, WIDE]


@pytest.mark.parametrize(
    ("nodes", "shape"),
    [
        ([("Gemm", ["x", "W", "one"], "y")], None),
        ([LINEAR, ("Add", ["h", "one"], "y")], None),
        ([LINEAR, ("Softmax", ["h"], "y")], None),
        ([LINEAR, ("LogSoftmax", ["h"], "y")], None),
        ([LINEAR, ("Sigmoid", ["h"], "y")], None),
        # A temperature, itself a constant that is computed.
        ([LINEAR, ("Exp", ["two"], "t"), ("Div", ["h", "t"], "y")], None),
        # Words of sentences; a size that is computed.
        ([LINEAR, ("Shape", ["x"], "s"), ("Reshape", ["h", "s"], "y")], WORDS),
        # Convolutions as classifiers, their places averaged; of columns, as in recognition of text.
        ([("Conv", ["x", "K"], "c"), ("GlobalAveragePool", ["c"], "p"), ("Flatten", ["p"], "y")], IMAGE),
        ([("Conv", ["x", "K"], "c"), ("Transpose", ["c"], "y", {"perm": [0, 2, 3, 1]})], IMAGE),
        # An ensemble, and scores side by side.
        ([LINEAR, ("MatMul", ["h", "W"], "g"), ("Sum", ["h", "g"], "y")], None),
        ([LINEAR, ("MatMul", ["h", "W"], "g"), ("Concat", ["h", "g"], "y", {"axis": 1})], None),
        # Softmax and its logarithm in parts, which end with a quotient and a difference of computed values.
        ([LINEAR, ("Exp", ["h"], "e"), ("ReduceSum", ["e", "last"], "s"), ("Div", ["e", "s"], "y")], None),
        (
            [
                LINEAR,
                ("Tanh", ["h"], "a"),
                ("ReduceLogSumExp", ["a"], "s", {"axes": [-1]}),
                ("Sub", ["a", "s"], "y"),
            ],
            None,
        ),
    ],
)
def test_scores(nodes: list[Node], shape: list[int] | None) -> None:
    assert reason(nodes, shape) is None


@pytest.mark.parametrize(
    ("nodes", "shape", "expected"),
    [
        # Hidden states, a pooled one, what a network of convolutions sees, and a recurrent one's.
        ([LINEAR, ("LayerNormalization", ["h", "one"], "y")], None, "is computed by LayerNormalization 'y'"),
        ([LINEAR, ("Tanh", ["h"], "y")], None, "is computed by Tanh 'y'"),
        (
            [
                ("Conv", ["x", "K"], "c"),
                ("Relu", ["c"], "r"),
                ("GlobalAveragePool", ["r"], "p"),
                ("Flatten", ["p"], "y"),
            ],
            IMAGE,
            "is computed by Relu 'r'",
        ),
        # The mean over words of a mask.
        (
            [
                LINEAR,
                ("Mul", ["h", "x"], "m"),
                ("ReduceSum", ["m", "first"], "s", {"keepdims": 0}),
                ("ReduceMax", ["x"], "n", {"axes": [1], "keepdims": 0}),
                ("Div", ["s", "n"], "y"),
            ],
            WORDS,
            "is computed by Div 'y'",
        ),
        # A gate, and one score of several being none.
        ([LINEAR, ("Sigmoid", ["h"], "g"), ("Mul", ["h", "g"], "y")], None, "is computed by Mul 'y'"),
        ([LINEAR, ("Relu", ["h"], "r"), ("Add", ["h", "r"], "y")], None, "is computed by Relu 'r'"),
        # Pictures: their last axis is a place.
        ([("Conv", ["x", "K"], "y")], IMAGE, "is computed by Conv 'y'"),
        ([("Conv", ["x", "K"], "c"), ("Sigmoid", ["c"], "y")], IMAGE, "is computed by Conv 'c'"),
        # Vectors of length 1, whatever made them.
        ([LINEAR, ("LpNormalization", ["h"], "n", {"axis": 1}), ("MatMul", ["n", "eye"], "y")], None, "length 1"),
        # Rows of a table, the input itself, and a single column.
        (
            [("Gemm", ["x", "W"], "h"), ("ArgMax", ["h"], "i", {"axis": 1}), ("Gather", ["table", "i"], "y")],
            None,
            "Gather",
        ),
        ([("Identity", ["x"], "y")], None, "repeats input 'x'"),
        ([LINEAR, ("ReduceMax", ["h"], "y", {"axes": [1]})], None, "has one number per sample"),
    ],
)
def test_numbers(nodes: list[Node], shape: list[int] | None, expected: str) -> None:
    assert expected in (reason(nodes, shape) or "")


def test_shared_sums_are_looked_at_once() -> None:
    # By all ways through them there are 2^60.
    nodes: list[Node] = [LINEAR, ("Add", ["h", "h"], "a0")]
    nodes += [("Add", [f"a{i}", f"a{i}"], f"a{i + 1}") for i in range(60)]
    assert reason([*nodes, ("Identity", ["a60"], "y")]) is None


def test_nothing_is_known_of_no_rows() -> None:
    graph = normalise(
        ir.from_proto(build([helper.make_node("Relu", ["x"], ["y"])], {"x": [0, 2]}, {"y": [0, 2]}, []))
    ).graph
    assert not_scores(graph, "y", np.zeros((0, 2), np.float32)) is None
    assert not_scores(graph, "y", np.full((3, 2), np.nan, np.float32)) == "is computed by Relu 'y'"


# Outputs that others are made of


MASKED_MEAN: list[Node] = [
    ("Unsqueeze", ["mask", "last"], "wide"),
    ("Mul", ["words", "wide"], "masked"),
    ("ReduceSum", ["masked", "first"], "sum", {"keepdims": 0}),
    ("ReduceSum", ["mask", "first"], "count"),
    ("Clip", ["count", "least"], "positive"),
]
"""As sentence transformers have it."""


def pooled_of(nodes: list[Node], outputs: list[str], more: list[onnx.TensorProto] | None = None) -> dict[str, str]:
    made = [
        helper.make_node(op, given, [result], name=result, **(rest[0] if rest else {}))
        for op, given, result, *rest in nodes
    ]
    least = onnx.numpy_helper.from_array(np.array(1e-9, np.float32), "least")
    inputs = {"x": [SAMPLES, *WORDS], "mask": [SAMPLES, WORDS[0]]}
    model = build(made, inputs, {name: [] for name in outputs}, [*CONSTANTS, least, *(more or [])])
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    return pooled(normalise(ir.from_proto(model)).graph, outputs)


STATES: list[Node] = [LINEAR, ("Tanh", ["h"], "words")]
SENTENCE: Node = ("Div", ["sum", "positive"], "sentence")


def test_a_sentence_is_made_of_its_words() -> None:
    nodes = [*STATES, *MASKED_MEAN, SENTENCE]
    assert pooled_of(nodes, ["words", "sentence"]) == {"words": "sentence"}
    assert pooled_of(nodes, ["sentence", "words"]) == {"words": "sentence"}
    # Of length 1, as a third output.
    nodes.append(("LpNormalization", ["sentence"], "unit", {"axis": 1}))
    assert set(pooled_of(nodes, ["words", "sentence", "unit"])) == {"words", "sentence"}


@pytest.mark.parametrize(
    "nodes",
    [
        # A pooler with weights of its own, as BERT's: it sees the first word only.
        [*STATES, ("Gather", ["words", "zero"], "f", {"axis": 1}), ("Gemm", ["f", "W"], "g"), ("Tanh", ["g"], "y")],
        # The sum of what two layers see.
        [*STATES, ("MatMul", ["words", "W"], "g"), ("Add", ["g", "words"], "y")],
        # Side by side.
        [*STATES, ("MatMul", ["h", "W"], "g"), ("Tanh", ["g"], "y")],
        # Of the same sums before them.
        [*STATES, ("Sin", ["h"], "y")],
        # Of the input.
        [*STATES, ("Tanh", ["x"], "y")],
    ],
)
def test_what_has_weights_of_its_own_is_something_else(nodes: list[Node]) -> None:
    zero: list[Node] = [("ArgMin", ["first"], "zero", {"axis": 0, "keepdims": 0})]
    assert pooled_of([*zero, *nodes], ["words", "y"]) == {}


def test_quantized_weights_are_weights() -> None:
    matrix = onnx.numpy_helper.from_array(np.eye(WIDE, dtype=np.int8), "Q")
    scale = onnx.numpy_helper.from_array(np.array(0.5, np.float32), "scale")
    nodes: list[Node] = [*STATES, ("DequantizeLinear", ["Q", "scale"], "D"), ("MatMul", ["words", "D"], "y")]
    assert pooled_of(nodes, ["words", "y"], [matrix, scale]) == {}


def test_what_subgraphs_do_is_not_looked_at() -> None:
    branch = helper.make_graph(
        [helper.make_node("Neg", ["words"], ["n"])],
        "branch",
        [],
        [helper.make_tensor_value_info("n", onnx.TensorProto.FLOAT, None)],
    )
    mean: list[Node] = [("ReduceMax", ["mask"], "m", {"keepdims": 0}), ("Cast", ["m"], "c", {"to": 9})]
    choice: Node = ("If", ["c"], "y", {"then_branch": branch, "else_branch": branch})
    assert pooled_of([*STATES, *mean, choice], ["words", "y"]) == {}

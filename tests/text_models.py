"""A small network over words: a table that is looked up, and two layers."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from tiny_models import CLASSES, FEATURES, HIDDEN, IR_VERSION, OPSET, initializer

WORDS, LENGTH, SAMPLES = 600, 5, 200


def text_model(*, tied: bool = False, by_length: bool = False) -> onnx.ModelProto:
    """``ids [N, 5] -> table -> mean -> fc1 -> relu -> fc2``.

    Args:
        tied: scores of words by the table's transpose instead.
        by_length: what comes out of fc1 is multiplied by a row of another table, which the number of words chooses.
    """
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["vectors"], name="table"),
        helper.make_node("ReduceMean", ["vectors"], ["mean"], name="mean", axes=[1], keepdims=0),
    ]
    rng = np.random.default_rng(0)
    # In a space of 12 dimensions: of words that were never seen, too, something can be learned.
    words = rng.standard_normal((WORDS, 12)) @ rng.standard_normal((12, FEATURES)) / 3
    weights = [numpy_helper.from_array(words.astype(np.float32), "words")]
    if tied:
        nodes += [
            helper.make_node("Transpose", ["words"], ["turned"], name="turn", perm=[1, 0]),
            helper.make_node("MatMul", ["mean", "turned"], ["y"], name="head"),
        ]
    else:
        nodes.append(helper.make_node("Gemm", ["mean", "W1"], ["h"], name="fc1", transB=1))
        if by_length:
            nodes += [
                helper.make_node("Shape", ["ids"], ["sizes"], name="sizes"),
                helper.make_node("Gather", ["sizes", "second"], ["length"], name="length"),
                helper.make_node("Gather", ["factors", "length"], ["factor"], name="factors"),
                helper.make_node("Mul", ["h", "factor"], ["scaled"], name="scaled"),
            ]
            weights += [
                initializer("factors", 32, HIDDEN, seed=4),
                numpy_helper.from_array(np.array(1), "second"),
            ]
        nodes += [
            helper.make_node("Relu", ["scaled" if by_length else "h"], ["a"], name="act"),
            helper.make_node("Gemm", ["a", "W2"], ["y"], name="fc2", transB=1),
        ]
        weights += [
            initializer("W1", HIDDEN, FEATURES, seed=1),
            initializer("W2", CLASSES, HIDDEN, seed=2),
        ]
    graph = helper.make_graph(
        nodes,
        "text",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", LENGTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", WORDS if tied else CLASSES])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def texts(count: int = SAMPLES, seed: int = 3) -> dict[str, np.ndarray]:
    return {"ids": np.random.default_rng(seed).integers(0, WORDS, (count, LENGTH))}

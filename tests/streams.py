"""Models that are called with more than samples side by side, and their calls: states, caches, steps first.

Weights are random, of sizes at which attention and gates are neither linear nor saturated.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tiny_models import IR_VERSION, OPSET, initializer

import onnxpq

FEATURES, WIDTH, HIDDEN, CLASSES, WORDS = 24, 32, 128, 12, 60
"""Sizes; two layers between WIDTH and HIDDEN are large enough for a compressed file to be smaller."""

Call = dict[str, NDArray[np.generic]]


def _model(
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, list[int | str]]],
    outputs: Mapping[str, list[int | str]],
    weights: list[onnx.TensorProto],
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "streams",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)


def _constant(name: str, *values: int) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.array(values, np.int64), name)


def _head(source: str, scores: str = "y") -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Two layers from `source` [..., WIDTH] to scores [..., CLASSES]."""
    nodes = [
        helper.make_node("MatMul", [source, "W1"], ["h1"], name="fc1"),
        helper.make_node("Relu", ["h1"], ["h2"], name="act"),
        helper.make_node("MatMul", ["h2", "W2"], [scores], name="fc2"),
    ]
    weights = [
        initializer("W1", WIDTH, HIDDEN, seed=11, scale=WIDTH**-0.5),
        initializer("W2", HIDDEN, CLASSES, seed=12, scale=2 * HIDDEN**-0.5),
    ]
    return nodes, weights


def tagger(*, steps_first: bool, steps: int | str = "T", batch: int | str = "N") -> onnx.ModelProto:
    """A GRU over the steps and two layers: x [T, N, FEATURES] -> y [T, N, CLASSES], or both [N, T, ...]."""
    shape: list[int | str] = [steps, batch] if steps_first else [batch, steps]
    turned = helper.make_node("Transpose", ["x"], ["t"], name="turn", perm=[1, 0, 2])
    nodes = [
        *([] if steps_first else [turned]),
        helper.make_node("GRU", ["x" if steps_first else "t", "W", "R"], ["g"], name="gru", hidden_size=WIDTH),
        helper.make_node("Squeeze", ["g", "one"], ["s"], name="squeeze"),
    ]
    head, weights = _head("s", "y" if steps_first else "scores")
    nodes += head
    if not steps_first:
        nodes.append(helper.make_node("Transpose", ["scores"], ["y"], name="back", perm=[1, 0, 2]))
    weights += [
        initializer("W", 1, 3 * WIDTH, FEATURES, seed=1, scale=FEATURES**-0.5),
        initializer("R", 1, 3 * WIDTH, WIDTH, seed=2, scale=WIDTH**-0.5),
        _constant("one", 1),
    ]
    return _model(nodes, {"x": (TensorProto.FLOAT, [*shape, FEATURES])}, {"y": [*shape, CLASSES]}, weights)


def stream(*, batch: int | str = 1) -> onnx.ModelProto:
    """A frame and a state: x [batch, FEATURES], state [2, batch, WIDTH] -> y [batch, CLASSES], next_state."""
    nodes = [
        helper.make_node("MatMul", ["x", "W0"], ["z"], name="fc0"),
        helper.make_node("MatMul", ["state", "R"], ["r"], name="recurrent"),
        helper.make_node("Add", ["r", "z"], ["a"], name="add"),
        helper.make_node("Tanh", ["a"], ["next_state"], name="gate"),
        helper.make_node("ReduceMean", ["next_state"], ["m"], name="mean", axes=[0], keepdims=0),
    ]
    head, weights = _head("m")
    weights += [
        initializer("W0", FEATURES, WIDTH, seed=1, scale=FEATURES**-0.5),
        initializer("R", WIDTH, WIDTH, seed=2, scale=WIDTH**-0.5),
    ]
    inputs = {"x": (TensorProto.FLOAT, [batch, FEATURES]), "state": (TensorProto.FLOAT, [2, batch, WIDTH])}
    return _model([*nodes, *head], inputs, {"y": [batch, CLASSES], "next_state": [2, batch, WIDTH]}, weights)


def decoder() -> onnx.ModelProto:
    """Attention with a cache: ids [batch, seq], past_* [batch, past, WIDTH] -> y [batch, seq, CLASSES], present_*."""
    node = helper.make_node
    nodes = [node("Gather", ["E", "ids"], ["e"], name="embed")]
    for part in ("key", "value"):
        nodes += [
            node("MatMul", ["e", f"W_{part}"], [part], name=f"fc_{part}"),
            node("Concat", [f"past_{part}", part], [f"present_{part}"], name=f"concat_{part}", axis=1),
        ]
    nodes += [
        node("Transpose", ["present_key"], ["kt"], name="turn", perm=[0, 2, 1]),
        node("MatMul", ["e", "kt"], ["s"], name="scores"),
        node("Softmax", ["s"], ["p"], name="softmax", axis=-1),
        node("MatMul", ["p", "present_value"], ["c"], name="context"),
        node("Add", ["c", "e"], ["sum"], name="add"),
    ]
    head, weights = _head("sum")
    weights += [
        initializer(f"W_{part}", WIDTH, WIDTH, seed=seed, scale=0.5 / WIDTH)
        for seed, part in enumerate(("key", "value"))
    ]
    weights.append(initializer("E", WORDS, WIDTH, seed=5))
    cache: list[int | str] = ["batch", "past", WIDTH]
    inputs = {
        "ids": (TensorProto.INT64, ["batch", "seq"]),
        "past_key": (TensorProto.FLOAT, cache),
        "past_value": (TensorProto.FLOAT, cache),
    }
    total: list[int | str] = ["batch", "total", WIDTH]
    outputs = {"y": ["batch", "seq", CLASSES], "present_key": total, "present_value": total}
    return _model([*nodes, *head], inputs, outputs, weights)


def sequences(lengths: NDArray[np.integer], seed: int) -> list[NDArray[np.float32]]:
    """Signals [length, FEATURES] that change slowly."""
    rng = np.random.default_rng(seed)
    noise = (rng.standard_normal((length, FEATURES)) for length in lengths)
    return [np.cumsum(0.5 * rows, 0).astype(np.float32) for rows in noise]


def stream_calls(count: int, seed: int) -> Iterator[Call]:
    """The calls of a stream: each goes on with the state that the one before gave."""
    session = onnxpq.session(stream(), use_library=False)
    state = np.zeros((2, 1, WIDTH), np.float32)
    for frame in sequences(np.array([count]), seed)[0]:
        call = {"x": frame[None], "state": state}
        yield call
        state = session.run(["next_state"], call)[0]


def decoder_calls(count: int, seed: int) -> Iterator[Call]:
    """Calls of a decoder, with caches and texts of many lengths."""
    rng, session = np.random.default_rng(seed), onnxpq.session(decoder(), use_library=False)
    for _ in range(count):
        batch, past, seq = rng.integers(1, 4), rng.integers(0, 9), rng.integers(1, 7)
        empty = np.zeros((batch, 0, WIDTH), np.float32)
        cache = {"past_key": empty, "past_value": empty}
        if past:
            before = {"ids": rng.integers(0, WORDS, (batch, past)), **cache}
            cache = dict(zip(cache, session.run(["present_key", "present_value"], before), strict=True))
        yield {"ids": rng.integers(0, WORDS, (batch, seq)), **cache}


def write(folder: Path, calls: Iterator[Call]) -> Path:
    """A folder with an .npz file for each call."""
    folder.mkdir()
    for index, call in enumerate(calls):
        np.savez(folder / f"{index:04}.npz", **call)
    return folder

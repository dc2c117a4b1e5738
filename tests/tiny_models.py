"""Small models of known weights, and data for them: for tests that run whole stages or the command line."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

OPSET = 17
IR_VERSION = 8
FEATURES, HIDDEN, CLASSES = 64, 128, 10
"""Sizes of `mlp`: large enough for its compressed file to be smaller in spite of the function body."""


def initializer(name: str, *shape: int, seed: int, scale: float = 1.0) -> onnx.TensorProto:
    values = np.random.default_rng(seed).standard_normal(shape)
    return numpy_helper.from_array((scale * values).astype(np.float32), name)


def build(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[int | str]],
    outputs: dict[str, list[int | str]],
    initializers: list[onnx.TensorProto],
    *,
    output_types: dict[str, int] | None = None,
    domains: tuple[str, ...] = (),
) -> onnx.ModelProto:
    """A model of float inputs, and of float outputs but for `output_types`."""
    types = output_types or {}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(n, types.get(n, TensorProto.FLOAT), shape) for n, shape in outputs.items()],
        initializers,
    )
    imports = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)


def mlp(
    *, seed: int = 0, batch: int | str = "N", activation: str = "Relu", domain: str = "", labels: bool = False
) -> onnx.ModelProto:
    """``x [batch, 64] -> fc1 -> act -> fc2 -> logits [batch, 10]``, two Gemm of constant weights.

    Args:
        seed: of the weights.
        batch: first dimension.
        activation: operator between them, named "act".
        domain: of the latter.
        labels: whether the model also gives `label`, the int64 index of the largest logit.
    """
    nodes = [
        helper.make_node("Gemm", ["x", "W1", "b1"], ["h"], name="fc1", transB=1),
        helper.make_node(activation, ["h"], ["a"], name="act", domain=domain),
        helper.make_node("Gemm", ["a", "W2", "b2"], ["logits"], name="fc2", transB=1),
    ]
    outputs: dict[str, list[int | str]] = {"logits": [batch, CLASSES]}
    if labels:
        nodes.append(helper.make_node("ArgMax", ["logits"], ["label"], name="top", axis=1, keepdims=0))
        outputs["label"] = [batch]
    return build(
        nodes,
        {"x": [batch, FEATURES]},
        outputs,
        [
            initializer("W1", HIDDEN, FEATURES, seed=seed, scale=0.2),
            initializer("b1", HIDDEN, seed=seed + 1, scale=0.1),
            initializer("W2", CLASSES, HIDDEN, seed=seed + 2, scale=0.2),
            initializer("b2", CLASSES, seed=seed + 3, scale=0.1),
        ],
        output_types={"label": TensorProto.INT64},
        domains=(domain,) if domain else (),
    )


def samples(count: int = 60, *, seed: int = 7) -> NDArray[np.float32]:
    """Inputs of `mlp`."""
    return np.random.default_rng(seed).standard_normal((count, FEATURES)).astype(np.float32)


def classes(count: int = 60, *, seed: int = 8) -> NDArray[np.int64]:
    """Labels of `mlp`, right by chance only."""
    return np.random.default_rng(seed).integers(0, CLASSES, count)


def save_model(path: Path, model: onnx.ModelProto) -> Path:
    path.write_bytes(model.SerializeToString())
    return path


def save_data(path: Path, **arrays: NDArray[Any]) -> Path:
    np.savez(path, **arrays)
    return path

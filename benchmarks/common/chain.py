"""Chains of layers: models of any size and depth."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def build(path: Path, layers: int, width: int) -> None:
    """Write a chain of square layers with random weights in float32 and a Relu after each."""
    random = np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(layers):
        values = (random.standard_normal((width, width)) * (2 / width) ** 0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [f"a{i}" if i else "x", f"w{i}"], [f"m{i}"], name=f"fc{i}"))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [f"a{i + 1}" if i < layers - 1 else "y"], name=f"act{i}"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])
    graph = helper.make_graph(nodes, "chain", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)

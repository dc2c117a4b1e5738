"""A small network and its data, as benchmarks/paper takes them."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from benchmarks.paper import tasks
from onnxpq import runtime

SIZES = (32, 40, 5)
SAMPLES = 600


def network(*, gemm: bool) -> onnx.ModelProto:
    """32-40-5 with ReLU, as Gemm with weights [out, in] or as MatMul and Add with [in, out]."""
    rng = np.random.default_rng(0)
    nodes, constants, value = [], [], "x"
    for number, (columns, out) in enumerate(pairwise(SIZES)):
        weight = (rng.standard_normal((out, columns)) * (2 / columns) ** 0.5).astype(np.float32)
        names = f"w{number}", f"b{number}", "y" if number else "hidden"
        constants.append(numpy_helper.from_array(weight if gemm else weight.T.copy(), names[0]))
        constants.append(numpy_helper.from_array(rng.standard_normal(out).astype(np.float32) / 10, names[1]))
        if gemm:
            nodes.append(helper.make_node("Gemm", [value, *names[:2]], [names[2]], name=f"fc{number}", transB=1))
        else:
            nodes.append(helper.make_node("MatMul", [value, names[0]], [f"p{number}"], name=f"fc{number}"))
            nodes.append(helper.make_node("Add", [f"p{number}", names[1]], [names[2]], name=f"add{number}"))
        if not number:
            nodes.append(helper.make_node("Relu", ["hidden"], ["active"], name="relu"))
            value = "active"
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", s]) for n, s in (("x", 32), ("y", 5)))
    graph = helper.make_graph(nodes, "small", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture(params=["gemm", "matmul"])
def task(request: pytest.FixtureRequest, tmp_path: Path) -> tasks.Task:
    """A task whose labels are the network's own guesses, so that the original has no error."""
    path = tmp_path / "small.onnx"
    onnx.save(network(gemm=request.param == "gemm"), path)
    rng = np.random.default_rng(1)
    images = rng.standard_normal((SAMPLES, SIZES[0])).astype(np.float32)
    (scores,) = runtime.session(path).run(None, {"x": images})
    labels = scores.argmax(1).astype(np.int64)
    split = SAMPLES * 3 // 4
    train, test = (images[:split], labels[:split]), (images[split:], labels[split:])
    return tasks.of_file(path, train, test, cache_dir=tmp_path / "cache")

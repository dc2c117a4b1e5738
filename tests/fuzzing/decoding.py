"""The original with the weights that a result's codes stand for, beside the result: what else was changed?

The weight of a node is what its function gives for the rows of a unit matrix; nothing of onnxpq decodes here.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxpq.report import Report

BUDGET, HALF_BUDGET = 2e-3, 3e-2
"""Relative L2 difference, of float32 and where float16 rounds: the order of sums is another one."""


def faults(before: Path, path: Path, report: Report, samples: dict[str, Any], size: int | None) -> list[str]:
    """What differs by more than the weights; nothing is said where these cannot be told, as of parts of a tensor."""
    original, result = onnx.load(before), onnx.load(path)
    nodes = {node.name: node for node in _nodes(result.graph) if node.op_type == "PQMatMul"}
    factors = {node.name: _factor(node) for node in _nodes(original.graph)}
    stored = {tensor.name: tensor for tensor in original.graph.initializer}
    reference = onnx.load(before)
    tensors = {tensor.name: tensor for tensor in reference.graph.initializer}
    is_scaled = any("one scale" in note for note in report.notes)
    for layer in report.layers:
        node = nodes.get(layer.node)
        if node is None or layer.node not in factors or layer.weight not in stored or is_scaled:
            return []
        known = numpy_helper.to_array(stored[layer.weight])
        decoded = _decoded(result, node, layer.shape)
        if decoded is None or known.size != decoded.size:
            return []
        decoded = decoded / factors[layer.node]
        forms = [decoded.reshape(known.shape), decoded.T.reshape(known.shape)]
        nearest = min(forms, key=lambda form: float(np.square(form - known.astype(np.float64)).sum()))
        tensors[layer.weight].CopyFrom(numpy_helper.from_array(nearest.astype(known.dtype), layer.weight))
    is_half = any(t.data_type in (onnx.TensorProto.FLOAT16,) for t in original.graph.initializer)
    budget = HALF_BUDGET if is_half or "float16" in {str(a.dtype) for a in samples.values()} else BUDGET
    return _compared(reference.SerializeToString(), path, samples, size, budget)


def _nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    inner = [n for node in graph.node for attribute in node.attribute for n in _nodes(attribute.g)]
    return [*graph.node, *inner]


def _factor(node: onnx.NodeProto) -> float:
    """What a layer multiplies its product by, which its codes stand for as well."""
    return next((attribute.f for attribute in node.attribute if attribute.name == "alpha"), 1.0)


def _decoded(model: onnx.ModelProto, node: onnx.NodeProto, shape: tuple[int, int]) -> NDArray[np.float64] | None:
    """[out, in], by the function in the file."""
    tensors = [tensor for tensor in model.graph.initializer if tensor.name in node.input]
    if len(tensors) != len(set(node.input[1:])):
        return None
    call = onnx.NodeProto()
    call.CopyFrom(node)
    call.input[0], call.output[0] = "rows", "found"
    wide = onnx.TensorProto.FLOAT
    rows, found = (helper.make_tensor_value_info(name, wide, [None, None]) for name in ("rows", "found"))
    small = helper.make_model(
        helper.make_graph([call], "decoding", [rows], [found], tensors),
        opset_imports=model.opset_import,
        functions=list(model.functions),
        ir_version=model.ir_version,
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(small.SerializeToString(), options, providers=["CPUExecutionProvider"])
    unit = np.concatenate([np.zeros((1, shape[1])), np.eye(shape[1])]).astype(np.float32)
    values = session.run(None, {"rows": unit})[0].astype(np.float64)
    return np.asarray((values[1:] - values[0]).T)


def _compared(reference: bytes, path: Path, samples: dict[str, Any], size: int | None, budget: float) -> list[str]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    feeds = {name: array[:size] if size else array for name, array in samples.items()}
    one, two = (
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feeds)
        for model in (reference, str(path))
    )
    found = []
    for index, (expected, given) in enumerate(zip(one, two, strict=True)):
        if (
            isinstance(expected, list)
            or not np.issubdtype(expected.dtype, np.floating)
            or expected.shape != given.shape
        ):
            continue
        gap = float(np.linalg.norm(expected.astype(np.float64) - given)) if expected.size else 0.0
        whole = float(np.linalg.norm(expected.astype(np.float64)))
        if gap > budget * whole and gap > 1e-5 * max(1, expected.size) ** 0.5:
            found.append(f"output {index}: {gap / max(whole, 1e-30):.2e} from the original with the decoded weights")
    return found

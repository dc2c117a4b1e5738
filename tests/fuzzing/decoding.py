"""The original with the weights that a result's codes stand for, beside the result: what else was changed?

The weight of a node is what the node's function in the file gives for the rows of a unit matrix, and that of a table
what it gives for all rows; nothing of onnxpq decodes here.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from onnxpq.report import LayerReport, Report

BUDGET, HALF_BUDGET = 2e-3, 3e-2
"""Relative L2 difference, of float32 and where float16 rounds: the order of sums is another one."""

OPERATORS = ("PQMatMul", "PQGather")

Array = NDArray[Any]


def faults(before: Path, after: Path, report: Report, samples: dict[str, Any], size: int | None) -> list[str] | None:
    """What differs by more than the weights; None where these cannot be told, as of matrices within a tensor.

    Args:
        before: file of the original.
        after: file of the result, which was not trained.
        report: of the result.
        samples: of the inputs.
        size: samples in a call; None for all.
    """
    original, result = onnx.load(before), onnx.load(after)
    if any("one scale" in note for note in report.notes):
        return None
    nodes = {node.name: node for graph in _graphs(result.graph) for node in graph.node if node.op_type in OPERATORS}
    found: dict[str, Array] = {}
    for layer in report.layers:
        decoded = _decoded(result, nodes.get(layer.node), layer)
        factor = _factor(original, layer)
        known = _known(original, layer.weight)
        if decoded is None or factor is None or known is None or known.size != decoded.size:
            return None
        forms = [(decoded / factor).reshape(known.shape), (decoded / factor).T.reshape(known.shape)]
        nearest = min(forms, key=lambda form: float(np.square(form - known.astype(np.float64)).sum()))
        found[layer.weight] = nearest.astype(known.dtype)
    for name, array in found.items():
        _replace(original, name, array)
    halves = {"float16"} & {*(str(a.dtype) for a in samples.values()), *(str(a.dtype) for a in found.values())}
    is_half = halves or any(t.data_type == onnx.TensorProto.FLOAT16 for t in original.graph.initializer)
    return _compared(original.SerializeToString(), after, samples, size, HALF_BUDGET if is_half else BUDGET)


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and those inside it."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _graphs(attribute.g)


def _factor(model: onnx.ModelProto, layer: LayerReport) -> float | None:
    """What a layer multiplies its product by, which its codes stand for as well; None where that is not known."""
    nodes = [node for graph in _graphs(model.graph) for node in graph.node]
    own = [node for node in nodes if node.name == layer.node] or [node for node in nodes if layer.weight in node.input]
    found = {next((attribute.f for attribute in node.attribute if attribute.name == "alpha"), 1.0) for node in own}
    return found.pop() if len(found) == 1 else None


def _known(model: onnx.ModelProto, name: str) -> Array | None:
    """A constant of the original: stored, or made of stored ones by a node."""
    stored = {tensor.name: tensor for graph in _graphs(model.graph) for tensor in graph.initializer}
    if name in stored:
        return numpy_helper.to_array(stored[name])
    makers = {output: node for graph in _graphs(model.graph) for node in graph.node for output in node.output}
    if name not in makers:
        return None
    needed, pending = [], [name]
    while pending:
        node = makers.get(pending.pop())
        if node is not None and node not in needed:
            needed.append(node)
            pending += node.input
    if any(node.op_type not in ("Constant", "Transpose", "Reshape", "Slice", "Cast", "Identity") for node in needed):
        return None
    tensors = [stored[given] for node in needed for given in node.input if given in stored]
    result = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
    graph = helper.make_graph(needed[::-1], "constant", [], [result], list({t.name: t for t in tensors}.values()))
    # Nothing is checked here but the value.
    small = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return np.asarray(ReferenceEvaluator(small).run(None, {})[0])


def _replace(model: onnx.ModelProto, name: str, array: Array) -> None:
    """Another value for a constant, in the place of the tensor or node that it comes from."""
    tensor = numpy_helper.from_array(array, name)
    for graph in _graphs(model.graph):
        for stored in graph.initializer:
            if stored.name == name:
                stored.CopyFrom(tensor)
                return
        for node in graph.node:
            if name in node.output:
                graph.node.remove(node)
                graph.initializer.append(tensor)
                return
    raise AssertionError(f"{name} was there when its value was asked for")


def _decoded(model: onnx.ModelProto, node: onnx.NodeProto | None, layer: LayerReport) -> Array | None:
    """[out, in], by the function in the file; None where the codes are none of the file's initializers."""
    if node is None:
        return None
    stored = [tensor for graph in _graphs(model.graph) for tensor in graph.initializer if tensor.name in node.input]
    if len(stored) != len(set(node.input[1:])):
        return None
    call = onnx.NodeProto()
    call.CopyFrom(node)
    call.input[0], call.output[0] = "rows", "found"
    is_table = node.op_type == "PQGather"
    kind = onnx.TensorProto.INT64 if is_table else onnx.TensorProto.FLOAT
    given = helper.make_tensor_value_info("rows", kind, [None] if is_table else [None, None])
    result = helper.make_tensor_value_info("found", onnx.TensorProto.FLOAT, [None, None])
    small = helper.make_model(
        helper.make_graph([call], "decoding", [given], [result], stored),
        opset_imports=model.opset_import,
        functions=list(model.functions),
        ir_version=model.ir_version,
    )
    out, width = layer.shape
    if is_table:
        return _run(small.SerializeToString(), {"rows": np.arange(out)})[0].astype(np.float64)
    unit = np.concatenate([np.zeros((1, width)), np.eye(width)]).astype(np.float32)
    values = _run(small.SerializeToString(), {"rows": unit})[0].astype(np.float64)
    return np.asarray((values[1:] - values[0]).T)


def _run(model: bytes | str, feeds: dict[str, Any]) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def _compared(reference: bytes, path: Path, samples: dict[str, Any], size: int | None, budget: float) -> list[str]:
    feeds = {name: array[:size] if size else array for name, array in samples.items()}
    found = []
    for index, (expected, given) in enumerate(zip(_run(reference, feeds), _run(str(path), feeds), strict=True)):
        if isinstance(expected, list) or not np.issubdtype(expected.dtype, np.floating):
            continue
        if expected.shape != given.shape:
            continue
        gap = float(np.linalg.norm(expected.astype(np.float64) - given)) if expected.size else 0.0
        whole = float(np.linalg.norm(expected.astype(np.float64)))
        if gap > budget * whole and gap > 1e-5 * max(1, expected.size) ** 0.5:
            found.append(f"output {index}: {gap / max(whole, 1e-30):.2e} from the original with the decoded weights")
    return found

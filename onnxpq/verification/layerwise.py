"""Native operator against function body, layer by layer on the same inputs: is it a defect that outputs differ?

Both round differently, by two thousandths of a layer's output. Behind that a model may have what makes more of it:
ArgMax and what is looked up by it, rounding, a function that saturates. Then whole outputs say nothing of the operator.
"""

import math
from dataclasses import dataclass
from functools import partial
from os import PathLike
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq import runtime
from onnxpq.data import Dataset
from onnxpq.errors import ModelError, OnnxpqError
from onnxpq.graph import files, node_label, subgraphs
from onnxpq.operators import DOMAIN, KERNEL_OP_TYPES, LOOKUP_OP_TYPE, MATMUL_OP_TYPES
from onnxpq.runtime import activations

ROWS: Final = 256
"""Inputs of a layer that are looked at."""


@dataclass(frozen=True)
class Gap:
    """How far the two are apart for a layer: relative L2 difference of its output; infinite where nobody can tell."""

    node: str
    relative: float


def worst(compressed: str | PathLike[str], data: Dataset, libraries: runtime.Libraries) -> Gap | None:
    """The layer whose two forms differ most for the inputs that it has in the model.

    Args:
        compressed: file of the compressed model.
        data: samples.
        libraries: custom-operator libraries that the model needs.

    Returns:
        The layer, or None where there is none.
    """
    model = files.load(compressed)
    # The others are functions in any case.
    nodes = [node for node in model.graph.all_nodes() if node.domain == DOMAIN and node.op_type in KERNEL_OP_TYPES]
    gaps = [Gap(node_label(node), _relative(model, node, data, libraries)) for node in nodes]
    return max(gaps, key=lambda gap: gap.relative, default=None)


def _relative(model: ir.Model, node: ir.Node, data: Dataset, libraries: runtime.Libraries) -> float:
    given, is_lookup = node.inputs[0], node.op_type == LOOKUP_OP_TYPE
    if given is None or given.name is None:
        raise AssertionError("an operator of onnxpq has an input")
    try:
        source = model if node.graph is model.graph else subgraphs.expose(model, [given.name])
        capture = partial(activations.capture_rows, limit=ROWS, flatten=not is_lookup, cache_dir=None)
        rows = capture(source, given.name, data, libraries=libraries)
        alone = _alone(model, node, given.name, rows.dtype)
        outputs = [runtime.run(runtime.session(alone, use_library=use), {given.name: rows}) for use in (False, True)]
    except OnnxpqError:
        return math.inf
    return _distance(*(next(iter(values.values())) for values in outputs))


def _alone(model: ir.Model, node: ir.Node, name: str, dtype: np.dtype[Any]) -> ir.Model:
    """A model of a copy of the node, which takes what its first input is and holds the others.

    Raises:
        ModelError: another input is no constant.
    """
    tensors = [None if value is None else value.const_value for value in node.inputs[1:]]
    if None in tensors:
        raise ModelError(f"The codes of node '{node_label(node)}' are computed.")
    kind = ir.TensorType(ir.DataType.from_numpy(dtype))
    given = ir.Value(name=name, type=kind)
    stored = [ir.Value(name=f"stored.{i}", const_value=tensor) for i, tensor in enumerate(tensors)]
    output = ir.Value(name="output", type=kind if node.op_type in MATMUL_OP_TYPES else ir.TensorType(ir.DataType.FLOAT))
    attributes = list(node.attributes.values())
    copy = ir.Node(node.domain, node.op_type, [given, *stored], attributes, outputs=[output])
    imports = dict(model.opset_imports)
    graph = ir.Graph([given], [output], nodes=[copy], initializers=stored, opset_imports=imports, name="layer")
    functions = [function.clone() for function in model.functions.values() if function.domain == DOMAIN]
    return ir.Model(graph, ir_version=model.ir_version, functions=functions)


def _distance(one: NDArray[Any], other: NDArray[Any]) -> float:
    exact, found = one.astype(np.float64), other.astype(np.float64)
    gap, whole = float(np.linalg.norm(found - exact)), float(np.linalg.norm(exact))
    return 0.0 if gap == 0 else gap / whole if whole > 0 else math.inf

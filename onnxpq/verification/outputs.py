"""What an output of a model is: scores of classes, whose largest entry is the answer, or numbers, which all count.

No file says so. Labels tell; without any it is read off the values and the operators that they come from. An embedding
taken for scores would be judged by which of its entries is the largest, which nobody asks of it; scores taken for
numbers are judged more strictly than they need be. So what is not known to give scores gives numbers.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq.graph import node_label, subgraphs_of
from onnxpq.network import dependents
from onnxpq.verification.metrics import are_one, are_probabilities, is_scores

_LINEAR: Final = frozenset(
    {
        "Conv",
        "Einsum",
        "FusedGemm",
        "FusedMatMul",
        "Gemm",
        "LinearClassifier",
        "MatMul",
        "MatMulInteger",
        "MatMulNBits",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
        "SVMClassifier",
        "TreeEnsembleClassifier",
    }
)
"""A classifier ends with one of these."""

_AFTER: Final = frozenset(
    {
        "AveragePool",
        "BatchNormalization",
        "Cast",
        "DequantizeLinear",
        "Dropout",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Identity",
        "Log",
        "LogSoftmax",
        "QuantizeLinear",
        "Sigmoid",
        "Softmax",
    }
)
"""What may follow it; scores stay in their places."""

_MOVING: Final = frozenset(
    {
        "Flatten",
        "Gather",
        "ReduceMax",
        "ReduceMean",
        "Reshape",
        "Slice",
        "Split",
        "Squeeze",
        "Transpose",
        "Unsqueeze",
    }
)
"""What may follow it, too; channels need not be where they were."""

_SUMS: Final = frozenset({"Add", "Concat", "Mean", "Sub", "Sum"})
"""Of several scores, as an ensemble's, or side by side."""

_SCALING: Final = frozenset({"Div", "Mul"})
"""By a constant; a product of two computed values is a mean over a mask, a gate, or a division by a length."""

_CHANNELS_BEFORE: Final = frozenset({"Conv", "QLinearConv"})
"""Operators whose scores lie along the second axis, not along the last one."""


def not_scores(graph: ir.Graph, name: str, values: NDArray[np.generic]) -> str | None:
    """What speaks against reading an output as scores of classes along its last axis.

    Scores are probabilities, or their logarithms, or what comes of a linear layer by nothing but constant factors,
    sums, means, changes of shape, softmax or sigmoid. A linear layer whose outputs are an embedding or a forecast looks
    the same and is read as scores.

    Args:
        graph: that of a normalised model (`onnxpq.graph.normalising.normalise`).
        name: of the output.
        values: what the model gives there for some samples, [n, ...].

    Returns:
        The reason, as the rest of a sentence that begins with the output; None where nothing speaks against it.
    """
    if not is_scores(values):
        return "has one number per sample"
    if values.size == 0 or are_probabilities(values) or are_probabilities(_exponential(values)):
        return None
    if are_one(np.square(values, dtype=np.float64).sum(-1)):
        return "holds vectors of length 1"
    return _other_origin(graph, next(value for value in graph.outputs if value.name == name))


def is_sigmoid(graph: ir.Graph, name: str) -> bool:
    """Whether an output is a sigmoid's, but for changes of shape and type: a probability, which decides at one half.

    Args:
        graph: that of a normalised model.
        name: of the output.
    """
    value = next(value for value in graph.outputs if value.name == name)
    node = value.producer()
    while node is not None and node.op_type in _MOVING | {"Cast", "Identity"} and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "Sigmoid"


def pooled(graph: ir.Graph, names: Sequence[str]) -> dict[str, str]:
    """Outputs that another one is computed from without any further weights, as sentences are from their words.

    Users want the latter. The former are there for those who pool for themselves, and hold what fills up batches, too.

    Args:
        graph: that of a normalised model.
        names: of the outputs to look at.

    Returns:
        For each of them that another one of them is made of, the name of that one.
    """
    values = {value.name or "": value for value in graph.outputs}
    found = {}
    for name in names:
        makes_of_it = (other for other in names if other != name and _is_made_of(values[other], values[name]))
        if (other := next(makes_of_it, None)) is not None:
            found[name] = other
    return found


def _is_made_of(output: ir.Value, part: ir.Value) -> bool:
    """Whether an output is computed from another value, inputs and constants that are no weights."""
    pending, seen = [output], {part}
    uses_part = False
    while pending:
        value = pending.pop()
        uses_part |= value is part
        if value in seen:
            continue
        seen.add(value)
        node = value.producer()
        # What subgraphs hold is not looked at.
        if _is_weight(value) or (node is not None and next(subgraphs_of(node), None) is not None):
            return False
        pending += [] if node is None else [given for given in node.inputs if given is not None]
    return uses_part


def _is_weight(value: ir.Value) -> bool:
    """Whether it is an initializer of several floats, or of a matrix of anything (quantized weights)."""
    tensor = value.const_value if value.is_initializer() else None
    if tensor is None or tensor.size == 1:
        return False
    return tensor.dtype.is_floating_point() or len(tensor.shape) > 1


def _exponential(values: NDArray[np.generic]) -> NDArray[np.float64]:
    """Probabilities from their logarithms; of other values something else, without overflow."""
    found: NDArray[np.float64] = np.exp(np.minimum(values, 1, dtype=np.float64))
    return found


def _other_origin(graph: ir.Graph, output: ir.Value) -> str | None:
    """The nearest thing behind an output that gives no scores there; None where all is linear layers."""
    computed = dependents(graph, graph.inputs)
    pending, seen = deque([(output, False)]), set()
    while pending:
        value, moved = entry = pending.popleft()
        if entry in seen or value not in computed:
            continue
        seen.add(entry)
        node = value.producer()
        if node is None:
            return f"repeats input '{value.name}'"
        if node.op_type in _LINEAR and (moved or node.op_type not in _CHANNELS_BEFORE):
            continue
        followed = _followed(node, computed)
        if not followed:
            return f"is computed by {node.op_type} '{node_label(node)}'"
        pending += [(given, moved or node.op_type in _MOVING) for given in followed]
    return None


def _followed(node: ir.Node, computed: set[ir.Value]) -> list[ir.Value]:
    """The inputs of a node whose scores are those of its outputs, if they are any."""
    used = [value for value in node.inputs if value is not None and value in computed]
    if node.op_type in _SUMS or (node.op_type in _SCALING and len(used) == 1):
        return used
    # The others are sizes and places.
    return used[:1] if node.op_type in _AFTER | _MOVING and node.inputs[0] in used else []

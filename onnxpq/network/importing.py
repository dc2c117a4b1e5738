"""ONNX -> `Network`, and the proof that the network computes what onnxruntime computes."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from onnxpq import runtime
from onnxpq.errors import ForwardMismatchError
from onnxpq.graph import node_label, normalise
from onnxpq.network.module import Network

FORWARD_TOLERANCE = 1e-3
"""Largest relative L2 difference between a value of the network and of onnxruntime."""

HALF_FORWARD_TOLERANCE = 2e-2
"""The same for models that compute in float16 or bfloat16, where runtimes round at different places."""

FORWARD_ABSOLUTE = 2.5e-7
"""Root mean square difference that is none, however small the values are: what functions with values up to 1, such as
onnxruntime's sigmoid, are exact to near 0 (1e-7 was found at 5e-6)."""

NOISE = 1e-6
"""Root mean square below which a value counts as rounding noise of float32: its differences are relative to this."""


@dataclass(frozen=True)
class ForwardCheck:
    """The worst agreement of all values of a network with onnxruntime.

    Attributes:
        max_abs: largest absolute difference of any element of any value.
        max_rel: largest relative L2 difference of any value, but for those that differ by rounding near 0.
        node: the node that has it, "" if the graph has no floating-point value.
        value: the value that has it.
    """

    max_abs: float
    max_rel: float
    node: str
    value: str


def import_model(model: ir.Model) -> Network:
    """Make a trainable network of a model.

    Args:
        model: any valid model; it is normalised first, on a copy.

    Raises:
        UnsupportedOperatorError: if a node has no handler; it names the node, the operator, its domain and version.
        ModelError: see `normalise`.
    """
    return Network(normalise(model))


def check_forward(
    network: Network,
    model: ir.Model,
    inputs: Mapping[str, np.ndarray[Any, Any]],
    *,
    libraries: runtime.Libraries = (),
) -> ForwardCheck:
    """Compare every floating-point value of the network with onnxruntime's, node by node.

    Args:
        network: `import_model(model)`, on the CPU.
        model: the model that the network was made of.
        inputs: a batch for each input of the model; further entries are ignored.
        libraries: custom-operator libraries that the model needs.

    Raises:
        DataError: if an input is missing or does not fit.
        ForwardMismatchError: names the first node, in topological order, with a value that differs by more than
            `FORWARD_TOLERANCE` (`HALF_FORWARD_TOLERANCE` for half precision) and `FORWARD_ABSOLUTE`, or that torch
            fails to compute.
    """
    exposed = normalise(model)
    values = _values_in_order(exposed.graph)
    exposed.graph.outputs[:] = list(values)
    feeds = {_name(value): inputs[_name(value)] for value in exposed.graph.inputs if _name(value) in inputs}
    session = runtime.frugal(exposed, custom_ops_libraries=libraries)
    expected = runtime.run(session, feeds)
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in feeds.items()}
    with torch.no_grad():
        found = network(tensors, keep=[_name(value) for value in values])
    tolerance = HALF_FORWARD_TOLERANCE if _computes_in_half(exposed.graph) else FORWARD_TOLERANCE
    worst = ForwardCheck(0.0, 0.0, "", "")
    largest = 0.0
    for value, node in values.items():
        name = _name(value)
        if not np.issubdtype(np.asarray(expected[name]).dtype, np.floating):
            continue
        absolute, relative, mean = _difference(found[name].numpy(), expected[name], node, name)
        if not (relative <= tolerance or mean <= FORWARD_ABSOLUTE):
            sentence = _mismatch(node, name, found[name].numpy(), expected[name], relative, tolerance)
            raise ForwardMismatchError(sentence, node=node_label(node))
        largest = max(largest, absolute)
        if tolerance >= relative >= worst.max_rel:
            worst = ForwardCheck(largest, relative, node_label(node), name)
    return ForwardCheck(largest, worst.max_rel, worst.node, worst.value)


def _values_in_order(graph: ir.Graph) -> dict[ir.Value, ir.Node]:
    """All named results of the main graph and the nodes that compute them, in topological order."""
    return {value: node for node in graph for value in node.outputs if value.name}


def _computes_in_half(graph: ir.Graph) -> bool:
    half = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
    constants = [value.dtype for value in (*graph.initializers.values(), *graph.inputs)]
    casts = [node.attributes["to"].as_int() for node in graph if node.op_type == "Cast" and "to" in node.attributes]
    return any(dtype in half for dtype in (*constants, *casts))


def _difference(
    found: np.ndarray[Any, Any], expected: np.ndarray[Any, Any], node: ir.Node, name: str
) -> tuple[float, float, float]:
    """Largest absolute, relative L2 and root mean square difference; equal infinities and NaN do not differ."""
    if found.shape != expected.shape:
        raise ForwardMismatchError(
            f"Node '{node_label(node)}' ({node.op_type}) computes '{name}' with shape {list(found.shape)} in torch, "
            f"{list(expected.shape)} in onnxruntime. {_WHAT_TO_DO}",
            node=node_label(node),
        )
    reference = expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        same = (found == reference) | (np.isnan(found) & np.isnan(reference))
        difference = np.where(same, 0.0, np.abs(found - reference))
    difference = np.where(np.isnan(difference), np.inf, difference)
    size = np.linalg.norm(np.where(np.isfinite(reference), reference, 0.0))
    whole, count = float(np.linalg.norm(difference)), np.sqrt(max(reference.size, 1))
    return float(difference.max(initial=0.0)), float(whole / max(size, NOISE * count)), float(whole / count)


_WHAT_TO_DO = (
    "Please report the operator; until it is right, exclude the layers before this node or compress without data."
)


def _mismatch(
    node: ir.Node,
    name: str,
    found: np.ndarray[Any, Any],
    expected: np.ndarray[Any, Any],
    relative: float,
    tolerance: float,
) -> str:
    with np.errstate(invalid="ignore"):
        at = int(np.argmax(np.nan_to_num(np.abs(found - expected), nan=np.inf)))
    return (
        f"Node '{node_label(node)}' ({node.op_type}) computes '{name}' in torch with a relative L2 difference of "
        f"{relative:.3g} to onnxruntime, more than {tolerance:g}. Found {found.flat[at]:.6g} in element {at} of shape "
        f"{list(found.shape)}, expected {expected.flat[at]:.6g}. {_WHAT_TO_DO}"
    )


def _name(value: ir.Value) -> str:
    return value.name or ""

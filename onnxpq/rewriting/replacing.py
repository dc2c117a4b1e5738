"""The graph before and after: which layers can be compressed, and the model with operators of ours in their place."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq.errors import ConfigError, ModelError, VerificationError
from onnxpq.graph import Layer, check, opset, prepare
from onnxpq.operators import DOMAIN, VERSION
from onnxpq.pq import PQTensor
from onnxpq.rewriting import functions, pruning
from onnxpq.rewriting.rules import candidates
from onnxpq.rewriting.rules.base import Rule, interface
from onnxpq.rewriting.rules.context import Context, describe
from onnxpq.rewriting.rules.editor import Editor, names_of
from onnxpq.rewriting.rules.stored import store

MIN_IR_VERSION: Final = 8
"""The first IR version with model-local functions."""

_LOGGER = logging.getLogger(__name__)


def constant_names(model: ir.Model) -> frozenset[str]:
    """Names of the constants of the main graph: initializers, and outputs of Constant nodes."""
    values = (*model.graph.initializers.values(), *_lifted(model.graph))
    return frozenset(value.name for value in values if value.name)


def update_initializers(model: ir.Model, values: Mapping[str, NDArray[Any]]) -> ir.Model:
    """A copy of the model in which constants have new values of the same shape and type.

    Args:
        model: the model; not changed.
        values: by name of an initializer, or of the output of a Constant node. Floating-point values are converted to
            the type that the model has; other types must be equal.

    Returns:
        The copy; tensors that stay are shared with `model`.

    Raises:
        ModelError: there is no constant of that name, the shape or the kind of type differs, or a value is NaN or
            infinite in the model's type.
    """
    updated = model.clone()
    constants = {
        value.name: value for graph in updated.graphs() for value in (*graph.initializers.values(), *_lifted(graph))
    }
    for name, array in values.items():
        if name not in constants:
            raise ModelError(f"The model has no initializer '{name}' to update.")
        value = constants[name]
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None:
            raise ModelError(f"The initializer '{name}' has no value to update.")
        new = ir.Tensor(_converted(array, tensor, name), dtype=tensor.dtype, name=name, doc_string=tensor.doc_string)
        node = value.producer()
        if node is None:
            value.const_value = new
        else:
            node.attributes.clear()
            node.attributes["value"] = ir.AttrTensor("value", new)
    return updated


def rewrite(model: ir.Model, layers: Sequence[Layer], tensors: Mapping[str, PQTensor]) -> ir.Model:
    """A copy of the model in which `PQMatMul` computes the given layers, `PQGather` what is looked up, and so on.

    The nodes keep their names and the values they compute keep theirs. Graph inputs and outputs, metadata and
    documentation stay; the IR version becomes 8 where it was lower, the first with model-local functions. Constants
    and nodes that are not needed any more are gone.

    Args:
        model: the model; not changed.
        layers: layers that `find` lists for this model.
        tensors: the quantized weight, [out, in], by the name of the weight's initializer. Layers that share a weight
            share it.

    Returns:
        The copy, which ONNX's full check passes; tensors that stay are shared with `model`.

    Raises:
        ConfigError: a layer is not in the model, or has no tensor, or one of other sizes.
        VerificationError: the result is no valid model, or its interface differs.
    """
    result = prepare(model) if layers else model.clone()
    graph = result.graph
    alive = pruning.alive(result)
    context, names = describe(result), names_of(graph)
    editors = {part: Editor(part, opset(model), names) for part in result.graphs()}
    nodes = {label: node for node, label in context.labels.items()}
    plan = [_planned(layer, nodes.get(layer.node), tensors, context) for layer in layers]
    for step in plan:
        editor = editors[step.graph]
        if step.rule is None:
            store(step.node, step.layer, step.tensor, context, editor)
        else:
            step.rule.apply(step.node, step.layer, step.tensor, context, editor)
    if plan:
        functions.settle(result, takes_half=any(editor.takes_half for editor in editors.values()))
        graph.opset_imports[DOMAIN] = VERSION
        if result.ir_version < MIN_IR_VERSION:
            _LOGGER.info("IR version %d raised to %d, for model-local functions.", result.ir_version, MIN_IR_VERSION)
            result.ir_version = MIN_IR_VERSION
    pruning.remove_dead(result, alive)
    _check_result(result, model)
    return result


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "nothing"


def _lifted(graph: ir.Graph) -> list[ir.Value]:
    return [node.outputs[0] for node in graph if node.op_type == "Constant" and node.domain == ""]


def _converted(array: NDArray[Any], tensor: ir.TensorProtocol, name: str) -> NDArray[Any]:
    shape, dtype = tensor.shape.numpy(), tensor.dtype.numpy()
    if tuple(array.shape) != shape:
        raise ModelError(f"The new value of '{name}' has shape {list(array.shape)}; expected {list(shape)}.")
    if array.dtype != dtype and not (tensor.dtype.is_floating_point() and np.issubdtype(array.dtype, np.floating)):
        raise ModelError(f"The new value of '{name}' has type {array.dtype}; expected {dtype}.")
    with np.errstate(over="ignore"):
        converted = np.array(array, dtype=dtype, order="C")
    if tensor.dtype.is_floating_point() and not np.isfinite(converted).all():
        raise ModelError(f"The new value of '{name}' is NaN or infinite as {dtype}.")
    return converted


@dataclass(frozen=True)
class _Step:
    rule: Rule | None
    node: ir.Node
    graph: ir.Graph
    layer: Layer
    tensor: PQTensor


def _planned(layer: Layer, node: ir.Node | None, tensors: Mapping[str, PQTensor], context: Context) -> _Step:
    found = [] if node is None else [rule for rule, entry in candidates(node, context) if entry == layer]
    if node is None or not found or not isinstance(node.graph, ir.Graph):
        raise ConfigError(f"The model has no layer {layer}. Pass layers that find() listed for the same model.")
    tensor = tensors.get(layer.weight)
    if tensor is None:
        raise ConfigError(
            f"There is no quantized tensor for the weight '{layer.weight}' of node '{layer.node}'; there are tensors "
            f"for {_quoted(tensors)}."
        )
    sizes, expected = (tensor.out_features, tensor.in_features), (layer.out_features, layer.in_features)
    if sizes != expected:
        raise ConfigError(
            f"The quantized tensor of the weight '{layer.weight}' has [out, in] = {list(sizes)}; node '{layer.node}' "
            f"needs {list(expected)}."
        )
    return _Step(found[0], node, node.graph, layer, tensor)


def _check_result(result: ir.Model, model: ir.Model) -> None:
    if interface(result.graph) != interface(model.graph):
        raise VerificationError(
            f"The rewritten graph has the interface {interface(result.graph)}; expected {interface(model.graph)}."
        )
    for full in (True, False):
        try:
            check(result, full=full)
        except ModelError as error:
            # A model that never passed cannot be expected to now.
            if _passes(model, full):
                raise VerificationError(f"The rewritten model does not pass ONNX's checker: {error}") from error
        else:
            return


def _passes(model: ir.Model, full: bool) -> bool:
    try:
        check(model, full=full)
    except ModelError:
        return False
    return True

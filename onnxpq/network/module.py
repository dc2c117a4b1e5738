"""An ONNX graph that computes in torch, to be trained.

The graph is interpreted, operator by operator, and so keeps its names, its sharing and its subgraphs. It computes what
the model computes at inference: nothing is dropped out, normalizations use their stored statistics.

All floating-point values are float32, whatever the model's type: a float16 model is trained without its rounding,
except that a Cast to float16 or bfloat16 rounds, as the model may count on it. Unsigned integers of more than 8 bits,
which torch does not compute with, are held in wider signed ones; they do not wrap around.
"""

import difflib
import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from onnxpq.errors import ConfigError, DataError, ForwardMismatchError, ModelError, UnsupportedOperatorError
from onnxpq.graph import node_label, used_values
from onnxpq.network.ops import resolve
from onnxpq.network.ops.registry import Handler, canonical_domain
from onnxpq.network.ops.tensors import from_ir

_Values = dict[str, Any]


@dataclass(frozen=True)
class _Step:
    """One node, ready to run. An omitted input is None, an omitted output is ""."""

    node: str
    operator: str
    handler: Handler
    inputs: tuple[str | None, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    subgraphs: Mapping[str, "_Plan"]
    frees: tuple[str, ...]


@dataclass(frozen=True)
class _Plan:
    """A graph, ready to run: its nodes in topological order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    steps: tuple[_Step, ...]


_VECTORS = {
    "ai.onnx::Add": (0, 1),
    "ai.onnx::Mul": (0, 1),
    "ai.onnx::Gemm": (2,),
    "ai.onnx::Conv": (2,),
    "ai.onnx::BatchNormalization": (1, 2),
    "ai.onnx::InstanceNormalization": (1, 2),
    "ai.onnx::GroupNormalization": (1, 2),
    "ai.onnx::LayerNormalization": (1, 2),
    "ai.onnx::RMSNormalization": (1,),
    "com.microsoft::SkipLayerNormalization": (2, 3, 4),
}
"""Where an operator takes what shifts and scales."""


class Network(torch.nn.Module):
    """A normalised ONNX model as a torch module; `onnxpq.network.importing.import_model` makes one.

    Each floating-point initializer is exactly one `torch.nn.Parameter`, however many nodes use it; the others are
    buffers. No parameter requires a gradient until `trainable` says so.

    Attributes:
        input_names: the graph's inputs that have no initializer.
        output_names: the graph's outputs.
    """

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]

    def __init__(self, model: ir.Model) -> None:
        """Prepare the nodes and copy the initializers.

        Args:
            model: a model without local functions, in topological order.

        Raises:
            UnsupportedOperatorError: if a node has no handler, or an initializer a type that torch lacks.
            ModelError: if an initializer has no values.
        """
        super().__init__()
        graph = model.graph
        opsets = {canonical_domain(domain): version for domain, version in model.opset_imports.items()}
        self._plan = _plan(graph, opsets)
        self._attribute_names: dict[str, str] = {}
        self._texts: _Values = {}
        for index, (name, value) in enumerate(graph.initializers.items()):
            self._add_initializer(index, name, value)
        self.input_names = tuple(name for name in self._plan.inputs if name not in graph.initializers)
        self.output_names = self._plan.outputs
        self._names = _names_of(self._plan) | set(graph.initializers)

    def _add_initializer(self, index: int, name: str, value: ir.Value) -> None:
        if value.const_value is None:
            raise ModelError(f"Initializer '{name}' has no values.")
        try:
            tensor = from_ir(value.const_value)
        except UnsupportedOperatorError as error:
            raise UnsupportedOperatorError(f"Initializer '{name}': {error}") from error
        if not isinstance(tensor, Tensor):
            self._texts[name] = tensor
            return
        # The names that ONNX allows hold dots, which torch forbids in the names of parameters and buffers.
        attribute = f"initializer_{index}"
        if tensor.is_floating_point():
            self.register_parameter(attribute, torch.nn.Parameter(_computable(tensor), requires_grad=False))
        else:
            self.register_buffer(attribute, _computable(tensor))
        self._attribute_names[name] = attribute

    def named_initializers(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """The floating-point initializers by their ONNX names, in the order of the file."""
        for name, attribute in self._attribute_names.items():
            value = getattr(self, attribute)
            if isinstance(value, torch.nn.Parameter):
                yield name, value

    def parameter(self, name: str) -> torch.nn.Parameter:
        """The parameter of one floating-point initializer.

        Args:
            name: its ONNX name.

        Raises:
            ConfigError: if there is no such initializer.
        """
        value = getattr(self, self._attribute_names.get(name, ""), None)
        if isinstance(value, torch.nn.Parameter):
            return value
        raise ConfigError(_unknown("floating-point initializer", name, [n for n, _ in self.named_initializers()]))

    def trainable(self, names: Iterable[str]) -> dict[str, torch.nn.Parameter]:
        """Let exactly these initializers require a gradient.

        Args:
            names: their ONNX names.

        Returns:
            Their parameters by name.

        Raises:
            ConfigError: if there is no such initializer.
        """
        chosen = {name: self.parameter(name) for name in names}
        self.requires_grad_(False)
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        return chosen

    def outputs_of(self, nodes: Collection[str]) -> list[str]:
        """The first outputs of nodes of the main graph, by the nodes' names; those of subgraphs are left out."""
        return [step.outputs[0] for step in self._plan.steps if step.node in nodes]

    def vectors(self) -> list[str]:
        """The initializers by which the nodes of the main graph shift and scale features.

        Biases, and what normalizations multiply with and add: of their sizes, all but one are 1.
        """
        found = []
        for step in self._plan.steps:
            places = _VECTORS.get(step.operator, ())
            for index, name in enumerate(step.inputs):
                value = getattr(self, self._attribute_names.get(name or "", ""), None)
                if index in places and isinstance(value, torch.nn.Parameter) and 1 < value.numel() == max(value.shape):
                    found.append(name or "")
        return list(dict.fromkeys(found))

    def forward(
        self,
        inputs: Mapping[str, Tensor],
        *,
        weights: Mapping[str, Tensor] | None = None,
        keep: Collection[str] = (),
    ) -> dict[str, Tensor]:
        """Compute the outputs.

        Values are freed after their last use, except those that autograd needs.

        Args:
            inputs: a tensor for each of `input_names`; further entries are ignored, so a batch may hold labels.
            weights: tensors that take the place of initializers, by name.
            keep: names of intermediate values, inputs or initializers to return as well.

        Returns:
            The outputs and the kept values by name. A value of type string is a numpy array, a sequence a list of
            tensors, an optional without a value None.

        Raises:
            DataError: if an input is missing.
            ConfigError: if `weights` or `keep` has an unknown name.
            ForwardMismatchError: if an operator fails; the message names the node and the shapes that it got.
            UnsupportedOperatorError: if an operator meets a case that it does not support.
        """
        weights = weights or {}
        self._check_names(weights, keep)
        values = self._start(inputs, weights)
        wanted = {*self._plan.outputs, *keep}
        _run(self._plan, values, wanted)
        return {name: values[name] for name in (*self._plan.outputs, *keep)}

    def _check_names(self, weights: Mapping[str, Tensor], keep: Collection[str]) -> None:
        for name in weights:
            if name not in self._attribute_names:
                raise ConfigError(_unknown("initializer", name, list(self._attribute_names)))
        for name in keep:
            if name not in self._names:
                raise ConfigError(_unknown("value", name, list(self._names)))

    def _start(self, inputs: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> _Values:
        values: _Values = dict(self._texts)
        for name, attribute in self._attribute_names.items():
            values[name] = getattr(self, attribute)
        values.update(weights)
        for name in self.input_names:
            if name not in inputs:
                raise DataError(
                    f"Input '{name}' of the network is missing. Expected {', '.join(self.input_names)}; "
                    f"got {', '.join(inputs) or 'nothing'}."
                )
            values[name] = _computable(inputs[name])
        return values


def _plan(graph: ir.Graph, opsets: Mapping[str, int]) -> _Plan:
    nodes = list(graph)
    last_use: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for value in (*used_values(node), *node.outputs):
            last_use[_name(value)] = index
    # What the graph's caller holds is not the graph's to free.
    own = {_name(value) for node in nodes for value in node.outputs} - {"", *map(_name, graph.outputs)}
    frees: list[list[str]] = [[] for _ in nodes]
    for name, index in last_use.items():
        if name in own:
            frees[index].append(name)
    steps = tuple(_step(node, opsets, tuple(free)) for node, free in zip(nodes, frees, strict=True))
    return _Plan(tuple(map(_name, graph.inputs)), tuple(map(_name, graph.outputs)), steps)


def _step(node: ir.Node, opsets: Mapping[str, int], frees: tuple[str, ...]) -> _Step:
    label = node_label(node)
    domain = canonical_domain(node.domain)
    if domain not in opsets:
        raise ModelError(
            f"Node '{label}' uses domain '{node.domain or 'ai.onnx'}', which the model does not import.", node=label
        )
    handler = resolve(domain, node.op_type, opsets[domain], label)
    attributes: dict[str, Any] = {}
    subgraphs: dict[str, _Plan] = {}
    for name, attribute in node.attributes.items():
        if attribute.type == ir.AttributeType.GRAPH:
            subgraphs[name] = _plan(attribute.as_graph(), opsets)
        else:
            attributes[name] = _python_value(attribute, label)
    signature = inspect.signature(handler)
    if "n_outputs" in signature.parameters:
        attributes["n_outputs"] = len(node.outputs)
    if "input_type" in signature.parameters:
        attributes["input_type"] = next((v.dtype for v in node.inputs[:1] if v is not None), None)
    inputs = tuple(None if value is None else _name(value) for value in node.inputs)
    try:
        signature.bind(*inputs, **attributes, **subgraphs)
    except TypeError as error:
        raise UnsupportedOperatorError(
            f"Node '{label}' ({domain or 'ai.onnx'}::{node.op_type}) has {len(inputs)} inputs and the attributes "
            f"{sorted(node.attributes)}, which its rule in onnxpq does not take: {error}.",
            node=label,
        ) from error
    operator = f"{domain or 'ai.onnx'}::{node.op_type}"
    return _Step(label, operator, handler, inputs, tuple(map(_name, node.outputs)), attributes, subgraphs, frees)


def _python_value(attribute: ir.Attr, node: str) -> Any:
    try:
        if attribute.type == ir.AttributeType.TENSOR:
            return from_ir(attribute.as_tensor())
    except UnsupportedOperatorError as error:
        raise UnsupportedOperatorError(f"Attribute '{attribute.name}' of node '{node}': {error}", node=node) from error
    if attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS, ir.AttributeType.STRINGS):
        return list(attribute.value)
    return attribute.value


def _name(value: ir.Value) -> str:
    return value.name or ""


def _names_of(plan: _Plan) -> set[str]:
    return {*plan.inputs, *(name for step in plan.steps for name in step.outputs if name)}


def _run(plan: _Plan, values: _Values, wanted: Collection[str] = ()) -> None:
    """Run all nodes on `values`, which has the inputs and gets the results; those in `wanted` are not freed."""
    for step in plan.steps:
        results = _results(step, values)
        for name, result in zip(step.outputs, results, strict=False):
            if name:
                values[name] = _computable(result)
        for name in step.frees:
            if name not in wanted:
                del values[name]


def _results(step: _Step, values: _Values) -> Sequence[Any]:
    arguments = _on_one_device([None if name is None else values[name] for name in step.inputs])
    graphs = {name: _as_function(plan, values) for name, plan in step.subgraphs.items()}
    try:
        found = step.handler(*arguments, **step.attributes, **graphs)
    except UnsupportedOperatorError as error:
        raise UnsupportedOperatorError(f"Node '{step.node}' ({step.operator}): {error}", node=step.node) from error
    except torch.cuda.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError) as error:
        got = ", ".join(f"{name}: {_describe(a)}" for name, a in zip(step.inputs, arguments, strict=True) if name)
        raise ForwardMismatchError(
            f"Node '{step.node}' ({step.operator}) failed on {got or 'no input'}: {error}", node=step.node
        ) from error
    results = found if isinstance(found, tuple) else (found,)
    missing = [name for name in step.outputs[len(results) :] if name]
    if missing:
        raise UnsupportedOperatorError(
            f"Node '{step.node}' ({step.operator}): its rule in onnxpq does not compute the outputs {missing}.",
            node=step.node,
        )
    return results


def _as_function(plan: _Plan, outer: _Values) -> Callable[..., list[Any]]:
    def call(*arguments: Any) -> list[Any]:
        values = {**outer, **dict(zip(plan.inputs, arguments, strict=True))}
        _run(plan, values)
        return [values[name] for name in plan.outputs]

    return call


_HELD_IN = {
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float64: torch.float32,
    torch.uint16: torch.int32,
    torch.uint32: torch.int64,
    torch.uint64: torch.int64,
}


def _computable(value: Any) -> Any:
    if isinstance(value, list):
        return [_computable(element) for element in value]
    return value.to(_HELD_IN[value.dtype]) if isinstance(value, Tensor) and value.dtype in _HELD_IN else value


def _on_one_device(arguments: list[Any]) -> list[Any]:
    """Bring what was computed on the CPU, like shapes, to the accelerator that the other inputs are on."""
    devices = {value.device for value in arguments if isinstance(value, Tensor)}
    if len(devices) < 2:
        return arguments
    target = next(device for device in devices if device.type != "cpu")
    return [value.to(target) if isinstance(value, Tensor) else value for value in arguments]


def _describe(value: Any) -> str:
    if not hasattr(value, "dtype"):
        return f"{len(value)} values" if isinstance(value, list) else "nothing"
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def _unknown(kind: str, name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"Did you mean {' or '.join(map(repr, near))}?" if near else f"It has {len(known)} of them."
    return f"The network has no {kind} '{name}'. {hint}"

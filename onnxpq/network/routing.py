"""Which layers are trained through the network's output, and which against their own.

A gradient reaches a layer where every node between it and the output has a rule in the importer, computes there what
onnxruntime computes, and is differentiable on one path at least. Such layers are trained *end to end*. Any other layer
is trained *layer-wise*: its own outputs on its own inputs, captured in onnxruntime, are the target. So no operator of a
model, be it anyone's, keeps its layers from being trained.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxpq.data import Dataset, Place, distance, first
from onnxpq.errors import ForwardMismatchError, ModelError, UnalignedError, UnsupportedOperatorError
from onnxpq.graph import Layer, node_label, subgraphs_of, used_values
from onnxpq.network import importing, partition
from onnxpq.network.importing import ForwardCheck
from onnxpq.network.module import Network
from onnxpq.network.ops.registry import canonical_domain, describe, is_users, resolve, version_in_force
from onnxpq.network.partition import Cut
from onnxpq.runtime import Array, Libraries, activations

CHECKED_SAMPLES = 8
"""Samples on which torch is compared with onnxruntime, value by value."""


@dataclass(frozen=True, eq=False)
class Part:
    """What is trained end to end.

    Attributes:
        layers: the layers in it.
        cut: the model before and from the first of them.
        network: `cut.suffix` in torch.
        check: that it computes what onnxruntime computes.
        fixed_batch: the samples that it takes at a time; None for any.
        places: where the samples lie in what it takes and in the output, by name; along axis 0 in what is not named.
        inner: what the prefix must not give, as it has no dimension with the samples.
        whole: whether it takes whole calls.
    """

    layers: Sequence[Layer]
    cut: Cut
    network: Network
    check: ForwardCheck
    fixed_batch: int | None
    places: Mapping[str, Place] = field(default_factory=dict)
    inner: frozenset[str] = frozenset()
    whole: bool = False

    @property
    def weights(self) -> list[str]:
        """Names of the layers' weights."""
        return list(dict.fromkeys(layer.weight for layer in self.layers))


@dataclass(frozen=True, eq=False)
class Plan:
    """How each layer is trained.

    Attributes:
        part: the layers that are trained end to end; None if no gradient reaches any.
        layer_wise: the others: name of the weight -> why not end to end.
    """

    part: Part | None
    layer_wise: Mapping[str, str]


def plan(model: ir.Model, layers: Sequence[Layer], output: str, few: Dataset, libraries: Libraries = ()) -> Plan:
    """Decide for each layer, by trying it on a few samples.

    Args:
        model: a normalised model; it is not changed.
        layers: the layers to train.
        output: the graph's output that the loss looks at.
        few: some samples.
        libraries: custom-operator libraries that the model needs.

    Raises:
        UnsupportedOperatorError, ForwardMismatchError: an operator that the user has taught the importer fails or
            computes something else than onnxruntime.
        DataError: see `onnxpq.network.partition.cut` and `onnxpq.runtime.activations.capture`.
    """
    weights = dict.fromkeys(layer.weight for layer in layers)
    reasons = _without_path(model, weights, output)
    for node in model.graph:
        if (missing := _missing_rule(node, model)) is not None:
            reasons = _blocked(model, weights, output, node, missing) | reasons
    while any(weight not in reasons for weight in weights):
        chosen = [layer for layer in layers if layer.weight not in reasons]
        names = list(dict.fromkeys(layer.weight for layer in chosen))
        try:
            part, batch = _part(model, chosen, output, few, libraries)
        except (UnsupportedOperatorError, ForwardMismatchError) as error:
            at = _outermost(model.graph, error.node)
            if at is not None and is_users(at.domain, at.op_type):
                raise
            found = {} if at is None else _blocked(model, names, output, at, str(error))
            # What cannot be imported may be needed without depending on a layer: it stops all of them.
            reasons |= found or dict.fromkeys(names, str(error))
        except UnalignedError as error:
            reasons |= dict.fromkeys(names, str(error))
        else:
            lost = _without_gradient(part, names, output, batch)
            if not lost:
                return Plan(part, reasons)
            reasons |= lost
    return Plan(None, reasons)


def _part(
    model: ir.Model, layers: Sequence[Layer], output: str, few: Dataset, libraries: Libraries
) -> tuple[Part, Mapping[str, Array]]:
    """The part with these layers, tried on a batch, and the batch."""
    capture = partial(activations.capture, cache_dir=None, libraries=libraries)
    weights = list(dict.fromkeys(layer.weight for layer in layers))
    inner: frozenset[str] = frozenset()
    while True:
        cut = partition.cut(model, weights, [output], places=few.places, inner=inner, whole=few.whole)
        try:
            samples = partition.boundary_values(cut, few, capture)
            break
        except UnalignedError as error:
            if error.value in inner or cut.prefix is None:
                raise
            inner |= {error.value}
    partition.complete_types(cut.suffix, samples)
    cut, place = (cut, Place()) if few.whole else _opened(cut, samples, output, capture)
    network = importing.import_model(cut.suffix)
    fixed = None if few.whole else activations.fixed_batch(cut.suffix, samples.places)
    batch = first(samples, fixed, len(samples))
    check = importing.check_forward(network, cut.suffix, batch, libraries=libraries)
    places = {**samples.places, output: place}
    return Part(layers, cut, network, check, fixed, places, inner, few.whole), batch


def _opened(cut: Cut, samples: Dataset, output: str, capture: Callable[..., Dataset]) -> tuple[Cut, Place]:
    """The cut with a suffix that takes any batch, where there is one, and where the samples lie in the output.

    Raises:
        UnalignedError: they do not lie there.
    """
    exact = capture(cut.suffix, [output], samples)
    suffix = partition.with_open_batch(cut.suffix, samples.places)
    if suffix is not None:
        try:
            found = capture(suffix, [output], samples)
        except (ModelError, UnalignedError):
            # Something in between has the old batch.
            return cut, exact.places[output]
        one, other = exact.inputs[output], found.inputs[output]
        if one.shape == other.shape and distance(one, other, importing.NOISE) <= importing.HALF_FORWARD_TOLERANCE:
            return replace(cut, suffix=suffix), found.places[output]
    return cut, exact.places[output]


def taught(
    part: Part, original: ir.Model, output: str, data: Dataset, capture: Callable[..., Dataset]
) -> tuple[Dataset, Dataset]:
    """What a model of the same graph, with other values of its constants, has where a part was cut, and its output.

    Args:
        part: of the one.
        original: the other.
        output: as for `plan`.
        data: samples of its inputs.
        capture: `onnxpq.runtime.activations.capture`, with all but the model, the names and the data.
    """
    cut = partition.cut(original, part.weights, [output], places=data.places, inner=part.inner, whole=data.whole)
    given = partition.boundary_values(cut, data, capture)
    partition.complete_types(cut.suffix, given)
    is_opened = part.fixed_batch is None and not part.whole
    opened = partition.with_open_batch(cut.suffix, part.places) if is_opened else None
    return given, capture(opened or cut.suffix, [output], given)


def _without_path(model: ir.Model, weights: Iterable[str], output: str) -> dict[str, str]:
    """The weights that a floating-point output does not depend on."""
    value = _value(model.graph.outputs, output)
    if value.dtype is not None and not value.dtype.is_floating_point():
        return dict.fromkeys(weights, f"output '{output}' holds {value.dtype.name}, which has no gradient")
    used = {entry for node in partition.needed_nodes(model.graph, value) for entry in used_values(node)}
    unused = [weight for weight in weights if model.graph.initializers[weight] not in used]
    return dict.fromkeys(unused, f"output '{output}' does not depend on it")


def _missing_rule(node: ir.Node, model: ir.Model) -> str | None:
    """Says which operator, of a node or of one in its subgraphs, has no rule."""
    opsets = {canonical_domain(domain): version for domain, version in model.opset_imports.items()}
    for inner in (node, *nested_nodes(node)):
        domain = canonical_domain(inner.domain)
        opset = opsets.get(domain, 0)
        try:
            resolve(domain, inner.op_type, opset, node_label(inner))
        except UnsupportedOperatorError:
            version = version_in_force(domain, inner.op_type, opset)
            return f"operator {describe(domain, inner.op_type, version)} at node '{node_label(inner)}' has no rule"
    return None


def _blocked(model: ir.Model, weights: Iterable[str], output: str, node: ir.Node, reason: str) -> dict[str, str]:
    """The weights between which and the output a node lies, each with the reason."""
    graph = model.graph
    if node not in partition.needed_nodes(graph, _value(graph.outputs, output)):
        return {}
    before = {
        value.name for other in (node, *partition.needed_nodes(graph, node.outputs[0])) for value in used_values(other)
    }
    return {weight: reason for weight in weights if weight in before}


def _outermost(graph: ir.Graph, label: str | None) -> ir.Node | None:
    """The node of the main graph that has this name, or a node of this name in its subgraphs."""
    if label is None:
        return None
    return next((n for n in graph if label in map(node_label, (n, *nested_nodes(n)))), None)


def _without_gradient(part: Part, weights: Sequence[str], output: str, batch: Mapping[str, Array]) -> dict[str, str]:
    """The weights that the output's gradient does not reach, or is zero for, each with the reason."""
    names = [name for value in _results(part.cut.suffix.graph) if (name := value.name)]
    parameters = part.network.trainable(weights)
    inputs = {name: torch.from_numpy(np.array(array)) for name, array in batch.items()}
    values = part.network(inputs, keep=names)
    kept = {n: v for n, v in values.items() if isinstance(v, Tensor) and v.requires_grad} | parameters
    reached: set[str] = set()
    if output in kept:
        # A random direction: the sum of a softmax's outputs, for one, is constant.
        direction = torch.randn(kept[output].shape, generator=torch.Generator().manual_seed(0))
        found = torch.autograd.grad((kept[output] * direction).sum(), list(kept.values()), allow_unused=True)
        reached = {name for name, g in zip(kept, found, strict=True) if g is not None and bool(g.any())}
    part.network.trainable([])
    lost: dict[str, str] = {}
    for weight in weights:
        if weight in reached:
            continue
        node = _barrier(part.cut.suffix.graph, weight, output, set(kept), reached)
        if node is None:
            lost[weight] = "no gradient of the output reaches it"
        elif not nested_nodes(node):  # other samples may take the other branch of an If
            lost[weight] = f"node '{node_label(node)}' ({node.op_type}) lets no gradient through"
    return lost


def _barrier(graph: ir.Graph, weight: str, output: str, kept: set[str], reached: set[str]) -> ir.Node | None:
    """The node that stops the gradient.

    Args:
        graph: of the suffix.
        weight: that no gradient reaches.
        output: that the gradient comes from.
        kept: values that are differentiable in some weight.
        reached: those of them for which the gradient is not zero.
    """
    behind = partition.dependents(graph, [graph.initializers[weight]])
    needed = partition.needed_nodes(graph, _value(graph.outputs, output))
    nodes = [node for node in graph if node in needed and not behind.isdisjoint(node.outputs)]
    inputs = {node: {value.name for value in used_values(node) if value in behind} & kept for node in nodes}
    results = {node: {value.name for value in node.outputs} for node in nodes}
    zero = [n for n in nodes if inputs[n] and not inputs[n] & reached and results[n] & reached]
    constant = [n for n in nodes if inputs[n] and not results[n] & kept]
    return next(iter((*zero, *constant)), None)


def nested_nodes(node: ir.Node) -> list[ir.Node]:
    """The nodes of all subgraphs of a node."""
    return [inner for graph in subgraphs_of(node) for inner in ir.traversal.RecursiveGraphIterator(graph)]


def _results(graph: ir.Graph) -> list[ir.Value]:
    return [value for node in graph for value in node.outputs]


def _value(values: Iterable[ir.Value], name: str) -> ir.Value:
    return next(value for value in values if value.name == name)

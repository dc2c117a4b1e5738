"""The frozen prefix: what comes before the first trained weight needs no gradient and is computed once.

A model is cut in two. The *prefix* runs once over the data in onnxruntime; the *suffix* holds the trained weights and
is what is imported and trained. Between them lie the *boundary* values.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx.shape_inference
import onnx_ir as ir

from onnxpq.data import Dataset, Place
from onnxpq.errors import ConfigError, DataError, TrainingError, UnsupportedOperatorError
from onnxpq.graph import Layer, element_type, node_label, shape_of, structure, subgraphs, used_values
from onnxpq.network.ops import resolve
from onnxpq.network.ops.registry import canonical_domain
from onnxpq.runtime import extract

_SHAPE_OPERATORS = frozenset({"Shape", "Size"})
_BATCH = "onnxpq_batch"
_COMPARISONS = frozenset({"Equal", "OneHot"})
_ARRANGING = frozenset({"Cast", "Expand", "Gather", "Identity", "Reshape", "Squeeze", "Tile", "Transpose", "Unsqueeze"})
_RANDOM_OPERATORS = frozenset({"RandomNormal", "RandomUniform"})


@dataclass(frozen=True)
class Cut:
    """A model in two parts.

    Attributes:
        boundary: the inputs of the suffix: inputs of the graph, and values that the prefix computes.
        prefix: the model that computes the latter from the graph's inputs; None where there are none.
        suffix: the model that computes the wanted outputs from the boundary. It holds the trained weights.
    """

    boundary: list[str]
    prefix: ir.Model | None
    suffix: ir.Model


def cut(
    model: ir.Model,
    weights: Collection[str],
    outputs: Sequence[str] | None = None,
    *,
    places: Mapping[str, Place] | None = None,
    inner: Collection[str] = (),
    whole: bool = False,
) -> Cut:
    """Cut a model before the first of the weights that are to be trained.

    What is computed from initializers alone, or from nothing but the sizes of values, belongs to the suffix, and so
    does what spreads integers out to one number per class: the prefix' results are kept for all samples. A boundary
    value that is known to have no dimension with the batch is moved into the suffix with the nodes that compute it, up
    to values that have one: a captured data set is cut into batches along that dimension. Where the shapes do not tell,
    `onnxpq.runtime.activations.capture` refuses what turns out not to have one, and `inner` moves it.

    Args:
        model: a normalised model (`onnxpq.graph.normalising.normalise`). It is not changed; tensors are shared.
        weights: names of the initializers to train.
        outputs: the graph outputs that the suffix has to compute; by default all that depend on a trained weight and
            are floating-point, so that what computes labels is dropped.
        places: where the samples lie in the graph's inputs; along axis 0 in those that are not named.
        inner: names of values that belong into the suffix.
        whole: whether data are whole calls, of which nothing is cut into batches.

    Raises:
        ConfigError: if a weight or an output has an unknown name, or an output depends on none of the weights.
        TrainingError: if no floating-point output depends on the weights.
        UnsupportedOperatorError: if a node of the suffix has no handler.
        DataError: if an input of the graph that the suffix needs has no dimension with the batch.
    """
    known = _with_known_shapes(model)
    trained = _find(known.graph.initializers, weights, "initializer")
    dependent = dependents(known.graph, trained)
    wanted = _wanted_outputs(known.graph, dependent, outputs)
    nodes, boundary = _suffix_nodes(
        known.graph, wanted, dependent, _Batch(known.graph, places or {}, inner, whole=whole)
    )
    for node in nodes:
        _check_supported(node, model)
    names = [_name(value) for value in boundary]
    computed = [_name(value) for value in boundary if value.producer() is not None]
    return Cut(
        boundary=names,
        prefix=extract(known, [_name(v) for v in known.graph.inputs], computed) if computed else None,
        suffix=extract(known, names, [_name(value) for value in wanted]),
    )


def boundary_values(cut: Cut, data: Dataset, capture: Callable[..., Dataset]) -> Dataset:
    """What a suffix takes.

    Args:
        cut: where it begins.
        data: samples of the model's inputs.
        capture: `onnxpq.runtime.activations.capture`, with all but the model, the names and the data.
    """
    return data.only(cut.boundary) if cut.prefix is None else capture(cut.prefix, cut.boundary, data)


@dataclass(frozen=True)
class Alone:
    """A layer by itself.

    Attributes:
        model: from `input` to `output`.
        input: the value that the weight is applied to.
        output: what comes out; with the bias, where the model has one that is added by a node of its own.
        by_rows: the weight is applied to vectors along the last dimension of the input, so that any number of leading
            dimensions is as good as one.
    """

    model: ir.Model
    input: str
    output: str
    by_rows: bool


def alone(model: ir.Model, layer: Layer) -> Alone | None:
    """The part of a model that is one of its layers, to be trained by itself.

    Args:
        model: a normalised model. It is not changed; tensors are shared.
        layer: one of its layers.

    Returns:
        The part; None if the first dimension of the layer's input is none of rows that it treats alike, or if the layer
        lies in a subgraph and is no MatMul or Gemm, or one whose input no run gives out (`subgraphs.can_expose`).
    """
    whole = _with_known_shapes(model)
    node = _node_of(whole.graph, layer)
    if node is None or (layer.place and node.op_type == "Conv"):
        return None
    constants = _computed_from_constants(whole.graph)
    given = [value for value in node.inputs if value is not None and value not in constants]
    by_rows = node.op_type == "MatMul" and len(shape_of(node.inputs[1]) or ()) == 2
    by_first = node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transA", 0) == 0)
    if len(given) != 1 or node.inputs[0] is not given[0] or not (by_rows or by_first):
        return None
    output = _with_bias(node.outputs[0], layer)
    if layer.place:
        if not subgraphs.can_expose(model, _name(given[0])):
            return None
        subgraphs.hoist(whole.graph, given[0], output)
    part = extract(whole, [_name(given[0])], [_name(output)])
    for value in _results(part.graph) if by_rows else ():
        value.shape = None
    (x,) = part.graph.inputs
    weight = node.inputs[1]
    x.type = x.type or ir.TensorType((weight and element_type(weight)) or ir.DataType.FLOAT)
    x.shape = ir.Shape([_BATCH, layer.in_features]) if by_rows or x.shape is None else x.shape
    return Alone(part, _name(given[0]), _name(output), by_rows)


def _node_of(graph: ir.Graph, layer: Layer) -> ir.Node | None:
    nodes = [node for node in graph.all_nodes() if (node.graph is not graph) == bool(layer.place)]
    named = [node for node in nodes if node.name == layer.node]
    # Nodes that share a name, or have none, are called after their outputs.
    of_output = [node for node in nodes if layer.node in map(_name, node.outputs)]
    return next(iter((*named, *of_output)), None)


def _with_bias(result: ir.Value, layer: Layer) -> ir.Value:
    """The value with the layer's bias added, where that is all that is done with it."""
    users = result.consumers()
    if len(users) != 1 or users[0].op_type != "Add" or result.is_graph_output() or layer.bias is None:
        return result
    added = any(value is not None and value.name == layer.bias for value in users[0].inputs)
    return users[0].outputs[0] if added else result


def complete_types(model: ir.Model, data: Dataset) -> None:
    """Give the inputs of a suffix whose types could not be inferred those of the captured arrays.

    Shape inference knows nothing of what an operator of a foreign domain computes; onnxruntime wants to know it.

    Args:
        model: `Cut.suffix`; changed in place.
        data: the boundary values.
    """
    feeds = data.take(slice(1)).feeds
    for value in model.graph.inputs:
        array = feeds[_name(value)]
        if value.type is None:
            value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        if value.shape is None:
            axis = None if data.whole else data.places.get(_name(value), Place()).axis
            value.shape = ir.Shape(
                [None] * array.ndim
                if axis is None
                else [_BATCH if i == axis else size for i, size in enumerate(array.shape)]
            )


def with_open_batch(model: ir.Model, places: Mapping[str, Place]) -> ir.Model | None:
    """A copy that takes any batch, of a model that is written for a fixed one but may compute each sample for itself.

    Exporters fix the batch, mostly to 1, where they are not told otherwise; training in such batches would take for
    ever. That the new batch reaches the outputs suggests that nothing in between has the old one.

    Args:
        model: `Cut.suffix`; not changed.
        places: where the samples lie in its inputs; along axis 0 in those that are not named.

    Returns:
        The copy; None where it cannot be had, or the batch is open already.
    """
    copy = model.clone()
    for value in _results(copy.graph):
        value.shape = None
    for value in copy.graph.inputs:
        place = places.get(_name(value), Place())
        if value.shape is None or len(value.shape) <= place.axis or not place.is_plain:
            return None
        dims = list(value.shape)
        if not isinstance(dims[place.axis], int):
            return None
        dims[place.axis] = ir.SymbolicDim(_BATCH)
        value.shape = ir.Shape(dims)
    opened = _with_known_shapes(copy)
    for value in opened.graph.outputs:
        if value.shape is None or _BATCH not in map(_dimension, value.shape):
            return None
    return opened


def _with_known_shapes(model: ir.Model) -> ir.Model:
    """A copy whose values have types and shapes as far as they can be inferred."""
    copy = model.clone()
    # Not onnx_ir's own pass: it gives up on models with a map type, which scikit-learn's classifiers have.
    graph = onnx.shape_inference.infer_shapes(structure(copy), data_prop=True).graph
    types = {info.name: info.type for info in (*graph.value_info, *graph.output)}
    for value in _results(copy.graph):
        inferred = types.get(_name(value))
        if inferred is not None and inferred.HasField("tensor_type"):
            value.type = ir.serde.deserialize_type_proto_for_type(inferred)
            value.shape = ir.serde.deserialize_type_proto_for_shape(inferred)
    return copy


def dependents(graph: ir.Graph, sources: Iterable[ir.Value]) -> set[ir.Value]:
    """The sources and all values computed from them."""
    found = set(sources)
    for node in graph:
        if any(value in found for value in used_values(node)):
            found.update(node.outputs)
    return found


def needed_nodes(graph: ir.Graph, value: ir.Value) -> set[ir.Node]:
    """The nodes that a value is computed from."""
    found: set[ir.Node] = set()
    pending = [value]
    while pending:
        node = pending.pop().producer()
        if node is not None and node not in found:
            found.add(node)
            pending.extend(used_values(node))
    return found & set(graph)


def _wanted_outputs(graph: ir.Graph, dependent: set[ir.Value], outputs: Sequence[str] | None) -> list[ir.Value]:
    if outputs is None:
        wanted = [value for value in graph.outputs if value in dependent and _is_float(value)]
        if not wanted:
            raise TrainingError(
                "No floating-point output of the model depends on the weights to train. "
                f"Its outputs are {', '.join(map(_name, graph.outputs))}. Exclude these weights."
            )
        return wanted
    wanted = _find({_name(value): value for value in graph.outputs}, outputs, "output")
    for value in wanted:
        if value not in dependent:
            raise ConfigError(f"Output '{value.name}' depends on none of the weights to train. Leave it out.")
    return wanted


def _suffix_nodes(
    graph: ir.Graph, wanted: Sequence[ir.Value], dependent: set[ir.Value], batch: "_Batch"
) -> tuple[list[ir.Node], list[ir.Value]]:
    """The nodes between the boundary and the wanted outputs, in the graph's order, and the boundary."""
    movable = _computed_from_constants(graph) | _computed_from_sizes(graph) | _one_hot(graph)
    nodes: set[ir.Node] = set()
    boundary: dict[ir.Value, None] = {}
    pending = list(wanted)
    while pending:
        value = pending.pop()
        node = value.producer()
        if node in nodes or value.is_initializer():
            continue
        if node is not None and (value in dependent or value in movable or not batch.may_be_in(value)):
            nodes.add(node)
            pending.extend(used_values(node))
            continue
        if not batch.may_be_in(value):
            raise DataError(
                f"Input '{value.name}' of the graph has shape {value.shape}, no dimension of which is the batch, "
                "and the layers to train need it. Give it a leading batch dimension, or compress without data."
            )
        boundary[value] = None
    ordered = [node for node in graph if node in nodes]
    # A value can be met twice: as a boundary, and as a second output of a node that went into the suffix.
    inputs = [
        value for value in (*graph.inputs, *_results(graph)) if value in boundary and value.producer() not in nodes
    ]
    return ordered, inputs


def _computed_from_constants(graph: ir.Graph) -> set[ir.Value]:
    found: set[ir.Value] = set(graph.initializers.values())
    for node in graph.all_nodes():
        if node.op_type not in _RANDOM_OPERATORS and all(value in found for value in used_values(node)):
            found.update(node.outputs)
    return found


def _computed_from_sizes(graph: ir.Graph) -> set[ir.Value]:
    constants = _computed_from_constants(graph)
    found: set[ir.Value] = set()
    for node in graph:
        used = [value for value in used_values(node) if value not in constants]
        is_size = node.op_type in _SHAPE_OPERATORS and canonical_domain(node.domain) == ""
        if is_size or (used and all(value in found for value in used)):
            found.update(node.outputs)
    return found


def _one_hot(graph: ir.Graph) -> set[ir.Value]:
    """What spreads integer inputs of the graph out to one number per class, and the values on the way there.

    To compare integers costs nothing, and what comes of it takes hundreds of times their room.
    """
    known = _computed_from_constants(graph) | _computed_from_sizes(graph)
    found = {value for value in graph.inputs if value.dtype is not None and value.dtype.is_integer()}
    spread: set[ir.Value] = set()
    for node in graph:
        used = [value for value in used_values(node) if value not in known]
        if node.domain or not used or not all(value in found for value in used):
            continue
        is_spread = node.op_type in _COMPARISONS or (node.op_type in _ARRANGING and spread.issuperset(used))
        # A Cast of integers that are no classes, but shades of a picture, is where numbers to compute with begin.
        if is_spread or (node.op_type in _ARRANGING and not any(map(_is_float, node.outputs))):
            found.update(node.outputs)
            spread.update(node.outputs if is_spread else ())
    return found - set(graph.inputs) if spread else set()


class _Batch:
    """What the shapes of the graph's inputs say about the dimensions of other values."""

    def __init__(
        self, graph: ir.Graph, places: Mapping[str, Place], inner: Collection[str], *, whole: bool = False
    ) -> None:
        """For a graph, the places of its inputs, and what is known to have no dimension with the batch.

        Of whole calls any value may be kept.
        """
        self.inner, self.whole = inner, whole
        self.batch: set[int | str | None] = set()
        self.other: set[int | str | None] = set()
        for value in graph.inputs:
            axis = places.get(_name(value), Place()).axis
            for index, size in enumerate(value.shape or ()):
                (self.batch if index == axis else self.other).add(_dimension(size))

    def may_be_in(self, value: ir.Value) -> bool:
        """False if it is known, or the inferred shape says, that no dimension is the batch."""
        if value.name in self.inner and value.producer() is not None:
            return False
        return self.whole or value.shape is None or any(map(self._may_be, map(_dimension, value.shape)))

    def _may_be(self, size: int | str | None) -> bool:
        # Inference gives a symbol of its own to what it cannot tell: that may be the batch.
        return size is None or size in self.batch or (isinstance(size, str) and size not in self.other)


def _dimension(size: int | ir.SymbolicDim) -> int | str | None:
    return size if isinstance(size, int) else size.value


def _check_supported(node: ir.Node, model: ir.Model) -> None:
    opsets = {canonical_domain(domain): version for domain, version in model.opset_imports.items()}
    domain = canonical_domain(node.domain)
    label = node_label(node)
    if domain not in opsets:
        raise UnsupportedOperatorError(
            f"Node '{label}' uses domain '{domain}', which the model does not import.", node=label
        )
    resolve(domain, node.op_type, opsets[domain], label)


def _find(known: Mapping[str, ir.Value], names: Iterable[str], kind: str) -> list[ir.Value]:
    missing = [name for name in names if name not in known]
    if missing:
        raise ConfigError(f"The model has no {kind} {', '.join(map(repr, missing))}. It has {', '.join(known)}.")
    return [known[name] for name in names]


def _results(graph: ir.Graph) -> list[ir.Value]:
    return [value for node in graph for value in node.outputs]


def _is_float(value: ir.Value) -> bool:
    """Also for a sequence of maps from label to score, which stands as the matrix of scores; and if unknown."""
    dtype = value.dtype
    return dtype is None or dtype.is_floating_point()


def _name(value: ir.Value) -> str:
    return value.name or ""

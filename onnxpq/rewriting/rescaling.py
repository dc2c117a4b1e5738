"""Layers whose inputs are centred and scaled before them, and their weights and biases to match: the same function.

``W x + b = (W T) ((x - m) / T) + (W m + b)``, with a unit of its own for each input in the diagonal T. Units are powers
of two, so that neither product rounds. In front of the layers comes a Sub, a Mul, or both.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq.graph import Layer, element_type, graph_of, is_standard, opset, values_of
from onnxpq.rewriting import pruning
from onnxpq.rewriting.rules.context import Context, describe
from onnxpq.rewriting.rules.editor import Editor, names_of
from onnxpq.rewriting.rules.weights import constant_rank, required_input
from onnxpq.support.kinds import FULLY_CONNECTED

Array: TypeAlias = NDArray[Any]

_CENTRED: Final = frozenset({"Gemm", "MatMul"})
_RESULTS: Final = {"Sub": "centred", "Mul": "scaled"}


@dataclass(frozen=True, eq=False)
class Scale:
    """What is taken off each input of a layer, and what it is multiplied by then, [in].

    Attributes:
        origin: None for zeros.
        factors: powers of two; None for ones.
    """

    origin: NDArray[np.floating] | None
    factors: NDArray[np.floating] | None

    @classmethod
    def at(cls, origin: NDArray[np.floating], near: NDArray[np.floating]) -> "Scale":
        """An origin, or one that takes fewer bytes and is as near as `near`, [in]."""
        return cls(_narrow(origin, near), None)

    @classmethod
    def by(cls, units: NDArray[np.floating], dtype: np.dtype[Any]) -> "Scale":
        """Units of the inputs, positive: to the next power of two that a type has with its inverse."""
        lowest = np.finfo(dtype if dtype.kind == "f" else np.float32).minexp  # numpy has no bfloat16: float32's
        exponents = np.clip(-np.rint(np.log2(units)), lowest, -lowest)
        return cls(None, _narrow(np.exp2(exponents), np.zeros(len(units))))


def _narrow(values: NDArray[np.floating], tolerance: NDArray[np.floating]) -> NDArray[np.floating]:
    """The values in the smallest type that has all of them, or others as near as `tolerance`."""
    for kind in (np.float16, np.float32):
        with np.errstate(over="ignore"):
            narrow: NDArray[np.floating] = values.astype(kind)
        if (np.abs(narrow.astype(np.float64) - values) <= tolerance).all():
            return narrow
    return values


@dataclass(frozen=True, eq=False)
class Place:
    """Where a layer has its weight and its inputs.

    Attributes:
        layer: the layer.
        input: name of the value that its weight is multiplied with.
        index: of that input of the node; the weight is the other one of the first two.
        axis: of its features, counted from the last one, -1.
        weight_axis: of the weight, as the node gets it, that they are multiplied along; likewise.
        dtype: that it computes in.
        can_be_centred: whether an origin other than zero can be made up for by a constant behind it.
    """

    layer: Layer
    input: str
    index: int
    axis: int
    weight_axis: int
    dtype: np.dtype[Any]
    can_be_centred: bool


Group: TypeAlias = tuple[Place, ...]
"""Layers that are scaled together, as they share inputs or weights; in the order of the graph."""


def nbytes(group: Group, scale: Scale) -> int:
    """What a scale takes in the file: it is stored for each value, and each subgraph, that is scaled."""
    arrays = [array for array in (scale.origin, scale.factors) if array is not None]
    return sum(array.nbytes for array in arrays) * len({(p.input, p.axis, p.layer.place) for p in group})


def groups(model: ir.Model, layers: Sequence[Layer]) -> list[Group]:
    """The layers of a model that can be scaled, those together that must have one scale.

    Left out are tables, and layers that share a weight with one, or with a layer that gets it in another form.

    Args:
        model: prepared (`onnxpq.graph.preparing.prepare`).
        layers: of it.
    """
    context = describe(model)
    nodes = {label: node for node, label in context.labels.items()}
    found: list[list[Place]] = []
    for layer in layers:
        if layer.kind != FULLY_CONNECTED:
            continue
        place = _place(layer, nodes[layer.node], context)
        near = [group for group in found if any(_belong(place, other) for other in group)]
        found = [group for group in found if group not in near]
        found.append([*(other for group in near for other in group), place])
    looked_up = {layer.weight for layer in layers if layer.kind != FULLY_CONNECTED}
    return [
        tuple(group)
        for group in found
        if looked_up.isdisjoint(place.layer.weight for place in group) and _have_one_form(group, nodes)
    ]


def _belong(one: Place, other: Place) -> bool:
    is_one_input = (one.input, one.axis) == (other.input, other.axis)
    return is_one_input or one.layer.weight == other.layer.weight


def _have_one_form(group: Iterable[Place], nodes: Mapping[str, ir.Node]) -> bool:
    """Whether nodes of one weight get it as one value."""
    values: dict[str, set[ir.Value]] = {}
    for place in group:
        values.setdefault(place.layer.weight, set()).add(_weight(place, nodes[place.layer.node]))
    return all(len(own) == 1 for own in values.values())


def _weight(place: Place, node: ir.Node) -> ir.Value:
    return required_input(node, 1 - place.index)


def _place(layer: Layer, node: ir.Node, context: Context) -> Place:
    index = int(context.origin(required_input(node, 1)) is None)
    x, rank = required_input(node, index), constant_rank(node.inputs[1 - index]) or 2
    if node.op_type == "Conv":
        axis, weight_axis = 1 - rank, 1 - rank
    elif index == 1:
        axis, weight_axis = (-1 if context.rank(x) == 1 else -2), -1
    else:
        axis = -2 if node.attributes.get_int("transA", 0) else -1
        weight_axis = -1 if node.attributes.get_int("transB", 0) else -2
    can_be_centred = is_standard(node, *_CENTRED) and index == 0 and rank == 2
    dtype = (element_type(required_input(node, 1 - index)) or ir.DataType.FLOAT).numpy()
    return Place(layer, x.name or "", index, axis, weight_axis, dtype, can_be_centred)


def rescaled(model: ir.Model, scales: Iterable[tuple[Group, Scale]]) -> ir.Model:
    """A copy of a model in which some layers get their inputs from other origins, in other units.

    Args:
        model: prepared; not changed.
        scales: groups of it (`groups`), and what their inputs are brought to. Only groups of layers that are all
            `Place.can_be_centred` may have an origin.
    """
    copy = model.clone()
    alive, names = pruning.alive(copy), names_of(copy.graph)
    editors = {graph: Editor(graph, opset(copy), names) for graph in copy.graphs()}
    nodes = {label: node for node, label in describe(copy).labels.items()}
    for group, scale in scales:
        uses = [_Use(place, nodes[place.layer.node], editors[graph_of(nodes[place.layer.node])]) for place in group]
        shifts = [None if scale.origin is None else _shift(use, scale.origin) for use in uses]
        if scale.factors is not None:
            _scale_weights(uses, scale.factors, editors[copy.graph])
        _scale_inputs(uses, scale)
        for use, shift in zip(uses, shifts, strict=True):
            if shift is not None:
                _add(use, shift)
    pruning.remove_dead(copy, alive)
    return copy


@dataclass(frozen=True, eq=False)
class _Use:
    """A layer in the model that is changed."""

    place: Place
    node: ir.Node
    editor: Editor

    @property
    def weight(self) -> ir.Value:
        return required_input(self.node, 1 - self.place.index)


def _shift(use: _Use, origin: Array) -> NDArray[np.float64]:
    """What the origin adds to the layer's outputs, [out]."""
    weight = _array(use.weight).astype(np.float64)
    alpha = use.node.attributes.get_float("alpha", 1.0)
    return alpha * np.tensordot(origin.astype(np.float64), weight, (0, weight.ndim + use.place.weight_axis))


def _scale_weights(uses: Sequence[_Use], factors: Array, editor: Editor) -> None:
    for value, axis in {use.weight: use.place.weight_axis for use in uses}.items():
        array = _array(value)
        divided = array.astype(np.float64) / _along(factors.astype(np.float64), axis)
        takers = [(use.node, 1 - use.place.index) for use in uses if use.weight is value]
        _replace_constant(value, divided.astype(array.dtype), takers, editor)


def _scale_inputs(uses: Sequence[_Use], scale: Scale) -> None:
    made: dict[tuple[ir.Value, int, ir.Graph], ir.Value] = {}
    for use in uses:
        x = required_input(use.node, use.place.index)
        key = (x, use.place.axis, use.editor.graph)
        if key not in made:
            nodes = list(_brought(x, use, scale))
            # Layers are in the order of the graph, so that this is the first that takes it.
            use.editor.graph.insert_before(use.node, nodes)
            made[key] = nodes[-1].outputs[0]
        use.node.replace_input_with(use.place.index, made[key])


def _brought(x: ir.Value, use: _Use, scale: Scale) -> Iterator[ir.Node]:
    """[Sub ->] [Mul], each with a Cast of its constant where that is stored in another type."""
    value, dtype = x, ir.DataType.from_numpy(use.place.dtype)
    for op_type, name, array in (("Sub", "origin", scale.origin), ("Mul", "factors", scale.factors)):
        if array is None:
            continue
        constant = use.editor.constant(f"{x.name}.{name}", _along(array, use.place.axis))
        if constant.dtype != dtype:
            cast = use.editor.cast(constant, dtype, f"{x.name}.{name}.cast")
            yield cast
            constant = cast.outputs[0]
        node = use.editor.node(op_type, [value, constant], f"{x.name}.{_RESULTS[op_type]}")
        value = node.outputs[0]
        value.type, value.shape = x.type, x.shape
        yield node


def _add(use: _Use, shift: NDArray[np.float64]) -> None:
    """Add a constant to what a layer gives: to the constant that it adds, where there is one."""
    node, place = use.node, use.place
    if node.op_type == "Gemm" and (len(node.inputs) < 3 or node.inputs[2] is None or _beta(node) == 0.0):
        node.attributes.pop("beta", None)
        node.resize_inputs(3)
        node.replace_input_with(2, use.editor.constant(f"{place.layer.weight}.shift", shift.astype(use.place.dtype)))
        return
    adding, index = (node, 2) if node.op_type == "Gemm" else _added(use)
    addend = None if adding is None else adding.inputs[index]
    array = values_of(addend)
    if addend is not None and array is not None and adding is not None:
        beta = _beta(node) if node.op_type == "Gemm" else 1.0
        sums = (array.astype(np.float64) + shift / beta).astype(array.dtype)
        _replace_constant(addend, sums, [(adding, index)], use.editor)
        return
    copy = ir.Node(node.domain, node.op_type, node.inputs, node.attributes.values(), name=place.layer.node)
    copy.outputs[0].name = use.editor.unique(f"{place.layer.node}.product")
    constant = use.editor.constant(f"{place.layer.weight}.shift", shift.astype(use.place.dtype))
    use.editor.replace([node], [copy, use.editor.node("Add", [copy.outputs[0], constant], f"{place.layer.node}.shift")])


def _added(use: _Use) -> tuple[ir.Node | None, int]:
    """The Add of a MatMul's bias, and which of its inputs that is."""
    for add, index in use.node.outputs[0].uses():
        other = add.inputs[1 - index] if add.op_type == "Add" else None
        if other is not None and other.name == use.place.layer.bias:
            return add, 1 - index
    return None, 0


def _beta(node: ir.Node) -> float:
    return node.attributes.get_float("beta", 1.0)


def _replace_constant(value: ir.Value, array: Array, takers: Sequence[tuple[ir.Node, int]], editor: Editor) -> None:
    """Give some nodes another constant: by its name where nobody else uses it."""
    is_own = value.is_initializer() and not (value.is_graph_input() or value.is_graph_output())
    if is_own and {(use.node, use.idx) for use in value.uses()} == set(takers):
        value.const_value, value.shape = ir.tensor(array, name=value.name), ir.Shape(array.shape)
        return
    constant = editor.constant(value.name or "", array)
    for node, index in takers:
        node.replace_input_with(index, constant)


def _along(values: Array, axis: int) -> Array:
    """Numbers [in] in a shape that spreads along an axis, counted from the last one, -1."""
    return values.reshape(-1, *[1] * (-axis - 1))


def _array(value: ir.Value) -> Array:
    array = values_of(value)
    if array is None:
        raise AssertionError("a layer's weight is constant")
    return array

"""Another order of a layer's inputs, in which its sub-vectors are more alike.

Sub-vectors of neighbouring inputs may be very different: those of an image's border are always zero and waste their
codes, those of its middle have all the weight of the error. Dealt out by how much they count, each sub-vector gets some
of all, and its codewords are put to use; at the same bytes the error of the outputs falls by up to a third
(`python -m benchmarks quantizer --orders`), or does not, and then the order stays. Training makes up for most of the
difference, so it is asked for only by those who do not train. The model is the same function as before: a Gather puts
the inputs in order, and the columns of the weights follow.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final, TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxpq.config import PQConfig
from onnxpq.graph import Layer, opset
from onnxpq.pq import InputStatistics, Layout
from onnxpq.quantization import allocation, encoding
from onnxpq.rewriting import Editor, describe

Order: TypeAlias = NDArray[np.intp]
Sizes: TypeAlias = NDArray[np.floating]

ROWS: Final = 256
"""Rows of a weight that an order is tried on, at random."""

MEASURED: Final = (PQConfig(8, 16), PQConfig(4, 256, "layer"))
"""What the gain of an order is measured by: the mean over these."""

MIN_GAIN: Final = 0.15
"""Bits a weight that an order has to save; fewer are not worth a Gather at run time."""

_PRODUCTS: Final = frozenset({"MatMul", "Gemm"})
_SIXTEEN_BITS: Final = 2**16


def groups(model: ir.Model, layers: Sequence[Layer]) -> dict[str, list[Layer]]:
    """The layers whose inputs may be put in another order, by the name of the value that they take.

    These are MatMul and Gemm of the main graph with a matrix of their own to the right; where one layer that takes a
    value is of another form, it and its weight are left out.

    Args:
        model: prepared (`onnxpq.graph.preparing.prepare`).
        layers: of it.
    """
    nodes = {label: node for node, label in describe(model).labels.items()}
    of_node = {nodes[layer.node]: layer for layer in layers}
    found: dict[str, list[Layer]] = {}
    for node, layer in of_node.items():
        x = node.inputs[0]
        users = {user for user, _ in _weight(node).uses()} if _is_plain(node, model, layer) else set()
        if (
            x is not None
            and x.name
            and users
            and all(user in of_node and user.inputs[0] is x and _is_plain(user, model, layer) for user in users)
        ):
            found.setdefault(x.name, []).append(layer)
    return found


def _is_plain(node: ir.Node, model: ir.Model, layer: Layer) -> bool:
    """Whether a layer is the product of a value and a matrix that is a constant by itself."""
    if node.op_type not in _PRODUCTS or node.domain != "" or node.graph is not model.graph or len(node.inputs) < 2:
        return False
    weight = node.inputs[1]
    return (
        weight is not None
        and weight.name == layer.weight
        and weight.is_initializer()
        and not (weight.is_graph_input() or weight.is_graph_output())
        and weight.const_value is not None
        and len(weight.const_value.shape) == 2
        and not node.attributes.get_int("transA", 0)
    )


def _weight(node: ir.Node) -> ir.Value:
    weight = node.inputs[1]
    if weight is None:
        raise AssertionError("a layer has a weight")
    return weight


def gaining(
    grouped: Mapping[str, Sequence[Layer]],
    found: Iterable[tuple[str, InputStatistics | str]],
    matrix: Callable[[Layer], Tensor],
    *,
    seed: int,
) -> dict[str, Sizes]:
    """The values whose order is worth its bytes.

    Args:
        grouped: from `groups`.
        found: statistics of the inputs by weight (`onnxpq.quantization.calibration.collect`).
        matrix: a layer's weight as [out, in].
        seed: of the choice of rows that are measured.

    Returns:
        By the name of the value: [in], how much each input counts.
    """
    of_weight = {group[0].weight: value for value, group in grouped.items()}
    sizes: dict[str, Sizes] = {}
    for weight, statistics in found:
        if weight not in of_weight or isinstance(statistics, str):
            continue
        group = {layer.weight: layer for layer in grouped[of_weight[weight]]}
        whole = torch.cat([*map(matrix, group.values())])
        # As the quantizer sees them: what the rows did not show counts a little, too.
        size = np.diagonal(statistics.regularized()) * whole.square().sum(0).numpy()
        bits = _saved(next(iter(group.values())), whole, size, statistics, seed)
        if bits >= MIN_GAIN and bits * whole.numel() / 8 > order_bytes(len(size)):
            sizes[of_weight[weight]] = size
    return sizes


def _saved(layer: Layer, matrix: Tensor, size: Sizes, statistics: InputStatistics, seed: int) -> float:
    """Bits a weight that another order saves: one halves the error (6 dB, rate-distortion theory of a Gaussian)."""
    rows = np.random.default_rng(seed).permutation(len(matrix))[:ROWS]
    part = matrix[np.sort(rows)]
    own = replace(layer, out_features=len(part), weight_bytes=4 * part.numel())
    bits = []
    for settings in MEASURED:
        layout = allocation.layout_of(own, settings)
        order = dealt(size, layout.sub_vector)
        before = _error(part, layout, statistics, seed)
        after = _error(part[:, order], layout, statistics.reordered(order), seed)
        bits.append(math.log2(before / after) if before > 0 and after > 0 else 0.0)
    return sum(bits) / len(bits)


def _error(matrix: Tensor, layout: Layout, statistics: InputStatistics, seed: int) -> float:
    """Root mean square of what the outputs of a matrix [out, in] miss.

    By the whole quantizer: a single pass, as for the sensitivity, shows some orders to be worse that its rounds make
    better.
    """
    missed = matrix - encoding.quantize(matrix, layout, seed=seed, statistics=statistics).matrix()
    moment = torch.from_numpy(statistics.second_moment).float()
    return math.sqrt(max(0.0, float(torch.einsum("oi,oi->", missed, missed @ moment))))


def dealt(size: Sizes, sub_vector: int) -> Order:
    """The order in which sub-vectors are alike: of each there is one of the largest inputs, one of the next, and so on.

    Args:
        size: [in], how much each input counts.
        sub_vector: their length d.

    Returns:
        [in], the input that comes to each place.
    """
    count = len(size)
    sub_vectors = -(-count // sub_vector)
    ranked = np.full(sub_vector * sub_vectors, -1)
    ranked[:count] = np.argsort(-size, kind="stable")
    places = ranked.reshape(sub_vector, sub_vectors)
    # Back and forth, so that the first do not get the larger one each time.
    places[1::2] = places[1::2, ::-1]
    # What fills up the last place of some sub-vectors is dropped, and they go last: a layer has one that is not full.
    full = np.argsort((places < 0).any(0), kind="stable")
    order = places[:, full].T.ravel()
    return order[order >= 0]


def order_bytes(count: int) -> int:
    """Bytes of an order of so many inputs in the file."""
    return count * (2 if count <= _SIXTEEN_BITS else 4)


def orderable(
    model: ir.Model, grouped: Mapping[str, Sequence[Layer]], values: Iterable[str]
) -> tuple[ir.Model, dict[str, str]]:
    """A copy of a model in which the inputs of some layers go through a Gather that leaves them in their order.

    Args:
        model: prepared; not changed.
        grouped: from `groups` of this model.
        values: names of the values that are to be put in order.

    Returns:
        The copy, and by the name of each of these values that of the one behind the Gather.
    """
    copy = model.clone()
    editor = Editor(copy.graph, opset(copy))
    nodes = {label: node for node, label in describe(copy).labels.items()}
    names: dict[str, str] = {}
    for name in values:
        takers = {nodes[layer.node] for layer in grouped[name]}
        first = next(node for node in copy.graph if node in takers)
        made = list(_gather(editor, first, np.arange(grouped[name][0].in_features)))
        copy.graph.insert_before(first, made)
        for node in takers:
            node.replace_input_with(0, made[-1].outputs[0])
        names[name] = made[-1].outputs[0].name or ""
    return copy, names


def arranged(model: ir.Model, orders: Mapping[str, Order]) -> ir.Model:
    """A copy of a model in which values are in other orders, and with them the columns of the weights behind.

    Args:
        model: from `orderable`, or that model normalised; not changed.
        orders: by the name of the value behind the Gather: [in].
    """
    copy = model.clone()
    for name, order in orders.items():
        value = next(value for node in copy.graph for value in node.outputs if value.name == name)
        index = _order_of(value)
        index.const_value = ir.Tensor(_stored(order), name=index.name)
        for weight, is_in_out in {_weight(user): _is_in_out(user) for user, _ in value.uses()}.items():
            weight.const_value = _permuted(weight, order, 0 if is_in_out else 1)
    return copy


def _order_of(ordered: ir.Value) -> ir.Value:
    """The constant that a Gather takes its order from."""
    value = ordered
    while (node := value.producer()) is not None:
        source = node.inputs[-1]
        if source is None:
            raise AssertionError("a Gather of ours has its index")
        value = source
    return value


def _is_in_out(node: ir.Node) -> bool:
    return not (node.op_type == "Gemm" and node.attributes.get_int("transB", False))


def _gather(editor: Editor, first: ir.Node, order: Order) -> Iterator[ir.Node]:
    x = first.inputs[0]
    if x is None:
        raise AssertionError("a layer has an input")
    index = editor.constant(f"{x.name}.order", _stored(order))
    if index.dtype == ir.DataType.UINT16:
        cast = editor.cast(index, ir.DataType.INT64, f"{x.name}.order.cast")
        yield cast
        index = cast.outputs[0]
    gather = editor.node("Gather", [x, index], f"{x.name}.ordered", [ir.AttrInt64("axis", -1)])
    gather.outputs[0].type, gather.outputs[0].shape = x.type, x.shape
    yield gather


def _stored(order: Order) -> NDArray[np.generic]:
    # Gather takes no integers of 16 bits; onnxruntime casts them once, when it loads the model.
    return order.astype(np.uint16 if len(order) <= _SIXTEEN_BITS else np.int32)


def _permuted(weight: ir.Value, order: Order, axis: int) -> ir.LazyTensor:
    """The weight in order along an axis, computed whenever it is read: a model may be larger than the memory."""
    tensor = weight.const_value
    if tensor is None:
        raise AssertionError("a layer's weight has values")
    return ir.LazyTensor(
        lambda: ir.Tensor(np.take(tensor.numpy(), order, axis), dtype=tensor.dtype, name=tensor.name),
        dtype=tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
        doc_string=tensor.doc_string,
    )

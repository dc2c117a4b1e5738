"""Constants of a graph, and what is seen of them through operators that only rearrange, cut out or join their entries.

Exporters write a weight as an initializer or as a Constant node, and put Transpose, Reshape, Split and the like between
it and the node that multiplies by it. `values_of` looks through them; `matrix_base` finds the constant that is a
matrix already, so that users of a matrix and of its transpose know that they share it.
"""

from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import Any, Final, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

FLOATS: Final = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
"""The types that weights are stored and multiplied in."""


def is_standard(node: ir.Node, *op_types: str) -> bool:
    """Whether the node is one of these operators of ai.onnx."""
    return node.domain in ("", "ai.onnx") and node.op_type in op_types


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor of an initializer or of a Constant node's output; None for any other value."""
    if value is None:
        return None
    if value.is_initializer():
        return value.const_value
    node = value.producer()
    if node is None or not is_standard(node, "Constant"):
        return None
    attribute = next(iter(node.attributes.values()), None)
    if attribute is None or attribute.is_ref() or attribute.type == ir.AttributeType.SPARSE_TENSOR:
        return None
    return ir.convenience.get_const_tensor(value)


def rearranges(node: ir.Node) -> bool:
    """Whether the node gives out entries of its first input (Concat: of all) as they are, in another arrangement.

    A Cast between floating-point types counts: it changes a weight by rounding only.
    """
    if is_standard(node, "Cast"):
        source = _float_source(node)
        return source and ir.DataType(node.attributes.get_int("to", 0)) in FLOATS
    return is_standard(node, *_REARRANGEMENTS)


def moved(node: ir.Node) -> Sequence[ir.Value | None]:
    """Those inputs of a node that `rearranges` whose entries it gives out; the others say how."""
    return node.inputs if node.op_type == "Concat" else node.inputs[:1]


def values_of(value: ir.Value | None) -> Array | None:
    """The entries of a constant that no caller can replace, or of one behind nodes that `rearranges`; a numpy view.

    Returns:
        None where the value depends on something else.
    """
    if value is None or value.is_graph_input():
        return None
    tensor = constant(value)
    if tensor is not None:
        return tensor.numpy()
    node = value.producer()
    if node is None or not rearranges(node):
        return None
    arrays = [values_of(source) for source in node.inputs]
    if any(array is None and source is not None for array, source in zip(arrays, node.inputs, strict=True)):
        return None
    try:
        results = _REARRANGEMENTS[node.op_type](node, *arrays)
    except (ValueError, IndexError, TypeError):
        # Numbers that do not fit each other: onnxruntime will say so; here it is no weight.
        return None
    return next(array for output, array in zip(node.outputs, results, strict=True) if output is value)


def shape_of(value: ir.Value | None) -> tuple[int, ...] | None:
    """Shape of what `values_of` gives; None where it gives none. Reads no values where it need not."""
    tensor = None if value is None or value.is_graph_input() else constant(value)
    if tensor is not None:
        return tuple(int(size) for size in tensor.shape.numpy())
    array = values_of(value)
    return None if array is None else array.shape


def roots(value: ir.Value) -> Iterator[ir.Value]:
    """The constants whose entries reach a value for which `values_of` is not None."""
    node = value.producer()
    if constant(value) is not None or node is None:
        yield value
        return
    for source in moved(node):
        if source is not None:
            yield from roots(source)


def swaps_last_axes(node: ir.Node) -> bool | None:
    """For a node that passes a stack of matrices on: whether it transposes each. None for any other node."""
    if is_standard(node, "Identity"):
        return False
    if is_standard(node, "Cast"):
        return False if rearranges(node) else None
    if not is_standard(node, "Transpose"):
        return None
    perm = node.attributes.get_ints("perm", None)
    if perm is None:
        array = values_of(node.inputs[0])
        rank = 2 if array is None else array.ndim
        perm = list(range(rank))[::-1]
    rank = len(perm)
    if list(perm) == list(range(rank)):
        return False
    return True if rank >= 2 and list(perm) == [*range(rank - 2), rank - 1, rank - 2] else None


def matrix_base(value: ir.Value) -> tuple[ir.Value, bool]:
    """The value from which `value` differs by its type at most, and by each matrix being transposed, which is told."""
    node = value.producer()
    swaps = None if node is None or constant(value) is not None else swaps_last_axes(node)
    source = None if node is None or swaps is None else node.inputs[0]
    if source is None or swaps is None:
        return value, False
    base, transposed = matrix_base(source)
    return base, transposed != swaps


def element_type(value: ir.Value) -> ir.DataType | None:
    """Type of a constant, or of one behind nodes that `rearranges`."""
    tensor = constant(value)
    if tensor is not None:
        return tensor.dtype
    node = value.producer()
    source = None if node is None or not rearranges(node) else node.inputs[0]
    if node is None or source is None:
        return value.dtype
    return ir.DataType(node.attributes.get_int("to", 0)) if node.op_type == "Cast" else element_type(source)


def _float_source(node: ir.Node) -> bool:
    source = node.inputs[0]
    return source is not None and element_type(source) in FLOATS


def _numbers(node: ir.Node, name: str, array: Array | None) -> list[int] | None:
    """Sizes or axes: an input in newer operator sets, an attribute in older ones."""
    if array is not None:
        return [int(number) for number in array.reshape(-1)]
    numbers = node.attributes.get_ints(name, None)
    return None if numbers is None else list(numbers)


def _identity(_: ir.Node, x: Array) -> list[Array]:
    return [x]


def _cast(node: ir.Node, x: Array) -> list[Array]:
    with np.errstate(over="ignore"):
        return [x.astype(ir.DataType(node.attributes.get_int("to", 0)).numpy(), copy=False)]


def _transpose(node: ir.Node, x: Array) -> list[Array]:
    return [x.transpose(_numbers(node, "perm", None) or range(x.ndim)[::-1])]


def _reshape(node: ir.Node, x: Array, shape: Array) -> list[Array]:
    sizes = _numbers(node, "shape", shape) or []
    if not node.attributes.get_int("allowzero", 0):
        sizes = [x.shape[axis] if size == 0 else size for axis, size in enumerate(sizes)]
    return [x.reshape(sizes)]


def _flatten(node: ir.Node, x: Array) -> list[Array]:
    axis = node.attributes.get_int("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return [x.reshape(prod(x.shape[:axis]), prod(x.shape[axis:]))]


def _squeeze(node: ir.Node, x: Array, axes: Array | None = None) -> list[Array]:
    numbers = _numbers(node, "axes", axes)
    return [x.squeeze() if numbers is None else x.squeeze(tuple(numbers))]


def _unsqueeze(node: ir.Node, x: Array, axes: Array | None = None) -> list[Array]:
    return [np.expand_dims(x, tuple(_numbers(node, "axes", axes) or ()))]


def _slice(
    node: ir.Node,
    x: Array,
    starts: Array | None = None,
    ends: Array | None = None,
    axes: Array | None = None,
    steps: Array | None = None,
) -> list[Array]:
    first, last = _numbers(node, "starts", starts) or [], _numbers(node, "ends", ends) or []
    along = _numbers(node, "axes", axes) or list(range(len(first)))
    step = _numbers(node, "steps", steps) or [1] * len(first)
    index = [slice(None)] * x.ndim
    for axis, start, end, by in zip(along, first, last, step, strict=True):
        size = x.shape[axis]
        # Backwards, ONNX starts at the first entry at the earliest, and an end before it includes it: None to Python.
        stop = None if by < 0 and end < -size else end
        index[axis] = slice(max(start, -size), stop, by)
    return [x[tuple(index)]]


def _split(node: ir.Node, x: Array, sizes: Array | None = None) -> list[Array]:
    axis, count = node.attributes.get_int("axis", 0), len(node.outputs)
    numbers = _numbers(node, "split", sizes)
    if numbers is None:
        chunk = -(-x.shape[axis] // count)
        numbers = [chunk] * (count - 1)
    return list(np.split(x, np.cumsum(numbers)[: count - 1], axis))


def _concat(node: ir.Node, *arrays: Array) -> list[Array]:
    return [np.concatenate(arrays, node.attributes.get_int("axis", 0))]


def _gather(node: ir.Node, x: Array, index: Array) -> list[Array]:
    return [x.take(index, node.attributes.get_int("axis", 0))]


_REARRANGEMENTS: Final[dict[str, Callable[..., list[Array]]]] = {
    "Cast": _cast,
    "Concat": _concat,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": _identity,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}

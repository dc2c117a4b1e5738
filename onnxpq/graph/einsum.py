"""Einsum that multiplies by a constant matrix, spelt as MatMul.

Exporters of jax and Keras write attention's projections as ``Einsum("btd,dnh->btnh", x, w)``. Where the sum runs over
axes that x and w have in common, and no axis is in all three terms, that is a fully-connected layer from the summed
axes to the others of w: ``x [rows, in] @ w [in, out]``, with a Transpose and a Reshape where the axes are not in order.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from onnxpq.graph.constants import FLOATS, element_type, is_standard, shape_of, values_of
from onnxpq.graph.walking import graph_of

_ELLIPSIS = "."
"""Stands for the axes that "..." does, whose number is not known."""


def is_layer(node: ir.Node) -> bool:
    """Whether a node is an Einsum that can be spelt as MatMul."""
    return _form(node) is not None


def spell_as_matmul(node: ir.Node, names: set[str]) -> None:
    """Put [Transpose ->] [Reshape ->] MatMul [-> Reshape] [-> Transpose] in the place of an Einsum that `is_layer`.

    The MatMul takes over the node's name, the last node the name of its output.

    Args:
        node: the node, in a graph.
        names: that are taken; those of the new nodes are added.
    """
    form, graph = _form(node), graph_of(node)
    if form is None:
        raise ValueError(f"Node '{node.name}' ({node.op_type}) is no Einsum with a constant matrix.")
    build = _Builder(graph, node.name or node.outputs[0].name or "Einsum", names)
    x = build.ordered(form.given, form.x, form.rows + form.summed, "x")
    if len(form.summed) > 1:
        x = build.reshaped(x, [*[0] * len(form.rows), -1], "x")
    weight = build.ordered(form.weight, form.w, form.summed + form.kept, "w")
    if not len(form.summed) == len(form.kept) == 1:
        weight = build.reshaped(weight, form.matrix, "w")
    product = ir.Node("", "MatMul", [x, weight], name=node.name, doc_string=node.doc_string)
    y = build.add(product, f"{build.name}.product")
    if len(form.kept) != 1:
        y = build.reshaped(y, [*[0] * len(form.rows), *form.sizes], "y")
    y = build.ordered(y, form.rows + form.kept, form.y, "y")
    old = node.outputs[0]
    y.metadata_props.update(old.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, node, [node], build.nodes, [old], [y])


@dataclass(frozen=True)
class _Form:
    """The axes of an Einsum, a letter each.

    Attributes:
        given, weight: the two factors; the second is constant.
        x, w, y: axes of the factors and of the result.
        rows: axes of x and y, in the order of x.
        summed: axes of x and w.
        kept: axes of w and y, in the order of w.
        sizes: of `kept`.
        matrix: [in, out].
    """

    given: ir.Value
    weight: ir.Value
    x: str
    w: str
    y: str
    rows: str
    summed: str
    kept: str
    sizes: tuple[int, ...]
    matrix: tuple[int, int]


def _form(node: ir.Node) -> _Form | None:
    if not is_standard(node, "Einsum") or len(node.inputs) != 2:
        return None
    terms, y = _terms(node.attributes.get_string("equation", "") or "")
    if len(terms) != 2 or y is None:
        return None
    for index in (1, 0):
        value, other = node.inputs[index], node.inputs[1 - index]
        if value is not None and other is not None and _is_weight(value) and values_of(other) is None:
            return _matched(other, value, terms[1 - index], terms[index], y)
    return None


def _is_weight(value: ir.Value) -> bool:
    return values_of(value) is not None and element_type(value) in FLOATS


def _matched(given: ir.Value, weight: ir.Value, x: str, w: str, y: str) -> _Form | None:
    rows = "".join(axis for axis in x if axis in y and axis not in w)
    summed = "".join(axis for axis in w if axis in x and axis not in y)
    kept = "".join(axis for axis in w if axis in y and axis not in x)
    shape = shape_of(weight) or ()
    is_product = sorted(x) == sorted(rows + summed) and sorted(w) == sorted(summed + kept) and summed and kept
    if not is_product or sorted(y) != sorted(rows + kept) or len(set(y)) != len(y) or len(shape) != len(w):
        return None
    if _ELLIPSIS in w or (_ELLIPSIS in x and not (x == rows + summed and y == rows + kept and len(w) == 2)):
        return None
    size = dict(zip(w, shape, strict=True))
    sizes = tuple(size[axis] for axis in kept)
    matrix = (int(np.prod([size[axis] for axis in summed])), int(np.prod(sizes)))
    return _Form(given, weight, x, w, y, rows, summed, kept, sizes, matrix)


def _terms(equation: str) -> tuple[list[str], str | None]:
    """The axes of the factors and of the result; None as the latter where an axis occurs twice in a factor."""
    left, arrow, result = equation.replace(" ", "").replace("...", _ELLIPSIS).partition("->")
    terms = left.split(",")
    if any(len(set(term)) != len(term) for term in terms):
        return terms, None
    if not arrow:
        counts = Counter(left.replace(",", ""))
        result = "".join(sorted(axis for axis in counts if counts[axis] == 1 or axis == _ELLIPSIS))
    return terms, result


class _Builder:
    """New nodes, in order, and new constants of a graph."""

    def __init__(self, graph: ir.Graph, name: str, names: set[str]) -> None:
        self.graph, self.name, self.names = graph, name, names
        self.nodes: list[ir.Node] = []

    def add(self, node: ir.Node, name: str) -> ir.Value:
        node.outputs[0].name = self._unique(name)
        self.nodes.append(node)
        return node.outputs[0]

    def ordered(self, value: ir.Value, axes: str, wanted: str, name: str) -> ir.Value:
        """The value with its axes in the wanted order."""
        if axes == wanted:
            return value
        perm = ir.AttrInt64s("perm", [axes.index(axis) for axis in wanted])
        node = ir.Node("", "Transpose", [value], [perm], name=self._unique(f"{self.name}.transpose_{name}"))
        return self.add(node, f"{node.name}.output")

    def reshaped(self, value: ir.Value, sizes: Sequence[int], name: str) -> ir.Value:
        tensor = ir.tensor(np.array(sizes, np.int64), name=self._unique(f"{self.name}.shape_{name}"))
        shape = ir.Value(
            name=tensor.name, type=ir.TensorType(tensor.dtype), shape=ir.Shape([len(sizes)]), const_value=tensor
        )
        self.graph.register_initializer(shape)
        node = ir.Node("", "Reshape", [value, shape], name=self._unique(f"{self.name}.reshape_{name}"))
        return self.add(node, f"{node.name}.output")

    def _unique(self, name: str) -> str:
        candidate = next(text for text in _numbered(name) if text not in self.names)
        self.names.add(candidate)
        return candidate


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 0
    while True:
        number += 1
        yield f"{name}_{number}"

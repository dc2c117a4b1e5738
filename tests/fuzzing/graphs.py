"""Random ONNX graphs that grow node by node: values know their shapes, constants come in the forms that files have.

A dimension is a number or a symbol: "N" is the samples of a call, "T" another open size. What a model is made of, and
how large it is, follows from one random generator: a seed repeats it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

Dim: TypeAlias = int | str
Choice = TypeVar("Choice")

FLOATS = ("float32", "float16", "float64")


@dataclass(frozen=True)
class Value:
    """A tensor of the graph."""

    name: str
    shape: tuple[Dim, ...]
    dtype: str = "float32"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def last(self) -> Dim:
        return self.shape[-1] if self.shape else 1

    @property
    def is_float(self) -> bool:
        return self.dtype in FLOATS


def type_number(dtype: str) -> int:
    return int(helper.np_dtype_to_tensor_dtype(np.dtype(dtype)))


@dataclass
class Builder:
    """A graph that grows.

    Attributes:
        rng: of every choice.
        opset: of ai.onnx.
        nodes: of the graph that is being built: the main one, or a subgraph's.
        tensors: initializers of the main graph.
        functions: local ones by name.
        exposed: initializers that are graph inputs as well.
        weights: numbers in what was drawn as a weight so far.
        own: initializers of the subgraph that is being built.
        units: by input, what its columns are multiplied by.
        prefix: of the values' names.
        depth: of subgraphs around the present one.
    """

    rng: np.random.Generator
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: dict[str, NDArray[Any]] = field(default_factory=dict)
    functions: dict[str, onnx.FunctionProto] = field(default_factory=dict)
    exposed: list[str] = field(default_factory=list)
    weights: int = 0
    own: dict[str, NDArray[Any]] = field(default_factory=dict)
    units: dict[str, NDArray[Any]] = field(default_factory=dict)
    prefix: str = "v"
    depth: int = 0
    count: int = 0

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def pick(self, options: Sequence[Choice]) -> Choice:
        return options[int(self.rng.integers(len(options)))]

    def fresh(self, prefix: str | None = None) -> str:
        self.count += 1
        return f"{self.prefix if prefix is None else prefix}{self.count}"

    def node(
        self,
        op_type: str,
        inputs: Sequence[Value | str],
        *shapes: Sequence[Dim],
        dtype: str | None = None,
        domain: str = "",
        **attributes: Any,
    ) -> Any:
        """A node; its output, or its outputs where there are several shapes."""
        given = [entry.name if isinstance(entry, Value) else entry for entry in inputs]
        kind = dtype or next((entry.dtype for entry in inputs if isinstance(entry, Value)), "float32")
        outputs = [Value(self.fresh(), tuple(shape), kind) for shape in shapes]
        name = self.fresh("n") if self.chance(0.9) else ""
        names = [value.name for value in outputs]
        self.nodes.append(helper.make_node(op_type, given, names, name=name, domain=domain, **attributes))
        return outputs[0] if len(outputs) == 1 else outputs

    @contextmanager
    def inside(self) -> Iterator[list[onnx.NodeProto]]:
        """Nodes that are added meanwhile are those of a subgraph."""
        outer, self.nodes = self.nodes, []
        tensors, self.own = self.own, {}
        self.depth += 1
        try:
            yield self.nodes
        finally:
            self.nodes, self.own = outer, tensors
            self.depth -= 1

    def subgraph(
        self, inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto]
    ) -> onnx.GraphProto:
        """The graph that is being built inside."""
        tensors = [numpy_helper.from_array(array, name) for name, array in self.own.items()]
        return helper.make_graph(self.nodes, self.fresh("g"), inputs, outputs, tensors)

    def constant(self, array: Any, dtype: str | None = None) -> str:
        """A constant that is no weight, in a node or an initializer."""
        values = np.asarray(array, dtype)
        name = self.fresh("c")
        if self.chance(0.3):
            tensor = numpy_helper.from_array(values)
            self.nodes.append(helper.make_node("Constant", [], [name], value=tensor))
        else:
            self.tensors[name] = values
        return name

    def integers(self, *numbers: int) -> str:
        return self.constant(np.array(numbers, np.int64))

    def numbers(self, shape: Sequence[int], dtype: str = "float32", *, fan_in: int | None = None) -> NDArray[Any]:
        scale = 1 / np.sqrt(max(1, fan_in if fan_in is not None else int(np.prod(shape[:-1]))))
        return (scale * self.rng.standard_normal(tuple(shape))).astype(dtype)

    def weight(self, shape: Sequence[int], dtype: str = "float32", *, fan_in: int) -> str:
        """A weight: a new one or one that is there, an initializer or what rearranges one."""
        shape = tuple(shape)
        same = [n for n, array in self.tensors.items() if array.shape == shape and array.dtype == dtype and n[0] == "w"]
        if same and self.chance(0.15):
            return self.pick(same)
        self.weights += int(np.prod(shape))
        forms = [_initializer] * 8 + [_in_a_node, _transposed, _reshaped, _sliced, _cast, _identity, _exposed]
        return self.pick(forms)(self, self.numbers(shape, dtype, fan_in=fan_in))

    def store(self, array: NDArray[Any]) -> str:
        name = self.fresh("w")
        if self.depth and self.chance(0.25):
            self.own[name] = array
        else:
            self.tensors[name] = array
        return name


def _initializer(b: Builder, array: NDArray[Any]) -> str:
    return b.store(array)


def _in_a_node(b: Builder, array: NDArray[Any]) -> str:
    name = b.fresh("w")
    b.nodes.append(helper.make_node("Constant", [], [name], value=numpy_helper.from_array(array)))
    return name


def _derived(b: Builder, op_type: str, inputs: Sequence[str], **attributes: Any) -> str:
    name = b.fresh("w")
    b.nodes.append(helper.make_node(op_type, inputs, [name], **attributes))
    return name


def _transposed(b: Builder, array: NDArray[Any]) -> str:
    order = list(range(array.ndim))[::-1]
    return _derived(b, "Transpose", [b.store(np.ascontiguousarray(array.transpose(order)))], perm=order)


def _reshaped(b: Builder, array: NDArray[Any]) -> str:
    flat = array.reshape(-1) if b.chance(0.5) else array[None]
    return _derived(b, "Reshape", [b.store(flat), b.integers(*array.shape)])


def _sliced(b: Builder, array: NDArray[Any]) -> str:
    longer = np.concatenate([array[:1], array, array[:2]])
    return _derived(b, "Slice", [b.store(longer), b.integers(1), b.integers(1 + len(array)), b.integers(0)])


def _cast(b: Builder, array: NDArray[Any]) -> str:
    other = b.pick([dtype for dtype in FLOATS if dtype != array.dtype])
    return _derived(b, "Cast", [b.store(array.astype(other))], to=type_number(str(array.dtype)))


def _identity(b: Builder, array: NDArray[Any]) -> str:
    return _derived(b, "Identity", [b.store(array)])


def _exposed(b: Builder, array: NDArray[Any]) -> str:
    name = b.store(array)
    if name in b.tensors and b.chance(0.3):
        b.exposed.append(name)
    return name


def cast(b: Builder, v: Value, dtype: str) -> Value:
    return b.node("Cast", [v], v.shape, dtype=dtype, to=type_number(dtype))


def transpose(b: Builder, v: Value, *order: int) -> Value:
    return b.node("Transpose", [v], [v.shape[axis] for axis in order], perm=list(order))


def reshape(b: Builder, v: Value, shape: Sequence[Dim]) -> Value:
    """To a shape whose open sizes stand where they stood, or are the one that is left over, or are looked up."""
    sizes: list[int] = []
    for axis, dim in enumerate(shape):
        if isinstance(dim, int):
            sizes.append(dim)
        elif axis < v.rank and v.shape[axis] == dim:
            sizes.append(0)
        else:
            sizes.append(-1)
    if sizes.count(-1) <= 1 and b.chance(0.8):
        return b.node("Reshape", [v, b.integers(*sizes)], shape)
    known = b.node("Shape", [v], [v.rank], dtype="int64")
    parts = []
    for dim, size in zip(shape, sizes, strict=True):
        if isinstance(dim, int) or dim not in v.shape:
            parts.append(b.integers(size))
        else:
            place = b.integers(v.shape.index(dim))
            parts.append(b.node("Gather", [known, place], [1], dtype="int64").name)
    return b.node("Reshape", [v, b.node("Concat", parts, [len(parts)], dtype="int64", axis=0)], shape, dtype=v.dtype)


def reduce(b: Builder, op_type: str, v: Value, axes: Sequence[int], *, keepdims: bool = False) -> Value:
    kept = [1 if axis in axes else dim for axis, dim in enumerate(v.shape) if keepdims or axis not in axes]
    if b.opset >= (13 if op_type == "ReduceSum" else 18):
        return b.node(op_type, [v, b.integers(*axes)], kept, keepdims=int(keepdims))
    return b.node(op_type, [v], kept, keepdims=int(keepdims), axes=list(axes))


def unsqueeze(b: Builder, v: Value, axis: int) -> Value:
    shape = [*v.shape[:axis], 1, *v.shape[axis:]]
    if b.opset >= 13:
        return b.node("Unsqueeze", [v, b.integers(axis)], shape)
    return b.node("Unsqueeze", [v], shape, axes=[axis])


def squeeze(b: Builder, v: Value, axis: int) -> Value:
    shape = [*v.shape[:axis], *v.shape[axis + 1 :]]
    if b.opset >= 13:
        return b.node("Squeeze", [v, b.integers(axis)], shape)
    return b.node("Squeeze", [v], shape, axes=[axis])


def sliced(b: Builder, v: Value, axis: int, start: int, stop: int) -> Value:
    shape = [*v.shape[:axis], stop - start, *v.shape[axis + 1 :]]
    return b.node("Slice", [v, b.integers(start), b.integers(stop), b.integers(axis)], shape)


def concat(b: Builder, values: Sequence[Value], axis: int) -> Value:
    total = sum(int(v.shape[axis]) for v in values)
    return b.node("Concat", values, [*values[0].shape[:axis], total, *values[0].shape[axis + 1 :]], axis=axis)

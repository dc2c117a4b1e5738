"""What a model is given: its inputs, where their samples lie, and which of them are states.

Samples lie along axis 0 as a rule. States of recurrent networks are [layers, N, H], the keys and values that a decoder
keeps [2, N, heads, T, D]. There the names and sizes of the other inputs tell the axis, or the user does.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq.config import BatchAxes
from onnxpq.errors import DataError, ModelError

Array: TypeAlias = NDArray[np.generic]

TEXT = np.dtype(np.object_)
"""Element type of an input of strings."""

Dimension: TypeAlias = int | str | None
"""A size, the name of an open one, or None for an open one without a name."""


@dataclass(frozen=True)
class InputSpec:
    """An input of a model.

    Attributes:
        name: of the input.
        dtype: of its elements.
        shape: its sizes, None where one is open.
        axis: where its samples lie.
        names: of its open dimensions, None where there is none; empty where they are not known.
        start: sizes with which a state begins: a number, the name of a dimension of another input, or None along
            `axis`. None of an input that is no state.
        follower: the output that gives a state its value in the next call.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | None, ...]
    axis: int = 0
    names: tuple[str | None, ...] = field(default=(), compare=False)
    start: tuple[Dimension, ...] | None = field(default=None, compare=False)
    follower: str | None = field(default=None, compare=False)

    @property
    def batch(self) -> int | None:
        """The number of samples that it prescribes, None where that is open."""
        return self.shape[self.axis] if len(self.shape) > self.axis else None

    def describe(self) -> str:
        """Type and shape as a person writes them, e.g. ``float32 [N, 784]``."""
        dims = [str(d) if d is not None else "N" if i == self.axis else "?" for i, d in enumerate(self.shape)]
        return f"{'string' if self.dtype == TEXT else self.dtype} [{', '.join(dims)}]"


def input_specs(
    model: ir.Model, ranks: Mapping[str, int] | None = None, axes: BatchAxes | None = None
) -> list[InputSpec]:
    """The inputs of a model that data has to give: those without an initializer.

    Args:
        model: the model.
        ranks: of inputs whose shape the model does not tell, by name.
        axes: where the samples lie, as far as the user said.

    Raises:
        ModelError: an input is no tensor, or its type or rank is not known.
        DataError: an input has no such axis.
    """
    specs = []
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        if isinstance(value.type, ir.SequenceType | ir.OptionalType):
            kind = "a sequence" if isinstance(value.type, ir.SequenceType) else "optional"
            raise ModelError(
                f"Input '{value.name}' is {kind} ({value.type}): onnxpq gives models tensors alone, so that it cannot "
                "run this one. Export it with a tensor there, or compress the part behind that input by itself."
            )
        rank = None if ranks is None else ranks.get(str(value.name))
        shape = [None] * rank if value.shape is None and rank is not None else value.shape
        if not isinstance(value.type, ir.TensorType) or shape is None:
            raise ModelError(
                f"Input '{value.name}' has type {value.type} and shape {value.shape}: onnxpq needs tensors of known "
                "rank. Export the model with the shapes of its inputs, open dimensions being named."
            )
        sizes = tuple(dim if isinstance(dim, int) else None for dim in shape)
        names = tuple(dim.value if isinstance(dim, ir.SymbolicDim) else None for dim in shape)
        specs.append(InputSpec(str(value.name), np.dtype(value.type.dtype.numpy()), sizes, names=names))
    return _with_starts(_placed(specs, axes or BatchAxes()), model.graph.outputs)


def has_samples(inputs: Iterable[InputSpec]) -> bool:
    """Whether all inputs of a model can have samples in common: a scalar cannot, nor can two fixed sizes."""
    specs = list(inputs)
    fixed = {spec.batch for spec in specs if spec.batch is not None}
    return all(len(spec.shape) > spec.axis for spec in specs) and len(fixed) <= 1


def fixed_batch(inputs: Iterable[InputSpec]) -> int | None:
    """The number of samples that the inputs prescribe, None where it is open.

    Raises:
        DataError: two inputs prescribe different ones.
    """
    return common_batch({spec.name: spec.batch for spec in inputs if spec.shape})


def common_batch(sizes: Mapping[str, int | None]) -> int | None:
    """The one number among the batch dimensions of a model's inputs, None where all are open.

    Raises:
        DataError: there are two numbers.
    """
    fixed = {name: size for name, size in sizes.items() if size is not None}
    if len(set(fixed.values())) > 1:
        raise DataError(
            f"The model's inputs have different fixed batch dimensions: {fixed}. Where the samples lie along another "
            "axis, say so with --batch-axis NAME=1; where the inputs have none in common, give whole calls: a folder "
            "with an .npz file for each."
        )
    return next(iter(fixed.values()), None)


def begin(spec: InputSpec, batch: int, given: Mapping[str, Array], inputs: Sequence[InputSpec]) -> Array:
    """The zeros that a state begins with.

    Args:
        spec: of the state.
        batch: size along its axis.
        given: other inputs, as the model takes them.
        inputs: of the model.
    """
    known = {
        name: given[other.name].shape[axis]
        for other in inputs
        if other.name in given
        for axis, name in enumerate(other.names)
        if name is not None
    }
    shape = [
        batch if size is None else known.get(size, 1) if isinstance(size, str) else size for size in spec.start or ()
    ]
    # No memory is taken: it may be that of a cache for each of all samples.
    return np.broadcast_to(np.zeros((), spec.dtype), shape)


def _placed(specs: Sequence[InputSpec], axes: BatchAxes) -> list[InputSpec]:
    """The inputs with the axes of their samples."""
    told = {spec.name: axes.of(spec.name, len(spec.shape)) for spec in specs}
    for spec in specs:
        axis = told[spec.name]
        if axis is not None and axis >= max(1, len(spec.shape)):
            raise DataError(
                f"Input '{spec.name}' is {spec.describe()} and has no axis {axis}, which --batch-axis names for it."
            )
    seen = _axes([tuple(_dimensions(spec)) for spec in specs])
    return [
        replace(spec, axis=axis if (axis := told[spec.name]) is not None else own)
        for spec, own in zip(specs, seen, strict=True)
    ]


def _axes(inputs: Sequence[tuple[Dimension, ...]]) -> list[int]:
    """Axis 0, but for inputs of which that is fixed while another one is the batch of the others."""
    first = [dims[0] for dims in inputs if dims]
    if any(not isinstance(size, int) for size in first):
        batch = {size for size in first if not isinstance(size, int)}
        # One sample at a time is said beside an open batch, too, of flags.
        return [
            next((axis for axis, size in enumerate(dims) if size is None or size in batch), 0)
            if dims and isinstance(dims[0], int) and dims[0] != 1
            else 0
            for dims in inputs
        ]
    for size in (*first, 1):
        if all(size in dims for dims in inputs):
            return [dims.index(size) for dims in inputs]
    return [0] * len(inputs)


def _dimensions(spec: InputSpec) -> list[Dimension]:
    names = spec.names or (None,) * len(spec.shape)
    return [name if size is None else size for size, name in zip(spec.shape, names, strict=True)]


def _with_starts(specs: Sequence[InputSpec], outputs: Sequence[ir.Value]) -> list[InputSpec]:
    """The inputs with the sizes in which those begin that may be states.

    Each has an output of its type and form; an input and an output are left over that are what the model is for.
    """
    left, found = list(outputs), dict[str, InputSpec]()
    for spec in specs:
        value = next((value for value in left if _may_follow(spec, value)), None)
        if value is None or value.shape is None:
            continue
        left.remove(value)
        later = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
        sizes = zip(spec.shape, spec.names, later, strict=True)
        start = tuple(None if axis == spec.axis else _first_size(*size) for axis, size in enumerate(sizes))
        found[spec.name] = replace(spec, start=start, follower=value.name)
    # States are listed after what a model is for.
    states = list(found)[0 if left and len(found) < len(specs) else 1 :]
    return [found[spec.name] if spec.name in states else spec for spec in specs]


def _may_follow(spec: InputSpec, value: ir.Value) -> bool:
    """Whether an output may be what a state is in the next call."""
    is_kept = spec.dtype.kind == "f" or (spec.dtype.itemsize == 1 and spec.dtype.kind in "iu")
    if value.dtype is None or value.shape is None or not spec.shape or not is_kept:
        return False
    pairs = zip(spec.shape, value.shape, strict=False)
    return (
        np.dtype(value.dtype.numpy()) == spec.dtype
        and len(value.shape) == len(spec.shape)
        and all(one is None or not isinstance(other, int) or one == other for one, other in pairs)
    )


def _first_size(size: int | None, name: str | None, then: Dimension) -> Dimension:
    """What grows from call to call begins with nothing; what does not has the size of another input."""
    if size is not None:
        return size
    return name if name is not None and name == then else 0

"""Sequences, which are lists of tensors here, and optionals, which are a value or None."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from onnxpq.network.ops.registry import register
from onnxpq.network.ops.tensors import ints


@register("SequenceEmpty", 11)
def sequence_empty(*, dtype: int | None = None) -> list[Any]:  # noqa: ARG001 - an empty list has no type
    """A sequence of nothing."""
    return []


@register("SequenceConstruct", 11)
def sequence_construct(*inputs: Any) -> list[Any]:
    """A sequence of the inputs."""
    return list(inputs)


@register("SequenceLength", 11)
def sequence_length(sequence: Sequence[Any]) -> Tensor:
    """The number of elements."""
    return torch.tensor(len(sequence), dtype=torch.int64)


@register("SequenceAt", 11)
def sequence_at(sequence: Sequence[Any], position: Tensor) -> Any:
    """One element; a negative position counts from the end."""
    return sequence[ints(position)[0]]


@register("SequenceInsert", 11)
def sequence_insert(sequence: Sequence[Any], value: Any, position: Tensor | None = None) -> list[Any]:
    """A new sequence with a value before the given position, by default at the end."""
    at = len(sequence) if position is None else ints(position)[0]
    return [*sequence[:at], value, *sequence[at:]]


@register("SequenceErase", 11)
def sequence_erase(sequence: Sequence[Any], position: Tensor | None = None) -> list[Any]:
    """A new sequence without the element at the given position, by default the last."""
    at = range(len(sequence))[-1 if position is None else ints(position)[0]]
    return [*sequence[:at], *sequence[at + 1 :]]


@register("SequenceMap", 17)
def sequence_map(sequence: Sequence[Any], *others: Any, body: Callable[..., Sequence[Any]]) -> tuple[list[Any], ...]:
    """The outputs of a graph for each element, and for each of other sequences; tensors go into all calls."""
    rows = [
        body(element, *(other[i] if isinstance(other, list) else other for other in others))
        for i, element in enumerate(sequence)
    ]
    return tuple(list(column) for column in zip(*rows, strict=True))


@register("ConcatFromSequence", 11)
def concat_from_sequence(sequence: Sequence[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    """All elements along one axis, which `new_axis` makes new."""
    return torch.stack(list(sequence), axis) if new_axis else torch.cat(list(sequence), axis)


@register("SplitToSequence", 11, 24)
def split_to_sequence(x: Tensor, split: Tensor | None = None, *, axis: int = 0, keepdims: int = 1) -> list[Tensor]:
    """Parts of the given sizes, or all of one size; by default of size 1, whose axis goes if `keepdims` is 0."""
    if split is None:
        return list(torch.split(x, 1, axis)) if keepdims else list(x.unbind(axis))
    sizes = ints(split)
    return list(torch.split(x, sizes[0] if split.ndim == 0 else sizes, axis))


@register("Optional", 15, 28)
def optional(value: Any = None, *, type: Any = None) -> Any:  # noqa: A002, ARG001 - ONNX's name
    """The value, or none."""
    return value


@register("OptionalHasElement", 15, 18, 28)
def optional_has_element(value: Any = None) -> Tensor:
    """Whether there is a value."""
    return torch.tensor(value is not None)


@register("OptionalGetElement", 15, 18, 28)
def optional_get_element(value: Any) -> Any:
    """The value."""
    return value

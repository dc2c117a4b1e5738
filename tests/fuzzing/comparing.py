"""Figures of two models' whole outputs, worked out by themselves: with nothing of onnxpq's verification.

Outputs are lists of calls; a call's output is an array, or a list of arrays where it is a sequence.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Output: TypeAlias = "Array | list[Array]"
Pair: TypeAlias = tuple[Output, Output]

EMBEDDING_COLUMNS = 32
FLOORS = {
    "loss of accuracy": 0.05,
    "share of other answers": 0.05,
    "share of other decisions": 0.05,
    "1 - cosine": 0.1,
    "relative error": 0.3,
}
"""docs: the largest loss that is written, by what the loss is called."""


@dataclass(frozen=True)
class Figures:
    """What two models' outputs of one name have in common.

    Attributes:
        relative_error: relative L2 difference of floats; None of others, or where no shapes are the same.
        max_error: likewise.
        agreement: share of answers that are the same; None where there are none.
        reshaped: calls in which the shapes differ.
        mean: root mean square difference of floats.
        numbers: floats that were compared.
    """

    relative_error: float | None
    max_error: float | None
    agreement: float | None
    reshaped: int
    mean: float
    numbers: int


def figures(pairs: Sequence[Pair], axis: int | None = None) -> Figures:
    """Compare calls, original first; `axis` has the samples, which are put first before the last axis is looked at."""
    arrays = [entry for pair in pairs for entry in _arrays(*pair)]
    same = [(one, two) for one, two in arrays if one.shape == two.shape]
    is_float = all(_is_float(one) for one, _ in arrays)
    shape_differs = [any(one.shape != two.shape for one, two in _arrays(*pair)) for pair in pairs]
    agreeing = total = 0
    for one, two in arrays:
        answers = [_answers(_front(array, axis)) for array in (one, two)]
        if is_float and not _is_scores(_front(one, axis)):
            continue
        if one.shape == two.shape:
            agreeing += int((answers[0] == answers[1]).sum())
        total += max(answers[0].size, answers[1].size)
    floats = [(one.astype(np.float64), two.astype(np.float64)) for one, two in same if _is_float(one)]
    squares = sum(float(np.square(one - two).sum()) for one, two in floats)
    whole = sum(float(np.square(one).sum()) for one, _ in floats)
    measured = is_float and not all(shape_differs) and any(one.size for one, _ in arrays)
    numbers = sum(one.size for one, _ in floats)
    return Figures(
        _ratio(squares, whole) if measured else None,
        max((float(np.abs(one - two).max(initial=0)) for one, two in floats), default=0.0) if measured else None,
        agreeing / total if total else None,
        sum(shape_differs),
        math.sqrt(squares / max(1, numbers)),
        numbers,
    )


def loss(measure: str, pairs: Sequence[Pair], axis: int | None = None) -> float:
    """What is lost, by the measure of that name (`FLOORS`)."""
    joined = [(_front(_joined(one), axis), _front(_joined(two), axis)) for one, two in pairs]
    if measure == "relative error":
        return _relative_to_spread(joined)
    lost = total = 0.0
    for one, two in joined:
        if one.shape != two.shape:
            lost, total = lost + max(1, one.size), total + max(1, one.size)
            continue
        if measure == "1 - cosine":
            shares = 1 - _cosine(one.astype(np.float64), two.astype(np.float64))
        elif measure == "share of other decisions":
            shares = (one.astype(np.float64) > 0.5) != (two.astype(np.float64) > 0.5)
        else:
            shares = _answers(one) != _answers(two)
        lost, total = lost + float(np.sum(shares)), total + np.size(shares)
    return lost / total if total else 0.0


def _relative_to_spread(pairs: Sequence[tuple[Array, Array]]) -> float:
    if any(one.shape != two.shape for one, two in pairs):
        return math.inf
    tables = [_table(one.astype(np.float64)) for one, _ in pairs]
    gap = sum(
        float(np.square(_table(two.astype(np.float64)) - own).sum())
        for own, (_, two) in zip(tables, pairs, strict=True)
    )
    whole = sum(float(np.square(own).sum()) for own in tables)
    if len({own.shape[1] for own in tables}) > 1:
        tables = [own.reshape(-1, 1) for own in tables]
        rows = sum(len(_table(one)) for one, _ in pairs)
    else:
        rows = sum(len(own) for own in tables)
    every = np.concatenate(tables)
    spread = float(np.square(every - every.mean(0)).sum()) if rows >= 3 and every.size else 0.0
    return _ratio(gap, spread if spread > 1e-12 * whole else whole)


def top_accuracy(scores: Array, labels: Array) -> float:
    """Share of samples whose largest score is that of the label, or whose class is the label."""
    return float((_answers(scores).reshape(labels.shape) == labels).mean())


def stands_still(pairs: Sequence[Pair]) -> bool:
    """Whether the second model gives the same numbers for all rows of floats, and the first does not."""
    tables = [[_table(_joined(entry).astype(np.float64)) for entry in pair] for pair in pairs]
    if not tables or len({table.shape[1] for pair in tables for table in pair}) > 1:
        return False
    one, two = (np.concatenate([pair[i] for pair in tables]) for i in (0, 1))
    return len(one) >= 3 and one.size > 0 and bool(np.ptp(two, axis=0).max() == 0 and np.ptp(one, axis=0).max() > 1e-3)


def _arrays(one: Output, two: Output) -> Iterator[tuple[Array, Array]]:
    if isinstance(one, list) and isinstance(two, list):
        if len(one) != len(two):
            yield np.array(len(one)), np.array([len(two)])
            return
        for pair in zip(one, two, strict=True):
            yield from _arrays(*pair)
    else:
        yield np.asarray(one), np.asarray(two)


def _joined(output: Output) -> Array:
    return np.concatenate([np.ravel(part) for part in output]) if isinstance(output, list) else np.asarray(output)


def _front(array: Array, axis: int | None) -> Array:
    return array if axis is None or array.ndim <= axis else np.moveaxis(array, axis, 0)


def _is_float(array: Array) -> bool:
    return bool(np.issubdtype(array.dtype, np.floating))


def _is_scores(array: Array) -> bool:
    return _is_float(array) and array.ndim >= 2 and array.shape[-1] >= 2


def _answers(array: Array) -> Array:
    return array.argmax(-1) if _is_scores(array) else array


def _table(array: Array) -> Array:
    return array.reshape(-1, array.shape[-1]) if array.ndim > 1 and array.size else array.reshape(-1, 1)


def _cosine(one: Array, two: Array) -> Array:
    lengths = np.linalg.norm(one, axis=-1) * np.linalg.norm(two, axis=-1)
    both_zero = (np.abs(one).max(-1, initial=0) == 0) & (np.abs(two).max(-1, initial=0) == 0)
    inner = (one * two).sum(-1)
    return np.asarray(np.divide(inner, lengths, out=both_zero.astype(np.float64), where=lengths > 0))


def _ratio(squares: float, whole: float) -> float:
    if squares == 0:
        return 0.0
    return math.sqrt(squares / whole) if whole > 0 else math.inf


def is_near(found: float | None, expected: Iterable[float | None], tolerance: float = 1e-5) -> bool:
    """Whether a figure is one of those that are expected."""
    for value in expected:
        if found is None or value is None:
            if found is value:
                return True
        elif found == value or abs(found - value) <= tolerance * max(1.0, abs(value)):
            return True
    return False

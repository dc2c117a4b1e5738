"""Where a model has the samples of a batch in each of its values, measured by running it.

No file says so: the names of open dimensions are the exporter's, and a batch that is fixed to 1 leaves no trace. So the
model runs on some samples, and on two parts of them. What has an entry per sample changes its size with their number,
and holds for each part what it held for all. What changes its size so and does not hold the same mixes samples: steps
of a sequence were taken for samples, or the mean of a batch is subtracted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxpq.data import Alignment, Dataset, Place, distance

Array: TypeAlias = NDArray[Any]
Values: TypeAlias = Mapping[str, Array]

MEASURED: Final = 8
"""Samples that are looked at, where the model leaves the batch open."""

PART: Final = 2
"""Of them, those of the first part: other than the second part has, and both even."""

FLOAT_BUDGET: Final = 5e-2
"""Relative L2 difference of a sample's entry from the same in other company that is no influence: scales of dynamic
quantization are those of a whole batch (up to 2 %)."""

OTHER_BUDGET: Final = 0.1
"""The same for integers and text: share of the entries that differ."""

RANDOM: Final = 2.0
"""So many times as far as two runs of the same batch are from each other a difference is none of chance."""

NOISE: Final = 1e-6
"""Root mean square below which a value counts as rounding noise of float32."""


def measure(
    run: Callable[[Values], Values], data: Dataset, fixed: int | None, *, seed: int = 0
) -> tuple[Alignment, dict[str, Array], int]:
    """Measure where the samples lie in all values that a model gives.

    Args:
        run: the model: a batch as it takes it -> its values by name.
        data: samples, some of which are drawn at random; one is enough, of whole calls nothing is measured.
        fixed: the number of samples that the model takes at a time; None for any.
        seed: of the choice.

    Returns:
        What was found; the values of one batch, with the samples first where they are of single samples; and the number
        of samples in it.
    """
    if data.whole:
        return Alignment(), dict(run(data.take(slice(1)).feeds)), 1
    order = np.random.default_rng(seed).permutation(len(data))
    indices = _indices(order, fixed)
    found = [run(data.take(index).feeds) for index in indices]
    count = len(indices[0])
    result = _compared(found, count, fixed)
    if result.mixed:
        again = run(data.take(indices[0]).feeds)
        same = {name: distance(found[0][name], again[name], NOISE) for name in result.mixed}
        # What differs as much from call to call is random, which is no influence of other samples.
        mixed = {name: gap for name, gap in result.mixed.items() if gap > RANDOM * same[name]}
        result = replace(result, mixed=mixed)
    return result, result.fronted(found[0], count), count


def _indices(order: NDArray[np.intp], fixed: int | None) -> list[NDArray[np.intp]]:
    """The samples of each run."""
    if fixed is None:
        index = _repeated(order, max(2 * PART, min(MEASURED, len(order))))
        return [index, index[:PART], index[PART:]]
    if fixed == 1:
        return [order[start : start + 1] for start in range(min(MEASURED, len(order)))]
    half = fixed // 2
    index = _repeated(order, 2 * fixed - half)
    return [index[:fixed], np.concatenate([index[fixed:], index[:half]])]


def _repeated(order: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """So many samples, of few the same ones side by side: each part of them has another mixture then."""
    index = np.resize(order, count)
    return np.sort(index) if count > len(order) else index


def _compared(found: Sequence[Values], count: int, fixed: int | None) -> Alignment:
    places: dict[str, Place] = {}
    mixed: dict[str, float] = {}
    for name in found[0]:
        values = [values[name] for values in found]
        tried = {place: _gap(place, values, count, fixed) for place in _candidates(values, count, fixed)}
        if not tried:
            continue
        best = min(tried, key=lambda place: tried[place])
        budget = FLOAT_BUDGET if values[0].dtype.kind == "f" else OTHER_BUDGET
        if tried[best] <= budget:
            places[name] = best
        elif best == Place() or (fixed is None and best.is_plain):
            # Where the batch is fixed, any dimension may have its size by chance.
            places[name], mixed[name] = best, tried[best]
    return Alignment(places, mixed)


def _candidates(values: Sequence[Array], count: int, fixed: int | None) -> Iterator[Place]:
    """The places that the shapes allow."""
    shapes = [value.shape for value in values]
    if any(isinstance(entry, np.ndarray) for value in values if value.dtype.hasobject for entry in value.flat):
        return  # a sequence is one thing
    if fixed is not None:
        if len(set(shapes)) == 1:
            yield from _in_fixed(shapes[0], fixed)
        return
    if len({len(shape) for shape in shapes}) > 1:
        return
    sizes = (count, PART, count - PART)
    for axis, whole in enumerate(shapes[0]):
        each = whole // count
        others = {(*shape[:axis], *shape[axis + 1 :]) for shape in shapes}
        if each == 0 or len(others) > 1 or [shape[axis] for shape in shapes] != [each * size for size in sizes]:
            continue
        yield Place(axis, 1, each)
        if each > 1:
            yield Place(axis, each, 1)


def _in_fixed(shape: Sequence[int], fixed: int) -> Iterator[Place]:
    if fixed == 1:
        # A call is a sample: where it is written does not matter, but for a dimension that is there for it.
        one = next((axis for axis, size in enumerate(shape) if size == 1), None)
        if one is not None:
            yield Place(one)
        elif shape and shape[0] > 0:
            yield Place(0, 1, shape[0])
        return
    for axis, size in enumerate(shape):
        if size > 0 and size % fixed == 0:
            yield Place(axis, 1, size // fixed)
            if size > fixed:
                yield Place(axis, size // fixed, 1)


def _gap(place: Place, values: Sequence[Array], count: int, fixed: int | None) -> float:
    """How much the entries of the same samples differ between the runs."""
    if fixed == 1:
        return 0.0
    fronts = [place.to_front(value) for value in values]
    if fixed is None:
        pairs = [(fronts[0][:PART], fronts[1]), (fronts[0][PART:], fronts[2])]
    else:
        half = count // 2
        pairs = [(fronts[0][:half], fronts[1][count - half :])]
    return max(distance(one, other, NOISE) for one, other in pairs)

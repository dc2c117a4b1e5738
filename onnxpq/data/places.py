"""Where the samples of a batch lie in a value: found by measurement (`onnxpq.runtime.alignment`), used by all stages.

Most values are [N, ...]. Speech and text recognisers give [T, N, C], some graphs [N * T, C], and there are values that
are of a call as a whole: a loss, the boxes that are left over, a mean over the batch. All that looks at single samples
brings a value into one form, samples first, and what is given to a model goes back to where the model has it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

Value = TypeVar("Value")
"""An array of numpy's or a tensor of torch's: both have what is needed here."""


@dataclass(frozen=True)
class Place:
    """The dimension that has the samples: ``outer * N * inner`` entries, outer and inner being 1 as a rule.

    Attributes:
        axis: its index.
        outer: steps, each of which has all samples: [T * N, C] has outer T.
        inner: entries of each sample that follow one another: [N * T, C] has inner T.
    """

    axis: int = 0
    outer: int = 1
    inner: int = 1

    @property
    def is_plain(self) -> bool:
        """Whether the dimension has the samples and nothing else."""
        return self.outer == self.inner == 1

    def holds(self, shape: Sequence[int], samples: int) -> bool:
        """Whether a value of this shape has so many samples here."""
        return len(shape) > self.axis and shape[self.axis] == self.outer * samples * self.inner

    def to_front(self, value: Value) -> Value:
        """A value as the model gives it -> [N, ...], what is left of its dimensions in their order."""
        array, axis = cast(Any, value), self.axis
        shape = tuple(array.shape)
        if not self.is_plain:
            samples = shape[axis] // (self.outer * self.inner)
            array = array.reshape((*shape[:axis], self.outer, samples, self.inner, *shape[axis + 1 :]))
            axis += 1
        rest = [index for index in range(array.ndim) if index != axis]
        array = _turned(array, [axis, *rest])
        if not self.is_plain:
            kept = [size for size in (self.outer, self.inner) if size > 1]
            array = array.reshape((array.shape[0], *shape[: self.axis], *kept, *shape[self.axis + 1 :]))
        return cast(Value, array)

    def to_model(self, value: Value) -> Value:
        """The inverse of `to_front`."""
        array, axis = cast(Any, value), self.axis
        shape = tuple(array.shape)
        after = 1 + axis + (self.outer > 1) + (self.inner > 1)
        if not self.is_plain:
            array = array.reshape((shape[0], *shape[1 : 1 + axis], self.outer, self.inner, *shape[after:]))
            axis += 1
        rest = list(range(1, array.ndim))
        array = _turned(array, [*rest[:axis], 0, *rest[axis:]])
        if not self.is_plain:
            whole = self.outer * shape[0] * self.inner
            array = array.reshape((*shape[1 : 1 + self.axis], whole, *shape[after:]))
        return cast(Value, array)


@dataclass(frozen=True)
class Alignment:
    """What was measured of some values.

    Attributes:
        places: of those that have an entry for each sample, by name. Of few samples it may look so where a threshold
            decides what is left: then a value of more samples has another size.
        mixed: those of `places` whose entry of a sample also depends on the others, and how far it was from what the
            sample gives in other company (relative L2).
    """

    places: Mapping[str, Place] = field(default_factory=dict)
    mixed: Mapping[str, float] = field(default_factory=dict)

    def samples(self, name: str, samples: int, *values: NDArray[Any]) -> list[NDArray[Any]] | None:
        """Values of one name with the samples first; None where they are not of single samples, or differ in shape."""
        place = self.places.get(name)
        if place is None or any(value.shape != values[0].shape for value in values):
            return None
        if not place.holds(values[0].shape, samples):
            return None
        return [place.to_front(value) for value in values]

    def counted(self, name: str, value: NDArray[Any], samples: int, count: int) -> NDArray[Any]:
        """A value of `samples` samples without those after the first `count`, as the model would give it."""
        place = self.places.get(name)
        if place is None or samples == count or not place.holds(value.shape, samples):
            return value
        return place.to_model(place.to_front(value)[:count])

    def fronted(self, values: Mapping[str, NDArray[Any]], samples: int) -> dict[str, NDArray[Any]]:
        """Values by name, with the samples first where they are of single samples."""
        found = {name: self.samples(name, samples, value) for name, value in values.items()}
        return {name: value if (front := found[name]) is None else front[0] for name, value in values.items()}


def distance(one: NDArray[Any], other: NDArray[Any], floor: float) -> float:
    """How far values of one shape are apart.

    Args:
        one: any entries.
        other: of the same shape.
        floor: root mean square below which numbers count as rounding noise.

    Returns:
        Relative L2 difference of floats; of others the share of entries that differ. NaN equals NaN.
    """
    if one.size == 0:
        return 0.0
    if one.dtype.kind == "O":
        return float(np.mean([not np.array_equal(a, b) for a, b in zip(one.flat, other.flat, strict=True)]))
    if one.dtype.kind not in "fc":
        return float(np.mean(one != other))
    exact, found = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.where((exact == found) | (np.isnan(exact) & np.isnan(found)), 0.0, exact - found)
    size = np.linalg.norm(np.where(np.isfinite(exact), exact, 0.0))
    gap = np.where(np.isfinite(gap), gap, np.inf)
    return float(np.linalg.norm(gap) / max(float(size), floor * math.sqrt(exact.size)))


def _turned(array: Any, order: Sequence[int]) -> Any:
    turn = getattr(array, "permute", None) or array.transpose
    return turn(*order)

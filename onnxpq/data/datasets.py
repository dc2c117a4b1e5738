"""Data that a model is fine-tuned and verified on: arrays by input name, with or without labels.

Data are calls of the model. As a rule a call has samples along an axis, and any of them make a call as good; then a
data set holds samples. Else it holds whole calls. A data set is a value: nothing here knows a model's graph, only the
names, types and shapes of its inputs (`onnxpq.data.inputs`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxpq.data.inputs import Array, InputSpec, begin, fixed_batch, has_samples
from onnxpq.data.places import Place
from onnxpq.errors import DataError

VALIDATION_SAMPLES = 2000
"""No more samples than these are held out to choose the best state by: all are looked at after every round."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples, or whole calls that each count as one.

    Attributes:
        inputs: by input name, arrays [N, ...]; of whole calls [N] objects, each the array of one call.
        labels: [N, ...] or None; of whole calls [N] objects.
        unused: keys of the source that are neither.
        places: where a model has the samples in its inputs; along axis 0 in those that are not named.
        whole: whether these are whole calls, which are never put together or taken apart.
        remarks: whole sentences on how the source was read.
    """

    inputs: Mapping[str, Array]
    labels: Array | None = None
    unused: tuple[str, ...] = ()
    places: Mapping[str, Place] = field(default_factory=dict)
    whole: bool = False
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, index: "NDArray[np.intp] | slice") -> "Dataset":
        """The samples at `index`, in that order."""
        inputs = {name: array[index] for name, array in self.inputs.items()}
        return replace(self, inputs=inputs, labels=None if self.labels is None else self.labels[index])

    def some(self, count: int, seed: int = 0) -> "Dataset":
        """So many samples drawn at random, or all: the first ones of a file are often of one class."""
        order = np.random.default_rng(seed).permutation(len(self))
        return self.take(np.sort(order[:count]))

    def only(self, names: Iterable[str]) -> "Dataset":
        """The same samples with some of the inputs."""
        return replace(self, inputs={name: self.inputs[name] for name in names})

    @property
    def feeds(self) -> dict[str, Array]:
        """What a model is given: all samples in one call, each input as the model has it."""
        if not self.whole:
            return {name: self._as_given(name, array) for name, array in self.inputs.items()}
        if len(self) != 1:
            raise AssertionError("whole calls are made one at a time")
        return {name: np.asarray(array[0]) for name, array in self.inputs.items()}

    @property
    def count(self) -> str:
        """How many samples or calls there are, in words."""
        one, many = ("call", "calls") if self.whole else ("sample", "samples")
        return f"{len(self)} {one if len(self) == 1 else many}"

    def _as_given(self, name: str, array: Array) -> Array:
        place = self.places.get(name, Place())
        return array if place == Place() else np.ascontiguousarray(place.to_model(array))


def random_inputs(inputs: Sequence[InputSpec], samples: int, seed: int) -> Dataset:
    """Standard normal samples (integers: 0 or 1) of the inputs' shapes, open dimensions being 1.

    States have the sizes that they begin with. This is for the one case in which a model is compressed without data;
    nothing can be said of accuracy on them. Where the inputs can have no samples in common they are whole calls.
    """
    rng = np.random.default_rng(seed)
    if not has_samples(inputs):
        calls = [_random(inputs, 1, rng, fill=False) for _ in range(samples)]
        return Dataset({spec.name: of_objects([call[spec.name] for call in calls]) for spec in inputs}, whole=True)
    fixed = fixed_batch(inputs)
    arrays = _random(inputs, samples if fixed is None else max(1, samples // fixed) * fixed, rng, fill=True)
    places = {spec.name: Place(spec.axis) for spec in inputs if spec.axis}
    return Dataset({name: places.get(name, Place()).to_front(array) for name, array in arrays.items()}, places=places)


def _random(inputs: Sequence[InputSpec], samples: int, rng: np.random.Generator, *, fill: bool) -> dict[str, Array]:
    """What a model is given; `fill` makes fixed batches longer, too."""
    arrays: dict[str, Array] = {}
    # What a state's sizes depend on comes first.
    for spec in sorted(inputs, key=lambda spec: spec.start is not None):
        size = samples if fill or spec.batch is None else spec.batch
        shape = [size if axis == spec.axis else dim or 1 for axis, dim in enumerate(spec.shape)]
        if spec.start is not None:
            shape = list(begin(spec, size, arrays, inputs).shape)
        if np.issubdtype(spec.dtype, np.floating):
            arrays[spec.name] = np.asarray(rng.standard_normal(shape)).astype(spec.dtype)
        elif np.issubdtype(spec.dtype, np.integer) or spec.dtype == np.bool_:
            arrays[spec.name] = np.asarray(rng.integers(0, 2, shape)).astype(spec.dtype)
        else:
            raise DataError(
                f"Input '{spec.name}' is {spec.describe()}: no random samples can be made up for it. Give data with "
                "--data."
            )
    return {spec.name: arrays[spec.name] for spec in inputs}


def split_rows(samples: int, fraction: float, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Two disjoint sets of sample numbers at random: all but `fraction` of them, and `fraction` (at least one)."""
    order = np.random.default_rng(seed).permutation(samples)
    held_out = min(samples - 1, max(1, round(fraction * samples)))
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def validation_rows(samples: int, fraction: float, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The rows that training learns from, and those that it is judged by: `fraction` of all, few enough to be quick.

    A single one is both: that the result is good beyond it is what the proof is for.
    """
    if samples == 1:
        return np.zeros(1, np.intp), np.zeros(1, np.intp)
    return split_rows(samples, min(fraction, VALIDATION_SAMPLES / samples), seed)


def batch_of(dataset: Dataset, inputs: Iterable[InputSpec]) -> int | None:
    """The number of samples that a model takes of a data set at a time, None for any and for whole calls.

    Raises:
        DataError: two inputs prescribe different ones.
    """
    return None if dataset.whole else fixed_batch(inputs)


def first(dataset: Dataset, fixed: int | None, count: int) -> Mapping[str, Array]:
    """What a model is given for the first `count` samples, or for as many as a fixed batch of it needs."""
    size = fixed or min(count, len(dataset))
    return next(batches(dataset, size, exact=fixed is not None))[0].feeds


def batches(dataset: Dataset, size: int, *, exact: bool) -> Iterator[tuple[Dataset, int]]:
    """Consecutive parts of `size` samples, each with the number of samples that count; whole calls one by one.

    Args:
        dataset: the samples.
        size: samples in a part.
        exact: fill the last part up to `size` with copies of its last sample (a model with a fixed batch dimension
            takes no other); else it is shorter.
    """
    if dataset.whole:
        size, exact = 1, False
    for start in range(0, len(dataset), size):
        index = np.arange(start, min(start + size, len(dataset)))
        count = len(index)
        yield dataset.take(np.pad(index, (0, size - count), mode="edge") if exact else index), count


def of_objects(arrays: Sequence[Array]) -> Array:
    """[N] objects, each of them one of the arrays, whatever their shapes."""
    found = np.empty(len(arrays), object)
    for index, array in enumerate(arrays):
        found[index] = array
    return found

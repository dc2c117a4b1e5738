"""Data that a model is fine-tuned and verified on: arrays by input name, with or without labels.

Data are calls of the model. As a rule a call has samples along an axis, and any of them make a call as good; then a
data set holds samples. Else it holds whole calls. A data set is a value: nothing here knows a model's graph, only the
names, types and shapes of its inputs (`InputSpec`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq.data.places import Place
from onnxpq.errors import DataError, ModelError

Array: TypeAlias = NDArray[np.generic]

VALIDATION_SAMPLES = 2000
"""No more samples than these are held out to choose the best state by: all are looked at after every round."""

TEXT = np.dtype(np.object_)
"""Element type of an input of strings."""


@dataclass(frozen=True)
class InputSpec:
    """An input of a model: its name, element type and shape (None where a dimension is open)."""

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | None, ...]

    def describe(self) -> str:
        """Type and shape as a person writes them, e.g. ``float32 [N, 784]``."""
        dims = ["N" if i == 0 and d is None else "?" if d is None else str(d) for i, d in enumerate(self.shape)]
        return f"{'string' if self.dtype == TEXT else self.dtype} [{', '.join(dims)}]"


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples, or whole calls that each count as one.

    Attributes:
        inputs: by input name, arrays [N, ...]; of whole calls [N] objects, each the array of one call.
        labels: [N, ...] or None.
        unused: keys of the source that are neither.
        places: where a model has the samples in its inputs; along axis 0 in those that are not named.
        whole: whether these are whole calls, which are never put together or taken apart.
    """

    inputs: Mapping[str, Array]
    labels: Array | None = None
    unused: tuple[str, ...] = ()
    places: Mapping[str, Place] = field(default_factory=dict)
    whole: bool = False

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
        return {name: array[0] for name, array in self.inputs.items()}

    def _as_given(self, name: str, array: Array) -> Array:
        place = self.places.get(name, Place())
        return array if place == Place() else np.ascontiguousarray(place.to_model(array))


def split_rows(samples: int, fraction: float, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Two disjoint sets of sample numbers at random: all but `fraction` of them, and `fraction` (at least one)."""
    order = np.random.default_rng(seed).permutation(samples)
    held_out = min(samples - 1, max(1, round(fraction * samples)))
    return np.sort(order[held_out:]), np.sort(order[:held_out])


def validation_rows(samples: int, fraction: float, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The rows that training learns from, and those that it is judged by: `fraction` of all, few enough to be quick."""
    return split_rows(samples, min(fraction, VALIDATION_SAMPLES / samples), seed)


def input_specs(model: ir.Model, ranks: Mapping[str, int] | None = None) -> list[InputSpec]:
    """The inputs of a model that data has to give: those without an initializer.

    Args:
        model: the model.
        ranks: of inputs whose shape the model does not tell, by name.

    Raises:
        ModelError: an input is no tensor, or its type or rank is not known.
    """
    specs = []
    for value in model.graph.inputs:
        if value.is_initializer():
            continue
        rank = None if ranks is None else ranks.get(str(value.name))
        shape = [None] * rank if value.shape is None and rank is not None else value.shape
        if not isinstance(value.type, ir.TensorType) or shape is None:
            raise ModelError(
                f"Input '{value.name}' has type {value.type} and shape {value.shape}: onnxpq needs tensors of known "
                "rank. Export the model with the shapes of its inputs, open dimensions being named."
            )
        dims = tuple(dim if isinstance(dim, int) else None for dim in shape)
        specs.append(InputSpec(str(value.name), np.dtype(value.type.dtype.numpy()), dims))
    return specs


def first(dataset: Dataset, fixed: int | None, count: int) -> Mapping[str, Array]:
    """What a model is given for the first `count` samples, or for as many as a fixed batch of it needs."""
    size = fixed or min(count, len(dataset))
    return next(batches(dataset, size, exact=fixed is not None))[0].feeds


Source: TypeAlias = str | PathLike[str] | Mapping[str, Array] | Iterable[Mapping[str, Array]] | Dataset
"""What can be given as data: see `load`."""


def load(source: Source, inputs: Iterable[InputSpec], *, label_key: str | None = None, what: str = "data") -> Dataset:
    """Read samples and check that they fit a model.

    Args:
        source: path of an `.npz` file whose keys are the model's input names (and `label_key`), a mapping of such
            arrays, an iterable of such mappings (batches, put together in order), or a `Dataset`.
        inputs: the model's inputs.
        label_key: key of the labels; None for no labels. A `Dataset` has labels of its own and needs no key.
        what: how messages call the data, e.g. "training data".

    Returns:
        The samples, with exactly the model's inputs; other keys are named in `unused`.

    Raises:
        DataError: unreadable file, missing input or label key, wrong type or shape, NaN or infinity, inputs of
            different lengths, or no samples.
    """
    where, arrays = arrays_of(source, what)
    found = {spec.name: _checked(arrays, spec, where) for spec in inputs}
    labels = source.labels if isinstance(source, Dataset) else None
    if labels is None and label_key is not None:
        if label_key not in arrays:
            raise DataError(f"{where} has no labels: key '{label_key}' expected, found {_names(arrays)}.")
        labels = arrays[label_key]
    lengths = {name: len(array) for name, array in found.items()}
    if labels is not None:
        labels = _native(np.asarray(labels))
        _check_finite(labels, f"{where}: labels '{label_key or 'labels'}'")
        lengths[f"labels '{label_key or 'labels'}'"] = labels.shape[0] if labels.ndim else 0
    if len(set(lengths.values())) > 1:
        raise DataError(f"{where}: all arrays must have the same number of samples along axis 0; found {lengths}.")
    if 0 in lengths.values():
        raise DataError(f"{where} is empty: no samples. At least one is needed.")
    return Dataset(found, labels, tuple(key for key in arrays if key not in found and key != label_key))


def has_samples(inputs: Iterable[InputSpec]) -> bool:
    """Whether every input of a model can have its samples along axis 0: a scalar cannot."""
    return all(spec.shape for spec in inputs)


def load_call(source: Source, inputs: Iterable[InputSpec], *, what: str) -> Dataset:
    """Read the arrays of one call of a model whose inputs have no samples in common.

    Args:
        source: as for `load`, but an iterable of one mapping only.
        inputs: the model's inputs.
        what: how messages call it.

    Raises:
        DataError: unreadable file, missing input, wrong type or shape, NaN or infinity.
    """
    where, arrays = arrays_of(source, what)
    found = {spec.name: _checked(arrays, spec, where, is_call=True) for spec in inputs}
    calls = {name: of_objects([array]) for name, array in found.items()}
    return Dataset(calls, None, tuple(key for key in arrays if key not in found), whole=True)


def random_inputs(inputs: Iterable[InputSpec], samples: int, seed: int) -> Dataset:
    """Standard normal samples (integers: 0 or 1) of the inputs' shapes, open dimensions being 1.

    For the one case in which a model is compressed without data; nothing can be said of accuracy on them.
    """
    rng = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for spec in inputs:
        shape = (_batch(spec, samples), *(1 if dim is None else dim for dim in spec.shape[1:]))
        if np.issubdtype(spec.dtype, np.floating):
            arrays[spec.name] = rng.standard_normal(shape).astype(spec.dtype)
        elif np.issubdtype(spec.dtype, np.integer) or spec.dtype == np.bool_:
            arrays[spec.name] = rng.integers(0, 2, shape).astype(spec.dtype)
        else:
            raise DataError(
                f"Input '{spec.name}' is {spec.describe()}: no random samples can be made up for it. Give data with "
                "--data."
            )
    return Dataset(arrays)


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


def fixed_batch(inputs: Iterable[InputSpec]) -> int | None:
    """The first dimension that the inputs prescribe, None where it is open.

    Raises:
        DataError: two inputs prescribe different ones.
    """
    return common_batch({spec.name: spec.shape[0] for spec in inputs if spec.shape})


def common_batch(first_dimensions: Mapping[str, int | None]) -> int | None:
    """The one number among the first dimensions of a model's inputs, None where all are open.

    Raises:
        DataError: there are two numbers.
    """
    fixed = {name: size for name, size in first_dimensions.items() if size is not None}
    if len(set(fixed.values())) > 1:
        raise DataError(
            f"The model's inputs have different fixed first dimensions: {fixed}. onnxpq needs the samples along axis 0 "
            "of every input; make that dimension the same, or open."
        )
    return next(iter(fixed.values()), None)


def _batch(spec: InputSpec, samples: int) -> int:
    if not spec.shape:
        raise DataError(
            f"Input '{spec.name}' is a scalar: onnxpq needs every input to have its samples along axis 0. "
            "Make it a constant of the model, or give it a leading batch dimension."
        )
    fixed = spec.shape[0]
    return samples if fixed is None else max(1, samples // fixed) * fixed


def arrays_of(source: Source, what: str) -> tuple[str, dict[str, Array]]:
    """How to call the source in messages, and its arrays."""
    if isinstance(source, Dataset):
        return what, dict(source.inputs)
    if isinstance(source, (str, PathLike)):
        return f"{what} '{source}'", _read_npz(Path(source), what)
    if isinstance(source, Mapping):
        return what, {key: np.asarray(value) for key, value in source.items()}
    if not isinstance(source, Iterable):
        raise DataError(
            f"{what} is a {type(source).__name__}; expected the path of an .npz file, a mapping {{input name: array}}, "
            "or an iterable of such mappings."
        )
    return what, _concatenate(source, what)


def _read_npz(path: Path, what: str) -> dict[str, Array]:
    if not path.is_file():
        raise DataError(
            f"{what} '{path}' does not exist or is no file. A .npz file with the model's inputs is expected."
        )
    try:
        # Opened here, since numpy forgets to close what turns out to be damaged.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            arrays = {key: archive[key] for key in archive.files} if isinstance(archive, np.lib.npyio.NpzFile) else None
    # numpy, zipfile and zlib raise a dozen classes without a common base on damaged files.
    except Exception as error:
        raise DataError(
            f"{what} '{path}' is no .npz file, is damaged, or holds objects instead of numbers: {error}. Write it with "
            "numpy.savez(path, **{input name: array})."
        ) from error
    if arrays is None:
        raise DataError(
            f"{what} '{path}' holds a single array; an .npz file with one array per input name is expected "
            "(numpy.savez(path, **{input name: array}))."
        )
    return arrays


def _concatenate(parts: Iterable[Mapping[str, Array]], what: str) -> dict[str, Array]:
    collected: dict[str, list[Array]] = {}
    count = 0
    for count, part in enumerate(parts, start=1):
        if not isinstance(part, Mapping):
            raise DataError(
                f"{what}: item {count - 1} is a {type(part).__name__}; each item must be a mapping "
                "{input name: array}."
            )
        if count > 1 and part.keys() != collected.keys():
            raise DataError(f"{what}: item {count - 1} has {_names(part)}, the first one has {_names(collected)}.")
        for key, value in part.items():
            collected.setdefault(key, []).append(np.asarray(value))
    if count == 0:
        raise DataError(f"{what} is empty: the iterable gave no item.")
    try:
        return {key: np.concatenate(values) for key, values in collected.items()}
    except ValueError as error:
        raise DataError(f"{what}: the items cannot be put together along axis 0: {error}") from error


def _checked(arrays: Mapping[str, Array], spec: InputSpec, where: str, *, is_call: bool = False) -> Array:
    if spec.name not in arrays:
        raise DataError(f"{where} lacks the model's input '{spec.name}' ({spec.describe()}); found {_names(arrays)}.")
    array = _native(np.asarray(arrays[spec.name]))
    if spec.dtype == TEXT:
        _check_texts(array, spec, where)
    elif array.dtype != spec.dtype:
        raise DataError(
            f"{where}: input '{spec.name}' has type {array.dtype}, the model expects {spec.describe()}. "
            f"Convert it with array.astype('{spec.dtype}')."
        )
    fits = array.ndim == len(spec.shape) and all(
        want is None or (axis == 0 and not is_call) or have == want
        for axis, (have, want) in enumerate(zip(array.shape, spec.shape, strict=True))
    )
    if not fits:
        raise DataError(
            f"{where}: input '{spec.name}' has shape {list(array.shape)}, the model expects {spec.describe()}"
            + ("." if is_call else " with the samples along axis 0.")
        )
    if not is_call:
        _batch(spec, 1)
    _check_finite(array, f"{where}: input '{spec.name}'")
    return array


def _check_texts(array: Array, spec: InputSpec, where: str) -> None:
    """Strings are taken as numpy's own (which a file can hold) or as objects that are strings."""
    if array.dtype.kind == "U" or (array.dtype == TEXT and all(isinstance(text, str) for text in array.flat)):
        return
    raise DataError(
        f"{where}: input '{spec.name}' has type {array.dtype}, the model expects {spec.describe()}. Give strings: "
        "numpy.array([...], dtype=str)."
    )


def _native(array: Array) -> Array:
    """The array in this machine's byte order, which is all that torch and onnxruntime take."""
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check_finite(array: Array, what: str) -> None:
    if not np.issubdtype(array.dtype, np.floating):
        return
    for start in range(0, len(array) if array.ndim else 0, 4096):
        bad = ~np.isfinite(array[start : start + 4096])
        if bad.any():
            sample = start + int(np.argwhere(bad)[0][0])
            count = int((~np.isfinite(array)).sum())
            raise DataError(f"{what} holds {count} NaN or infinite values, the first in sample {sample}. Remove them.")


def _names(mapping: Mapping[str, object]) -> str:
    return "the keys " + ", ".join(f"'{key}'" for key in mapping) if mapping else "no keys"

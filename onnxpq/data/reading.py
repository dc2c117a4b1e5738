"""Data as users give them: files, folders of calls, mappings, iterables."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Final, TypeAlias

import numpy as np

from onnxpq.config import BatchAxes
from onnxpq.data.datasets import Dataset, of_objects
from onnxpq.data.inputs import TEXT, Array, InputSpec, begin, has_samples
from onnxpq.data.places import Place
from onnxpq.errors import DataError

Source: TypeAlias = str | PathLike[str] | Mapping[str, Array] | Iterable[Mapping[str, Array]] | Dataset
"""What can be given as data: see `load`."""

OWN_SHAPES: Final = "The {count} items of the {what} cannot be put together, so that each is a call of its own."

STATES: Final = (
    "The {what} lacks the states {names}: they begin at zeros, in every call. What the layers make of other states was "
    "not looked at; whole calls with the states that they met (a folder of .npz files) show it."
)

WHAT_TO_DO: Final = (
    "Where the samples lie along another axis, say so with --batch-axis (1, or NAME=1 for one input). Where a call is "
    "a whole, give a folder with an .npz file for each call, or --batch-axis none: then a file is one call."
)


@dataclass(frozen=True)
class Reading:
    """How a source is read.

    Attributes:
        inputs: of the model.
        labels: key of the labels; None for no labels. A `Dataset` has labels of its own and needs no key.
        axes: where the samples lie, as far as the user said; `inputs` know it already, labels do not.
        whole: whether the source holds whole calls, whatever it looks like.
        what: how messages call it, e.g. "training data".
    """

    inputs: Sequence[InputSpec]
    labels: str | None = None
    axes: BatchAxes = BatchAxes()  # noqa: RUF009 -- frozen
    whole: bool = False
    what: str = "data"

    @property
    def has_samples(self) -> bool:
        """Whether arrays are of samples."""
        return not self.whole and has_samples(self.inputs)

    @property
    def keys(self) -> list[str]:
        """Of inputs and labels."""
        return [*(spec.name for spec in self.inputs), *([] if self.labels is None else [self.labels])]

    def axis(self, key: str, rank: int) -> int:
        """Where the samples lie in an array of so many dimensions."""
        if key == self.labels:
            return self.axes.of(key, rank) or 0
        return next((spec.axis for spec in self.inputs if spec.name == key), 0)


def load(source: Source, reading: Reading) -> Dataset:
    """Read data and check that they fit a model.

    Args:
        source: path of an `.npz` file whose keys are the model's input names (and those of labels), a mapping of such
            arrays, an iterable of such mappings (batches, put together in order), or a `Dataset`: these hold samples.
            Whole calls are a folder of `.npz` files (a call each, by name), a mapping of arrays of objects (a call or a
            sample each), an iterable of mappings that cannot be put together; or whatever it is, where the model's
            inputs can have no samples in common or `reading` says so.
        reading: how.

    Returns:
        Samples or whole calls, with exactly the model's inputs; other keys are named in `unused`. States that are not
        given begin at zeros, which a remark says.

    Raises:
        DataError: unreadable file, missing input or label key, wrong type or shape, NaN or infinity, inputs of
            different lengths, or no samples.
    """
    if isinstance(source, Dataset):
        return _checked_again(source, reading)
    if isinstance(source, str | PathLike):
        path, where = Path(source), f"{reading.what} '{source}'"
        if path.is_dir():
            files = _files(path, reading)
            return _calls([(f"{reading.what} '{file}'", _read_npz(file, reading.what)) for file in files], reading)
        return _of_mapping(_read_npz(path, reading.what), where, reading)
    if isinstance(source, Mapping):
        return _of_mapping({key: _array(value) for key, value in source.items()}, reading.what, reading)
    if not isinstance(source, Iterable):
        raise DataError(
            f"{reading.what} is a {type(source).__name__}; expected the path of an .npz file or of a folder of them, a "
            "mapping {input name: array}, or an iterable of such mappings."
        )
    return _of_items(list(_items(source, reading.what)), reading)


def peek(source: Source) -> Mapping[str, Array]:
    """The arrays of a source that can be read twice, or of its first call; none of an iterable."""
    if isinstance(source, Dataset):
        return source.take(slice(1)).feeds
    if isinstance(source, str | PathLike):
        path = Path(source)
        files = calls_of(path)[:1] if path.is_dir() else [path]
        return _read_npz(files[0], "data") if files else {}
    if isinstance(source, Mapping):
        return {key: _array(value) for key, value in source.items()}
    return {}


def calls_of(path: str | PathLike[str]) -> list[Path]:
    """The files of a folder of calls, in their order."""
    return sorted(Path(path).glob("*.npz"))


def _files(path: Path, reading: Reading) -> list[Path]:
    found = calls_of(path)
    if not found:
        raise DataError(
            f"{reading.what} '{path}' is a folder without .npz files. One for each call of the model is expected, its "
            "keys being the names of the inputs."
        )
    return found


def _items(source: Iterable[object], what: str) -> Iterator[dict[str, Array]]:
    count = -1
    for count, item in enumerate(source):
        if not isinstance(item, Mapping):
            raise DataError(
                f"{what}: item {count} is a {type(item).__name__}; each item must be a mapping {{input name: array}}."
            )
        yield {key: _array(value) for key, value in item.items()}
    if count < 0:
        raise DataError(f"{what} is empty: the iterable gave no item.")


def _of_items(items: list[dict[str, Array]], reading: Reading) -> Dataset:
    """Batches of samples where they can be put together, else calls."""
    states = {spec.name for spec in reading.inputs if spec.start is not None}
    for index, item in enumerate(items):
        if item.keys() - states != items[0].keys() - states:
            raise DataError(f"{reading.what}: item {index} has {_names(item)}, the first one has {_names(items[0])}.")
    named = [(f"{reading.what}, item {index}", item) for index, item in enumerate(items)]
    if not reading.has_samples:
        return _calls(named, reading)
    if len(items) == 1:
        return _of_mapping(items[0], reading.what, reading)
    if _are_batches(items, reading):
        joined = {
            key: np.concatenate([item[key] for item in items], reading.axis(key, items[0][key].ndim))
            for key in reading.keys
            if key in items[0]
        }
        return _of_mapping({**items[0], **joined}, reading.what, reading)
    return _remarked(_calls(named, reading), OWN_SHAPES.format(count=len(items), what=reading.what))


def _are_batches(items: Sequence[Mapping[str, Array]], reading: Reading) -> bool:
    """Whether all inputs of an item have the same number of samples, and the items' differ in nothing else."""
    rest = []
    for item in items:
        arrays = {key: item[key] for key in reading.keys if key in item}
        axes = {key: reading.axis(key, array.ndim) for key, array in arrays.items()}
        if any(array.ndim <= axes[key] for key, array in arrays.items()):
            return False
        if len({array.shape[axes[key]] for key, array in arrays.items()}) > 1:
            return False
        rest.append({key: np.delete(array.shape, axes[key]).tolist() for key, array in arrays.items()})
    return all(shapes == rest[0] for shapes in rest)


def _of_mapping(arrays: Mapping[str, Array], where: str, reading: Reading) -> Dataset:
    """Samples, or calls where an array has objects."""
    ragged = [spec.name for spec in reading.inputs if spec.name in arrays and _is_ragged(arrays[spec.name])]
    if ragged:
        return _calls(_apart(arrays, ragged, where, reading), reading)
    if not reading.has_samples:
        return _calls([(where, arrays)], reading)
    return _samples(arrays, where, reading)


def _samples(arrays: Mapping[str, Array], where: str, reading: Reading) -> Dataset:
    states = _absent_states(arrays, reading)
    given = {spec.name: _checked(arrays, spec, where) for spec in reading.inputs if spec not in states}
    labels = _labels(arrays, where, reading)
    lengths = {spec.name: given[spec.name].shape[spec.axis] for spec in reading.inputs if spec.name in given}
    if labels is not None:
        axis = reading.axis(reading.labels or "", labels.ndim)
        lengths[f"labels '{reading.labels}'"] = labels.shape[axis] if labels.ndim > axis else 0
    _check_lengths(lengths, where, {spec.axis for spec in reading.inputs})
    batch = next(iter(lengths.values()))  # an input that is no state is always there
    zeros = {spec.name: begin(spec, batch, given, reading.inputs) for spec in states}
    places = {spec.name: Place(spec.axis) for spec in reading.inputs if spec.axis}
    inputs = {spec.name: Place(spec.axis).to_front((given | zeros)[spec.name]) for spec in reading.inputs}
    if labels is not None:
        labels = Place(reading.axis(reading.labels or "", labels.ndim)).to_front(labels)
    found = Dataset(inputs, labels, _unused(arrays, reading), places)
    return _remarked(found, _on_states(states, reading))


def _check_lengths(lengths: Mapping[str, int], where: str, axes: set[int]) -> None:
    if len(set(lengths.values())) > 1:
        along = "axis 0" if axes == {0} else "their batch axes"
        raise DataError(
            f"{where}: all arrays must have the same number of samples along {along}; found {dict(lengths)}. "
            f"{WHAT_TO_DO}"
        )
    if 0 in lengths.values():
        raise DataError(f"{where} is empty: no samples. At least one is needed.")


def _calls(calls: Sequence[tuple[str, Mapping[str, Array]]], reading: Reading) -> Dataset:
    """Whole calls, each with what messages call it."""
    found: dict[str, list[Array]] = {spec.name: [] for spec in reading.inputs}
    labels: list[Array] = []
    begun: set[str] = set()
    for where, arrays in calls:
        states = _absent_states(arrays, reading)
        given = {
            spec.name: _checked(arrays, spec, where, is_call=True) for spec in reading.inputs if spec not in states
        }
        batches = [given[spec.name].shape[spec.axis] for spec in reading.inputs if spec.name in given and spec.shape]
        for spec in reading.inputs:
            if spec in states:
                batch = spec.batch if spec.batch is not None else next(iter(batches), 1)
                given[spec.name] = begin(spec, batch, given, reading.inputs)
                begun.add(spec.name)
            found[spec.name].append(given[spec.name])
        if (own := _labels(arrays, where, reading)) is not None:
            labels.append(own)
    dataset = Dataset(
        {name: of_objects(arrays) for name, arrays in found.items()},
        of_objects(labels) if labels else None,
        _unused(calls[0][1], reading),
        whole=True,
    )
    return _remarked(dataset, _on_states([spec for spec in reading.inputs if spec.name in begun], reading))


def _apart(
    arrays: Mapping[str, Array], ragged: Sequence[str], where: str, reading: Reading
) -> list[tuple[str, dict[str, Array]]]:
    """Calls of one sample each, from arrays of objects beside arrays of all samples."""
    keys = [key for key in reading.keys if key in arrays]
    axes = {key: 0 if _is_ragged(array := arrays[key]) else reading.axis(key, array.ndim) for key in keys}
    lengths = {key: arrays[key].shape[axis] if arrays[key].ndim > axis else 0 for key, axis in axes.items()}
    _check_lengths(lengths, where, set(axes.values()))
    ranks = {spec.name: len(spec.shape) for spec in reading.inputs}
    others = {key: array for key, array in arrays.items() if key not in keys}
    found = []
    for index in range(lengths[ragged[0]]):
        call = dict(others)
        for key in keys:
            if not _is_ragged(arrays[key]):
                call[key] = arrays[key].take([index], axes[key])
                continue
            entry = np.asarray(arrays[key][index])
            # A sample that is none of a batch yet.
            is_sample = key in ranks and entry.ndim == ranks[key] - 1
            call[key] = np.expand_dims(entry, reading.axis(key, ranks[key])) if is_sample else entry
        found.append((f"{where}, entry {index}", call))
    return found


def _is_ragged(array: Array) -> bool:
    """Whether it holds arrays, not numbers or texts."""
    return array.dtype == TEXT and array.ndim == 1 and any(isinstance(entry, np.ndarray | list) for entry in array)


def _array(value: object) -> Array:
    """A value as an array; of sequences of different lengths one of objects."""
    try:
        return np.asarray(value)
    except ValueError:
        if not isinstance(value, list | tuple):
            raise
        return of_objects([np.asarray(entry) for entry in value])


def _absent_states(arrays: Mapping[str, Array], reading: Reading) -> list[InputSpec]:
    """States that begin at zeros."""
    return [spec for spec in reading.inputs if spec.start is not None and spec.name not in arrays]


def _on_states(states: Sequence[InputSpec], reading: Reading) -> str | None:
    names = ", ".join(f"'{spec.name}' {spec.describe()}" for spec in states)
    return STATES.format(what=reading.what, names=names) if names else None


def _labels(arrays: Mapping[str, Array], where: str, reading: Reading) -> Array | None:
    if reading.labels is None:
        return None
    if reading.labels not in arrays:
        raise DataError(f"{where} has no labels: key '{reading.labels}' expected, found {_names(arrays)}.")
    labels = _native(np.asarray(arrays[reading.labels]))
    axis = reading.axis(reading.labels, labels.ndim)
    _check_finite(labels, f"{where}: labels '{reading.labels}'", axis if axis < labels.ndim else None)
    return labels


def _unused(arrays: Mapping[str, Array], reading: Reading) -> tuple[str, ...]:
    return tuple(key for key in arrays if key not in reading.keys)


def _remarked(dataset: Dataset, remark: str | None) -> Dataset:
    return dataset if remark is None else replace(dataset, remarks=(*dataset.remarks, remark))


def _checked_again(dataset: Dataset, reading: Reading) -> Dataset:
    """A data set that was made before, as a source."""
    if dataset.whole:
        calls = [(f"{reading.what}, call {i}", dataset.take(slice(i, i + 1)).feeds) for i in range(len(dataset))]
        return replace(_calls(calls, replace(reading, labels=None)), labels=dataset.labels)
    arrays = dict(Dataset(dataset.inputs, places=dataset.places).feeds)
    if dataset.labels is None:
        return _of_mapping(arrays, reading.what, reading)
    key = reading.labels or "labels"
    return _of_mapping({**arrays, key: dataset.labels}, reading.what, replace(reading, labels=key, axes=BatchAxes()))


def _read_npz(path: Path, what: str) -> dict[str, Array]:
    if not path.is_file():
        raise DataError(
            f"{what} '{path}' does not exist. An .npz file with the model's inputs, or a folder of them, is expected."
        )
    try:
        # Opened here, since numpy forgets to close what turns out to be damaged.
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            arrays = (
                {key: np.asarray(archive[key]) for key in archive.files}
                if isinstance(archive, np.lib.npyio.NpzFile)
                else None
            )
    except ValueError as error:
        if "Object arrays" in str(error):
            raise DataError(
                f"{what} '{path}' holds arrays of objects. To load them runs whatever a stranger's file says (pickle), "
                "so that is not done. Give strings as numpy.array([...], dtype=str), and samples of different lengths "
                "as a folder with an .npz file for each call, or from Python as the arrays themselves."
            ) from error
        raise _damaged(path, what, error) from error
    # numpy, zipfile and zlib raise a dozen classes without a common base on damaged files.
    except Exception as error:
        raise _damaged(path, what, error) from error
    if arrays is None:
        raise DataError(
            f"{what} '{path}' holds a single array; an .npz file with one array per input name is expected "
            "(numpy.savez(path, **{input name: array}))."
        )
    return arrays


def _damaged(path: Path, what: str, error: Exception) -> DataError:
    form = "numpy.savez(path, **{input name: array})"
    return DataError(f"{what} '{path}' is no .npz file, or is damaged: {error}. Write it with {form}.")


def _checked(arrays: Mapping[str, Array], spec: InputSpec, where: str, *, is_call: bool = False) -> Array:
    if spec.name not in arrays:
        raise DataError(f"{where} lacks the model's input '{spec.name}' ({spec.describe()}); found {_names(arrays)}.")
    array = _native(np.asarray(arrays[spec.name]))
    if array.dtype == TEXT and spec.dtype != TEXT and array.ndim != 1:
        # What numpy makes of arrays of one shape that are put into one of objects.
        array = array.astype(spec.dtype)
    if spec.dtype == TEXT:
        _check_texts(array, spec, where)
    elif array.dtype != spec.dtype:
        raise DataError(
            f"{where}: input '{spec.name}' has type {array.dtype}, the model expects {spec.describe()}. "
            f"Convert it with array.astype('{spec.dtype}')."
        )
    fits = array.ndim == len(spec.shape) and all(
        want is None or (axis == spec.axis and not is_call) or have == want
        for axis, (have, want) in enumerate(zip(array.shape, spec.shape, strict=True))
    )
    if not fits:
        raise DataError(
            f"{where}: input '{spec.name}' has shape {list(array.shape)}, the model expects {spec.describe()}"
            + ("." if is_call else f" with the samples along axis {spec.axis}.")
        )
    _check_finite(array, f"{where}: input '{spec.name}'", None if is_call else spec.axis)
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


def _check_finite(array: Array, what: str, axis: int | None) -> None:
    """Refuse NaN and infinity in samples along an axis, or in a call."""
    if not np.issubdtype(array.dtype, np.floating):
        return
    for start in range(0, len(array) if array.ndim else 0, 4096):
        bad = ~np.isfinite(array[start : start + 4096])
        if bad.any():
            place = np.argwhere(bad)[0] + np.eye(1, array.ndim, dtype=int)[0] * start
            first = f"at {place.tolist()}" if axis is None else f"in sample {place[axis]}"
            count = int((~np.isfinite(array)).sum())
            raise DataError(f"{what} holds {count} NaN or infinite values, the first {first}. Remove them.")


def _names(mapping: Mapping[str, object]) -> str:
    return "the keys " + ", ".join(f"'{key}'" for key in mapping) if mapping else "no keys"

"""Values of a model over a whole data set, computed once by onnxruntime and kept on disk."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq.data import Alignment, Dataset, Place, common_batch, of_objects
from onnxpq.errors import ConfigError, DataError, UnalignedError
from onnxpq.runtime import alignment, caching, sessions
from onnxpq.support import fingerprint

Array: TypeAlias = np.ndarray[Any, Any]
Progress: TypeAlias = Callable[[int, int], None]

BATCH = 256
"""Samples per run of onnxruntime, where the model leaves that open."""

ROWS_BYTES = 2**28
"""Bytes that `capture_rows` keeps of one value, in memory and on disk."""

_LEAST_BATCHES = 8


def capture(  # noqa: PLR0913 -- what a caller may leave out, by keyword
    model: ir.Model,
    names: Sequence[str],
    data: Dataset,
    *,
    cache_dir: Path | None,
    batch_size: int = BATCH,
    libraries: sessions.Libraries = (),
    places: Mapping[str, Place] | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Run a model over a data set and collect values of its graph.

    A model with a fixed batch runs in batches of exactly that size; the last one is filled up with copies of its last
    sample, which are cut off again. Where the samples lie in a value is measured first, on a few of them.

    Args:
        model: the model; it is not changed.
        names: the values to collect: outputs or intermediate values; what `data` has is passed on as it is.
        data: the samples of each input of the graph; further entries are ignored.
        cache_dir: folder for the results, kept under a hash of the model, the data and the names: a second run reads
            them. The results then are memory-mapped, copy-on-write, and take no memory. None keeps them in memory.
        batch_size: samples per run, where the model leaves that open.
        libraries: custom-operator libraries that the model needs.
        places: where the samples lie in some of the values, where that is known.
        progress: is told the samples that are done and N.

    Returns:
        A data set of these values: an array [N, ...] for each, and where the model has the samples in it; of whole
        calls [calls] objects.

    Raises:
        ConfigError: if the graph has no such value.
        DataError: if an input is missing or empty, inputs differ in N, or a value is not an array of numbers.
        UnalignedError: if a value has not one entry per sample, or entries of several shapes.
        OutputError: if the cache cannot be written.
    """
    results = {_name(value) for node in model.graph for value in node.outputs}
    passed = {name: data.inputs[name] for name in names if name in data.inputs and name not in results}
    computed = [name for name in dict.fromkeys(names) if name not in passed]
    kept = {name: data.places[name] for name in passed if name in data.places}
    found: dict[str, Array] = {}
    if computed and data.whole:
        source = _source(model, computed, data, 1, libraries)
        found = _kept_calls(source, computed, cache_dir, progress)
    elif computed:
        source = _source(model, computed, data, batch_size, libraries)
        own = _places(source, computed, places or {})
        found = _kept(source, computed, cache_dir, partial(_collect, source, own, progress))
        kept |= own
    values = {name: passed[name] if name in passed else found[name] for name in names}
    return Dataset(values, places=kept, whole=data.whole)


def capture_rows(
    model: ir.Model,
    name: str,
    data: Dataset,
    *,
    limit: int,
    flatten: bool,
    cache_dir: Path | None,
    libraries: sessions.Libraries = (),
) -> Array:
    """Some rows of one value of a graph, whatever they have to do with the samples that they come from.

    The samples are taken in random order until there are enough rows; no batch gives more than an eighth of them (at
    random), so that a value of many rows per sample is not that of a few samples.

    Args:
        model: the model; it is not changed.
        name: the value: numbers, [..., n] with `flatten`, else [rows, ...] with rows of one shape.
        data: the samples, or whole calls, of each input of the graph.
        limit: rows to return at most; fewer where they take more than `ROWS_BYTES`.
        flatten: every vector along the last dimension is a row.
        cache_dir: as for `capture`.
        libraries: custom-operator libraries that the model needs.

    Returns:
        [rows, ...], at most `limit`; rows of one batch follow one another.

    Raises:
        ConfigError: if the graph has no such value.
        DataError: if an input is missing or empty, inputs differ in N, or the value is not an array of numbers.
        UnalignedError: if its rows have several shapes, or no sample gives any.
        OutputError: if the cache cannot be written.
    """
    source = _source(model, [name], data, BATCH, libraries)
    key = f"rows {limit} {flatten} {ROWS_BYTES}"
    rows = partial(_collect_rows, source, name, limit=limit, flatten=flatten)
    return _kept(source, [name], cache_dir, rows, key)[name]


def extract(model: ir.Model, inputs: Sequence[str], outputs: Sequence[str]) -> ir.Model:
    """The part of a model that computes some of its values from others.

    Args:
        model: the model; it is not changed, and tensors are shared with it.
        inputs: names of the values to start from. Those that are not needed do not become inputs.
        outputs: names of the values to compute.

    Raises:
        ConfigError: if the graph lacks a value, or `inputs` do not suffice to compute the outputs.
    """
    try:
        graph = ir.convenience.extract(model.graph, inputs, outputs)
    except ValueError as error:
        raise ConfigError(
            f"The values {', '.join(outputs)} cannot be computed from {', '.join(inputs)}: {error}."
        ) from error
    graph.opset_imports.update(model.opset_imports)
    # onnx_ir gives them in any order; the file's order makes results and cache keys the same in each process.
    ordered = [graph.initializers[name] for name in model.graph.initializers if name in graph.initializers]
    graph.initializers.clear()
    for value in ordered:
        graph.register_initializer(value)
    needed = [value for value in graph.inputs if value.uses() or value.is_graph_output()]
    graph.inputs[:] = needed
    functions = [function.clone() for function in model.functions.values()]
    return ir.Model(
        graph,
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        functions=functions,
    )


@dataclass(frozen=True, eq=False)
class _Source:
    """What values are computed from: the part of the model that computes them, and its data.

    Attributes:
        model: the part.
        data: of its inputs.
        fixed: the samples that it takes at a time; None for any.
        batch_size: samples per run.
        libraries: that its operators need.
    """

    model: ir.Model
    data: Dataset
    fixed: int | None
    batch_size: int
    libraries: sessions.Libraries

    @cached_property
    def run(self) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
        """What runs it."""
        return partial(sessions.run, sessions.frugal(self.model, custom_ops_libraries=self.libraries))


def _source(
    model: ir.Model, names: Sequence[str], data: Dataset, batch_size: int, libraries: sessions.Libraries
) -> _Source:
    given = [_name(value) for value in model.graph.inputs if not value.is_initializer()]
    part = extract(model, given, names)
    needed = data.only(_checked_inputs(part, data.inputs))
    fixed = None if data.whole else fixed_batch(part, data.places)
    return _Source(part, needed, fixed, fixed or batch_size, libraries)


def _aligned(source: _Source) -> Alignment:
    """Where the samples lie in what the source gives."""
    return alignment.measure(source.run, source.data, source.fixed)[0]


def _places(source: _Source, names: Sequence[str], known: Mapping[str, Place]) -> dict[str, Place]:
    """Where the samples lie in each of some values."""
    if all(name in known for name in names):
        return {name: known[name] for name in names}
    aligned = _aligned(source)
    return {name: _place(aligned, name) for name in names}


def _place(aligned: Alignment, name: str) -> Place:
    if name in aligned.places:
        return aligned.places[name]
    raise UnalignedError(
        f"Value '{name}' has no dimension whose size is that of the batch, so that it cannot be kept for each sample. "
        "Exclude the layers behind it, or compress without data.",
        value=name,
    )


def _kept(
    source: _Source,
    names: Sequence[str],
    cache_dir: Path | None,
    collect: Callable[[caching.Allocate], dict[str, Array]],
    key: str = "",
) -> dict[str, Array]:
    """What `collect` gives, from the cache where it is there."""
    if cache_dir is None:
        return collect(caching.in_memory)
    read = partial(caching.opened, count=len(names))
    found = caching.kept(cache_dir / _key(source, names, key), lambda folder: collect(caching.on_disk(folder)), read)
    return dict(zip(names, found, strict=True))


def _kept_calls(
    source: _Source, names: Sequence[str], cache_dir: Path | None, progress: Progress | None
) -> dict[str, Array]:
    """Values of whole calls, [calls] objects each, from the cache where they are there."""

    def calls() -> Iterator[list[Array]]:
        total = len(source.data)
        for index, _, values in _runs(source, np.arange(total)):
            yield [_numbers(name, values[name]) for name in names]
            if progress is not None:
                progress(int(index[-1]) + 1, total)

    if cache_dir is None:
        found = [of_objects(list(value)) for value in zip(*calls(), strict=True)]
    else:
        folder = cache_dir / _key(source, names, "calls")
        found = caching.kept(folder, lambda folder: caching.write_calls(folder, calls()), caching.opened_calls)
    return dict(zip(names, found, strict=True))


def _collect(
    source: _Source, places: Mapping[str, Place], progress: Progress | None, allocate: caching.Allocate
) -> dict[str, Array]:
    results: dict[str, Array] = {}
    total = len(source.data)
    for index, samples, values in _runs(source, np.arange(total)):
        for position, (name, place) in enumerate(places.items()):
            value = _checked(name, values[name], place, samples, results.get(name))[: len(index)]
            if name not in results:
                results[name] = allocate(position, (total, *value.shape[1:]), value.dtype)
            results[name][index[0] : index[-1] + 1] = value
        if progress is not None:
            progress(int(index[-1]) + 1, total)
    return results


def _collect_rows(
    source: _Source, name: str, allocate: caching.Allocate, *, limit: int, flatten: bool
) -> dict[str, Array]:
    random = np.random.default_rng(0)
    parts: list[Array] = []
    count = 0
    is_filled_up = source.fixed is not None and len(source.data) % source.fixed > 0
    aligned = _aligned(source) if is_filled_up else Alignment()
    for index, samples, values in _runs(source, random.permutation(len(source.data))):
        value = aligned.counted(name, _numbers(name, values[name]), samples, len(index))
        if value.size == 0:  # a subgraph that was not run, see `onnxpq.graph.subgraphs.expose`
            continue
        part = value.reshape(-1, value.shape[-1]) if flatten and value.ndim > 0 else value
        if part.ndim == 0 or (parts and part.shape[1:] != parts[0].shape[1:]):
            raise _ragged(name, part, parts[0] if parts else None)
        limit = min(limit, max(2, ROWS_BYTES // max(1, part[:1].nbytes)))
        take = min(len(part), limit - count, max(1, limit // _LEAST_BATCHES))
        parts.append(part[np.sort(random.choice(len(part), take, replace=False))])
        count += take
        if count == limit:
            break
    if not parts:
        raise UnalignedError(f"Value '{name}' is empty for all samples: none of them reaches it.", value=name)
    kept = allocate(0, (count, *parts[0].shape[1:]), parts[0].dtype)
    np.concatenate(parts, out=kept)
    return {name: kept}


def _runs(source: _Source, order: NDArray[np.intp]) -> Iterator[tuple[NDArray[np.intp], int, dict[str, Array]]]:
    """The samples of each batch, how many it has been filled up to, and what the model gives for them."""
    size = 1 if source.data.whole else source.batch_size
    for start in range(0, len(order), size):
        index = order[start : start + size]
        padded = np.pad(index, (0, size - len(index)), mode="edge") if source.fixed else index
        yield index, len(padded), source.run(source.data.take(padded).feeds)


def fixed_batch(model: ir.Model, places: Mapping[str, Place] | None = None) -> int | None:
    """The number of samples that the model's inputs demand, None where they leave it open.

    Args:
        model: any.
        places: where the samples lie in the inputs; along axis 0 in those that are not named.

    Raises:
        DataError: if two inputs demand different ones.
    """
    sizes: dict[str, int | None] = {}
    for value in model.graph.inputs:
        place = (places or {}).get(_name(value), Place())
        known = value.shape is not None and len(value.shape) > place.axis
        size = value.shape[place.axis] if known and value.shape is not None else None
        sizes[_name(value)] = size // (place.outer * place.inner) if isinstance(size, int) else None
    return common_batch(sizes)


def _checked(name: str, value: Array, place: Place, samples: int, earlier: Array | None) -> Array:
    """The value with the samples first."""
    if not place.holds(_numbers(name, value).shape, samples):
        raise UnalignedError(
            f"Value '{name}' has shape {list(value.shape)} for a batch of {samples} samples: its size depends on what "
            "they hold, so that it cannot be kept for each of them. Exclude the layers behind it, or compress without "
            "data.",
            value=name,
        )
    front = place.to_front(value)
    if earlier is not None and earlier.shape[1:] != front.shape[1:]:
        raise _ragged(name, front, earlier)
    return front


def _numbers(name: str, value: Array) -> Array:
    if value.dtype.kind not in "biuf":
        raise DataError(f"Value '{name}' holds {value.dtype} and cannot be collected; choose one of numbers.")
    return value


def _ragged(name: str, value: Array, earlier: Array | None) -> UnalignedError:
    if earlier is None:
        return UnalignedError(f"Value '{name}' is a scalar and has no rows.", value=name)
    return UnalignedError(
        f"Value '{name}' has shape {list(value.shape[1:])} per sample in one batch and {list(earlier.shape[1:])} in "
        "another. Pad the data to one length.",
        value=name,
    )


def _checked_inputs(model: ir.Model, inputs: Mapping[str, Array]) -> list[str]:
    """The names of a model's inputs, for all of which there are samples."""
    expected = [_name(value) for value in model.graph.inputs]
    missing = [name for name in expected if name not in inputs]
    if missing:
        raise DataError(f"The data lacks the inputs {', '.join(missing)}. It has {', '.join(inputs) or 'nothing'}.")
    counts = {name: len(inputs[name]) for name in expected}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        raise DataError(f"All inputs must have the same number of samples, at least one. Got {counts}.")
    return expected


def _key(source: _Source, names: Sequence[str], key: str) -> str:
    return fingerprint.digest(_key_parts(source, names, key))


def _key_parts(source: _Source, names: Sequence[str], key: str) -> Iterator[bytes]:
    yield from fingerprint.model_parts(source.model)
    for library in source.libraries:
        yield Path(library).read_bytes()
    for name, array in source.data.inputs.items():
        yield from fingerprint.array_parts(f"{name} {source.data.places.get(name)}", array)
    for name in names:
        yield name.encode()
    yield key.encode()


def _name(value: ir.Value) -> str:
    return value.name or ""

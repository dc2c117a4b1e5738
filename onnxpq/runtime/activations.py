"""Values of a model over a whole data set, computed once by onnxruntime and kept on disk."""

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq.data import common_batch
from onnxpq.errors import ConfigError, DataError, OutputError, UnalignedError
from onnxpq.runtime import sessions
from onnxpq.support import fingerprint

Array: TypeAlias = np.ndarray[Any, Any]
Progress: TypeAlias = Callable[[int, int], None]

BATCH = 256
"""Samples per run of onnxruntime, where the model leaves that open."""

ROWS_BYTES = 2**28
"""Bytes that `capture_rows` keeps of one value, in memory and on disk."""

_UNFINISHED = ".unfinished-"
_LEAST_BATCHES = 8


def capture(
    model: ir.Model,
    names: Sequence[str],
    inputs: Mapping[str, Array],
    *,
    cache_dir: Path | None,
    batch_size: int = BATCH,
    libraries: sessions.Libraries = (),
    progress: Progress | None = None,
) -> dict[str, Array]:
    """Run a model over a data set and collect values of its graph.

    A model with a fixed first dimension runs in batches of exactly that size; the last one is filled up with copies of
    its last row, which are cut off again.

    Args:
        model: the model; it is not changed.
        names: the values to collect: outputs or intermediate values; what `inputs` has is passed on as it is.
        inputs: for each input of the graph an array [N, ...]; further entries are ignored.
        cache_dir: folder for the results, kept under a hash of the model, the data and the names: a second run reads
            them. The results then are memory-mapped, copy-on-write, and take no memory. None keeps them in memory.
        batch_size: rows per run, where the model leaves that open.
        libraries: custom-operator libraries that the model needs.
        progress: is told the rows that are done and N.

    Returns:
        An array [N, ...] for each name.

    Raises:
        ConfigError: if the graph has no such value.
        DataError: if an input is missing or empty, inputs differ in N, or a value is not an array of numbers.
        UnalignedError: if a value has not one row per row of the inputs, or rows of several shapes.
        OutputError: if the cache cannot be written.
    """
    results = {_name(value) for node in model.graph for value in node.outputs}
    passed = {name: inputs[name] for name in names if name in inputs and name not in results}
    computed = [name for name in dict.fromkeys(names) if name not in passed]
    found: dict[str, Array] = {}
    if computed:
        source = _source(model, computed, inputs, batch_size, libraries)
        found = _kept(source, computed, cache_dir, lambda allocate: _collect(source, computed, allocate, progress))
    return {name: passed[name] if name in passed else found[name] for name in names}


def capture_rows(
    model: ir.Model,
    name: str,
    inputs: Mapping[str, Array],
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
        inputs: for each input of the graph an array [N, ...].
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
    source = _source(model, [name], inputs, BATCH, libraries)
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
        inputs: [N, ...] for each of its inputs.
        rows: N.
        batch_size: rows per run.
        libraries: that its operators need.
    """

    model: ir.Model
    inputs: dict[str, Array]
    rows: int
    batch_size: int
    libraries: sessions.Libraries


def _source(
    model: ir.Model, names: Sequence[str], inputs: Mapping[str, Array], batch_size: int, libraries: sessions.Libraries
) -> _Source:
    given = [_name(value) for value in model.graph.inputs if not value.is_initializer()]
    part = extract(model, given, names)
    rows = _count_rows(part, inputs)
    needed = {_name(value): inputs[_name(value)] for value in part.graph.inputs}
    return _Source(part, needed, rows, fixed_batch(part) or batch_size, libraries)


def _kept(
    source: _Source,
    names: Sequence[str],
    cache_dir: Path | None,
    collect: "Callable[[_Allocate], dict[str, Array]]",
    key: str = "",
) -> dict[str, Array]:
    """What `collect` gives, from the cache where it is there."""
    if cache_dir is None:
        return collect(_in_memory)
    found = cache_dir / _key(source, names, key)
    if found.exists():
        try:
            return _opened(found, names)
        except (OSError, ValueError):
            # What is there was truncated, or a file is missing.
            shutil.rmtree(found, ignore_errors=True)
    _fill_cache(found, lambda folder: collect(_on_disk(folder)))
    return _opened(found, names)


def _opened(found: Path, names: Sequence[str]) -> dict[str, Array]:
    return {name: np.load(found / _file_name(i), mmap_mode="c") for i, name in enumerate(names)}


_Allocate: TypeAlias = Callable[[int, tuple[int, ...], np.dtype[Any]], Array]
"""Makes the array for the i-th value, given its shape and type."""


def _in_memory(_index: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    return np.empty(shape, dtype)


def _on_disk(folder: Path) -> _Allocate:
    def allocate(index: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return np.lib.format.open_memmap(folder / _file_name(index), mode="w+", dtype=dtype, shape=shape)

    return allocate


def _fill_cache(found: Path, write: Callable[[Path], object]) -> None:
    """Write into a folder of another name, then rename it: what has the right name is whole."""
    try:
        found.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=found.parent))
        try:
            write(unfinished)
            unfinished.rename(found)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        # Another process may have put the same results there meanwhile.
        if not found.exists():
            raise OutputError(
                f"The activations cannot be cached in '{found.parent}': {error}. Choose another cache folder, or none."
            ) from error


def _collect(source: _Source, names: Sequence[str], allocate: _Allocate, progress: Progress | None) -> dict[str, Array]:
    results: dict[str, Array] = {}
    for index, values in _runs(source, np.arange(source.rows)):
        for position, name in enumerate(names):
            value = _checked(name, values[name], len(index), results.get(name))
            if name not in results:
                results[name] = allocate(position, (source.rows, *value.shape[1:]), value.dtype)
            results[name][index[0] : index[-1] + 1] = value
        if progress is not None:
            progress(int(index[-1]) + 1, source.rows)
    return results


def _collect_rows(source: _Source, name: str, allocate: _Allocate, *, limit: int, flatten: bool) -> dict[str, Array]:
    random = np.random.default_rng(0)
    parts: list[Array] = []
    count = 0
    for _, values in _runs(source, random.permutation(source.rows)):
        value = _numbers(name, values[name])
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
        raise UnalignedError(f"Value '{name}' is empty for all samples: none of them reaches it.")
    kept = allocate(0, (count, *parts[0].shape[1:]), parts[0].dtype)
    np.concatenate(parts, out=kept)
    return {name: kept}


def _runs(source: _Source, order: NDArray[np.intp]) -> Iterator[tuple[NDArray[np.intp], dict[str, Array]]]:
    """The samples of each batch, and what the model gives for them; a fixed batch is filled up and cut off again."""
    session = sessions.frugal(source.model, custom_ops_libraries=source.libraries)
    fixed = fixed_batch(source.model)
    for start in range(0, source.rows, source.batch_size):
        index = order[start : start + source.batch_size]
        padded = np.pad(index, (0, source.batch_size - len(index)), mode="edge") if fixed else index
        values = sessions.run(session, {name: np.asarray(array[padded]) for name, array in source.inputs.items()})
        if len(padded) > len(index):
            values = {
                name: value[: len(index)] if value.shape[:1] == (fixed,) else value for name, value in values.items()
            }
        yield index, values


def fixed_batch(model: ir.Model) -> int | None:
    """The first dimension that the model's inputs demand, None where they leave it open.

    Raises:
        DataError: if two inputs demand different ones.
    """
    first_dimensions: dict[str, int | None] = {}
    for value in model.graph.inputs:
        first = value.shape[0] if value.shape is not None and len(value.shape) > 0 else None
        first_dimensions[_name(value)] = first if isinstance(first, int) else None
    return common_batch(first_dimensions)


def _checked(name: str, value: Array, rows: int, earlier: Array | None) -> Array:
    if _numbers(name, value).ndim == 0 or value.shape[0] != rows:
        raise UnalignedError(
            f"Value '{name}' has shape {list(value.shape)} for a batch of {rows} rows: its first dimension is not the "
            "batch, so it cannot be collected over a data set. Exclude the layers behind it, or compress without data."
        )
    if earlier is not None and earlier.shape[1:] != value.shape[1:]:
        raise _ragged(name, value, earlier)
    return value


def _numbers(name: str, value: Array) -> Array:
    if value.dtype.kind not in "biuf":
        raise DataError(f"Value '{name}' holds {value.dtype} and cannot be collected; choose one of numbers.")
    return value


def _ragged(name: str, value: Array, earlier: Array | None) -> UnalignedError:
    if earlier is None:
        return UnalignedError(f"Value '{name}' is a scalar and has no rows.")
    return UnalignedError(
        f"Value '{name}' has shape {list(value.shape[1:])} per row in one batch and {list(earlier.shape[1:])} in "
        "another. Pad the data to one length."
    )


def _count_rows(model: ir.Model, inputs: Mapping[str, Array]) -> int:
    expected = [_name(value) for value in model.graph.inputs]
    missing = [name for name in expected if name not in inputs]
    if missing:
        raise DataError(f"The data lacks the inputs {', '.join(missing)}. It has {', '.join(inputs) or 'nothing'}.")
    rows = {name: len(inputs[name]) for name in expected}
    if len(set(rows.values())) != 1 or 0 in rows.values():
        raise DataError(f"All inputs must have the same number of rows, at least one. Got {rows}.")
    return next(iter(rows.values()))


def _key(source: _Source, names: Sequence[str], key: str) -> str:
    return fingerprint.digest(_key_parts(source, names, key))


def _key_parts(source: _Source, names: Sequence[str], key: str) -> Iterator[bytes]:
    yield from fingerprint.model_parts(source.model)
    for library in source.libraries:
        yield Path(library).read_bytes()
    for name, array in source.inputs.items():
        yield from fingerprint.array_parts(name, array)
    for name in names:
        yield name.encode()
    yield key.encode()


def _file_name(index: int) -> str:
    return f"{index}.npy"


def _name(value: ir.Value) -> str:
    return value.name or ""

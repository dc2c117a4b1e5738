"""Values of a model over a whole data set, computed once by onnxruntime and kept on disk."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from onnxpq import runtime
from onnxpq.data import common_batch
from onnxpq.errors import ConfigError, DataError, OutputError

Array: TypeAlias = np.ndarray[Any, Any]
Progress: TypeAlias = Callable[[int, int], None]

_HASH_ROWS = 1024
_UNFINISHED = ".unfinished-"


def capture(
    model: ir.Model,
    names: Sequence[str],
    inputs: Mapping[str, Array],
    *,
    cache_dir: Path | None,
    batch_size: int = 256,
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
        progress: is told the rows that are done and N.

    Returns:
        An array [N, ...] for each name.

    Raises:
        ConfigError: if the graph has no such value.
        DataError: if an input is missing or empty, inputs differ in N, or a value is not an array of numbers with one
            row per row of the inputs.
        OutputError: if the cache cannot be written.
    """
    results = {_name(value) for node in model.graph for value in node.outputs}
    passed = {name: inputs[name] for name in names if name in inputs and name not in results}
    computed = [name for name in dict.fromkeys(names) if name not in passed]
    found = _computed(model, computed, inputs, cache_dir, batch_size, progress) if computed else {}
    return {name: passed[name] if name in passed else found[name] for name in names}


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


def _computed(
    model: ir.Model,
    names: Sequence[str],
    inputs: Mapping[str, Array],
    cache_dir: Path | None,
    batch_size: int,
    progress: Progress | None,
) -> dict[str, Array]:
    given = [_name(value) for value in model.graph.inputs if not value.is_initializer()]
    part = extract(model, given, names)
    rows = _count_rows(part, inputs)
    if cache_dir is None:
        return _collect(part, names, inputs, _in_memory(rows), batch_size, progress)
    found = cache_dir / _key(part, names, inputs)
    if not found.exists():
        _fill_cache(found, lambda folder: _collect(part, names, inputs, _on_disk(rows, folder), batch_size, progress))
    return {name: np.load(found / _file_name(i), mmap_mode="c") for i, name in enumerate(names)}


_Allocate: TypeAlias = Callable[[int, Array], Array]
"""Makes the array for the i-th value, given its values in the first batch."""


def _in_memory(rows: int) -> _Allocate:
    return lambda _, first: np.empty((rows, *first.shape[1:]), first.dtype)


def _on_disk(rows: int, folder: Path) -> _Allocate:
    def allocate(index: int, first: Array) -> Array:
        shape = (rows, *first.shape[1:])
        return np.lib.format.open_memmap(folder / _file_name(index), mode="w+", dtype=first.dtype, shape=shape)

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


def _collect(
    model: ir.Model,
    names: Sequence[str],
    inputs: Mapping[str, Array],
    allocate: _Allocate,
    batch_size: int,
    progress: Progress | None,
) -> dict[str, Array]:
    rows = _count_rows(model, inputs)
    results: dict[str, Array] = {}
    session = runtime.session(model, use_library=False)
    needed = [_name(value) for value in model.graph.inputs]
    for start, stop, batch in _batches(model, {name: inputs[name] for name in needed}, batch_size):
        values = runtime.run(session, batch)
        for index, name in enumerate(names):
            value = _checked(name, values[name], len(next(iter(batch.values()))), results.get(name))
            if name not in results:
                results[name] = allocate(index, value)
            results[name][start:stop] = value[: stop - start]
        if progress is not None:
            progress(stop, rows)
    return results


def _batches(model: ir.Model, inputs: dict[str, Array], batch_size: int) -> Iterator[tuple[int, int, dict[str, Array]]]:
    rows = len(next(iter(inputs.values())))
    fixed = fixed_batch(model)
    size = fixed or batch_size
    for start in range(0, rows, size):
        stop = min(start + size, rows)
        batch = {name: np.asarray(array[start:stop]) for name, array in inputs.items()}
        if fixed and stop - start < fixed:
            missing = fixed - (stop - start)
            batch = {name: np.concatenate([part, np.repeat(part[-1:], missing, 0)]) for name, part in batch.items()}
        yield start, stop, batch


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
    if value.dtype.kind not in "biuf":
        raise DataError(f"Value '{name}' holds {value.dtype} and cannot be collected; choose one of numbers.")
    if value.ndim == 0 or value.shape[0] != rows:
        raise DataError(
            f"Value '{name}' has shape {list(value.shape)} for a batch of {rows} rows: its first dimension is not the "
            "batch, so it cannot be collected over a data set. Exclude the layers behind it, or compress without data."
        )
    if earlier is not None and earlier.shape[1:] != value.shape[1:]:
        raise DataError(
            f"Value '{name}' has shape {list(value.shape[1:])} per row in one batch and {list(earlier.shape[1:])} in "
            "another. Pad the data to one length."
        )
    return value


def _count_rows(model: ir.Model, inputs: Mapping[str, Array]) -> int:
    expected = [_name(value) for value in model.graph.inputs]
    missing = [name for name in expected if name not in inputs]
    if missing:
        raise DataError(f"The data lacks the inputs {', '.join(missing)}. It has {', '.join(inputs) or 'nothing'}.")
    rows = {name: len(inputs[name]) for name in expected}
    if len(set(rows.values())) != 1 or 0 in rows.values():
        raise DataError(f"All inputs must have the same number of rows, at least one. Got {rows}.")
    return next(iter(rows.values()))


def _key(model: ir.Model, names: Sequence[str], inputs: Mapping[str, Array]) -> str:
    digest = hashlib.sha256()

    def add(part: bytes) -> None:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)

    for part in _model_parts(model):
        add(part)
    for value in model.graph.inputs:
        if _name(value) in inputs:
            array = inputs[_name(value)]
            add(f"{value.name} {array.dtype} {array.shape}".encode())
            for start in range(0, len(array), _HASH_ROWS):
                add(np.ascontiguousarray(array[start : start + _HASH_ROWS]).tobytes())
    for name in names:
        add(name.encode())
    return digest.hexdigest()


def _model_parts(model: ir.Model) -> Iterator[bytes]:
    """Everything that decides what the model computes, in pieces: a whole model may be too large for protobuf."""
    yield repr(sorted(model.opset_imports.items())).encode()
    for value in model.graph.inputs:
        yield f"{value.name} {value.type} {value.shape}".encode()
    for function in model.functions.values():
        yield ir.serde.serialize_function(function).SerializeToString(deterministic=True)
    for node in model.graph:
        yield ir.serde.serialize_node(node).SerializeToString(deterministic=True)
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None:
            yield f"{name} {tensor.dtype} {tensor.shape}".encode()
            yield _tensor_bytes(tensor)


def _tensor_bytes(tensor: ir.TensorProtocol) -> bytes:
    if tensor.dtype == ir.DataType.STRING:
        return repr(tensor.numpy().tolist()).encode()
    return tensor.tobytes()


def _file_name(index: int) -> str:
    return f"{index}.npy"


def _name(value: ir.Value) -> str:
    return value.name or ""

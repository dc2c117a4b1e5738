"""Hashes of what results depend on: arrays, models, files. All are SHA-256, in hexadecimal digits."""

import hashlib
from collections.abc import Iterable, Iterator
from os import PathLike
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

Array: TypeAlias = np.ndarray[Any, Any]

_ROWS = 1024
"""Rows of an array that are hashed at a time: it may be memory-mapped and larger than the memory."""


def digest(parts: Iterable[bytes]) -> str:
    """The hash of pieces of bytes, each counted with its length: where one ends matters."""
    found = hashlib.sha256()
    for part in parts:
        found.update(len(part).to_bytes(8, "little"))
        found.update(part)
    return found.hexdigest()


def of_file(path: str | PathLike[str]) -> str:
    """The hash of a file's bytes, as the tool `sha256sum` gives it.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def array_parts(name: str, array: Array) -> Iterator[bytes]:
    """The name, type, shape and values of an array, or of an array of arrays, for `digest`."""
    yield f"{name} {array.dtype} {array.shape}".encode()
    if array.dtype.hasobject and any(isinstance(entry, np.ndarray) for entry in array.flat):
        for entry in array.flat:
            yield from array_parts(name, np.asarray(entry))
        return
    if array.ndim == 0:
        yield _array_bytes(array)
    for start in range(0, len(array) if array.ndim else 0, _ROWS):
        yield _array_bytes(array[start : start + _ROWS])


def model_parts(model: ir.Model) -> Iterator[bytes]:
    """Everything that decides what a model computes, in pieces: a whole model may be too large for protobuf."""
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


def _array_bytes(array: Array) -> bytes:
    # The memory of an array of objects holds addresses.
    return repr(array.tolist()).encode() if array.dtype.hasobject else np.ascontiguousarray(array).tobytes()


def _tensor_bytes(tensor: ir.TensorProtocol) -> bytes:
    if tensor.dtype == ir.DataType.STRING:
        return repr(tensor.numpy().tolist()).encode()
    return tensor.tobytes()

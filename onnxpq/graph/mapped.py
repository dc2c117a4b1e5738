"""Large model files are mapped into memory, not read: the values of their weights stay in the file.

A model file is one protobuf. To read one takes its bytes twice, and once as long as the model lives. Its wire format
(protobuf.dev, "Encoding": a message is a sequence of fields, each a tag, which is ``number << 3 | type``, and a value)
tells where the values of each initializer lie. So the model without them is put together and parsed, and they are
arrays over the mapped file: the system reads a page when it is looked at, and may let it go at any time.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Final, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq.graph.protobuf import EMBEDDED_BYTES
from onnxpq.support import memory

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIXED_SIZES: Final = {_FIXED64: 8, _FIXED32: 4}
_BYTE_BITS: Final = 8
_VARINT_BITS: Final = 7
_MORE: Final = 1 << _VARINT_BITS
"""Set in each byte of a varint but the last."""
_LONGEST_VARINT: Final = 10

_TYPE_BITS: Final = 3
_GRAPH: Final = onnx.ModelProto.GRAPH_FIELD_NUMBER << _TYPE_BITS | _BYTES
_INITIALIZER: Final = onnx.GraphProto.INITIALIZER_FIELD_NUMBER << _TYPE_BITS | _BYTES
_RAW_DATA: Final = onnx.TensorProto.RAW_DATA_FIELD_NUMBER << _TYPE_BITS | _BYTES
_BESIDE_THE_VALUES: Final = {"dims", "data_type", "name", "doc_string", "metadata_props", "data_location"}

Values = dict[str, NDArray[Any]]


class _UnusualError(Exception):
    """Something that is left to the ordinary way of reading, which says what is wrong, if anything is."""


class _Field(NamedTuple):
    """Where a field of a message lies: from `begin` to `end`, its value from `start`."""

    tag: int
    begin: int
    start: int
    end: int


def read(path: str) -> tuple[onnx.ModelProto, Values] | None:
    """A model file without the values of its large initializers, and these.

    Args:
        path: the file, not empty. What is written into it later is seen in the values; a file put in its place is not.

    Returns:
        The model without values, and by the name of each initializer of more than `EMBEDDED_BYTES` its own, read-only;
        None where there are none, or where the file is not put together as such files are: it is to be read whole.

    Raises:
        OSError: it cannot be read.
    """
    with open(path, "rb") as file:
        # The mapping lives as long as the arrays over it.
        content = memoryview(memory.mapped(file))
    values: Values = {}

    def without_values(graph: memoryview) -> bytes:
        return _changed(graph, _INITIALIZER, lambda tensor: _emptied(tensor, values))

    proto = onnx.ModelProto()
    try:
        _parse(_changed(content, _GRAPH, without_values), proto)
    except _UnusualError:
        return None
    return (proto, values) if values else None


def put_in(model: ir.Model, values: Values) -> None:
    """Changes `model`: its initializers get their values back."""
    for name, array in values.items():
        value = model.graph.initializers[name]
        empty = value.const_value
        assert empty is not None  # noqa: S101 -- from the protobuf that the values were taken out of
        value.const_value = ir.Tensor(
            array,
            dtype=empty.dtype,
            shape=ir.Shape(array.shape),
            name=name,
            doc_string=empty.doc_string,
            metadata_props=dict(empty.metadata_props),
        )


def _changed(message: memoryview, tag: int, change: Callable[[memoryview], bytes]) -> bytes:
    """A message in which each value of one field, itself a message, is changed."""
    pieces: list[bytes | memoryview] = []
    kept = 0
    for field in _fields(message):
        if field.tag == tag:
            value = change(message[field.start : field.end])
            pieces += [message[kept : field.begin], _varint(tag), _varint(len(value)), value]
            kept = field.end
    return b"".join([*pieces, message[kept:]])


def _emptied(message: memoryview, values: Values) -> bytes:
    """A tensor without its bytes, if these are many, which then go to `values`."""
    if len(message) <= EMBEDDED_BYTES:
        return bytes(message)
    fields = [field for field in _fields(message) if field.tag == _RAW_DATA]
    if sum(field.end - field.start for field in fields) <= EMBEDDED_BYTES:
        return bytes(message)
    if len(fields) > 1:
        raise _UnusualError
    (field,) = fields
    rest = bytes(message[: field.begin]) + bytes(message[field.end :])
    tensor = onnx.TensorProto()
    _parse(rest, tensor)
    if tensor.name in values:
        raise _UnusualError
    values[tensor.name] = _array(tensor, message[field.start : field.end])
    return rest


def _parse(message: bytes, into: onnx.ModelProto | onnx.TensorProto) -> None:
    try:
        into.ParseFromString(message)
    # protobuf's DecodeError; naming it would tie us to protobuf's own package.
    except Exception as error:
        raise _UnusualError from error


def _array(tensor: onnx.TensorProto, raw: memoryview) -> NDArray[Any]:
    """The values of a tensor whose bytes are `raw`."""
    if not {field.name for field, _ in tensor.ListFields()} <= _BESIDE_THE_VALUES:
        raise _UnusualError
    # A name that is not UTF-8 comes as bytes.
    if not isinstance(tensor.name, str) or not tensor.name:
        raise _UnusualError
    if tensor.data_location != onnx.TensorProto.DEFAULT or any(size < 0 for size in tensor.dims):
        raise _UnusualError
    try:
        dtype = ir.DataType(tensor.data_type)
        bits = dtype.bitwidth
    # A number that is no type, or a type without a size: strings.
    except (ValueError, TypeError) as error:
        raise _UnusualError from error
    # Of types below 8 bits several values share a byte.
    if bits < _BYTE_BITS or len(raw) * _BYTE_BITS != math.prod(tensor.dims) * bits:
        raise _UnusualError
    return np.frombuffer(raw, dtype.numpy().newbyteorder("<")).reshape(tuple(tensor.dims))


def _fields(message: memoryview) -> Iterator[_Field]:
    at = 0
    while at < len(message):
        begin = at
        tag, at = _read_varint(message, at)
        kind = tag % (1 << _TYPE_BITS)
        if kind == _VARINT:
            start, (_, end) = at, _read_varint(message, at)
        elif kind == _BYTES:
            size, start = _read_varint(message, at)
            end = start + size
        elif kind in _FIXED_SIZES:
            start, end = at, at + _FIXED_SIZES[kind]
        else:
            raise _UnusualError
        if end > len(message):
            raise _UnusualError
        yield _Field(tag, begin, start, end)
        at = end


def _read_varint(message: memoryview, at: int) -> tuple[int, int]:
    """An integer, its lowest seven bits first, and where it ends."""
    number = 0
    for place, byte in enumerate(message[at : at + _LONGEST_VARINT]):
        number |= (byte % _MORE) << (_VARINT_BITS * place)
        if byte < _MORE:
            return number, at + place + 1
    raise _UnusualError


def _varint(number: int) -> bytes:
    found = bytearray()
    while number >= _MORE:
        found.append(number % _MORE | _MORE)
        number >>= _VARINT_BITS
    return bytes([*found, number])

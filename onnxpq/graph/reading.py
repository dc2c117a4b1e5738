"""What lies in a model file: a protobuf, whose large values may be mapped; or something else, which is told apart."""

import os
from typing import Final, NamedTuple

import onnx

from onnxpq.errors import ModelError
from onnxpq.graph import mapped

_FOREIGN_FORMATS: Final = (
    (b"version https://git-lfs", "a Git LFS pointer; fetch the model itself with `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive, as PyTorch and Keras write them; export the model to ONNX first"),
    (b"\x89HDF", "an HDF5 file; export the model to ONNX first"),
)


class Read(NamedTuple):
    """What was read of a model.

    Attributes:
        proto: without external data and `values`.
        path: of its file, that external data is relative to; None where there is none.
        values: of the initializers of a large file.
    """

    proto: onnx.ModelProto
    path: str | None
    values: mapped.Values


def read_proto(source: str | os.PathLike[str] | bytes | onnx.ModelProto, where: str, most: int) -> Read:
    """The protobuf of a source, which is not changed.

    Args:
        source: a path, the bytes of a file, or a protobuf.
        where: names it in messages.
        most: a file of more bytes is mapped.

    Raises:
        ModelError: it cannot be read, or is no model.
    """
    if isinstance(source, onnx.ModelProto):
        proto = onnx.ModelProto()
        proto.CopyFrom(source)
        return Read(proto, None, {})
    if isinstance(source, bytes):
        return Read(parse(source, where), None, {})
    path = os.fspath(source)
    if os.path.isdir(path):
        raise ModelError(f"{where} is a folder; expected an ONNX file. Pass the path of the .onnx file in it.")
    try:
        found = mapped.read(path) if os.path.getsize(path) > most else None
        if found is None:
            with open(path, "rb") as file:
                content = file.read()
    except FileNotFoundError as error:
        raise ModelError(f"{where} does not exist. Check the path.") from error
    except OSError as error:
        raise ModelError(f"{where} cannot be read: {error.strerror}. Check its permissions.") from error
    proto, values = found or (parse(content, where), {})
    return Read(proto, path, values)


def parse(content: bytes, where: str) -> onnx.ModelProto:
    """The model whose file has these bytes.

    Raises:
        ModelError: none has; the message tells other formats and damage apart.
    """
    if not content:
        raise ModelError(f"{where} is empty (0 bytes); expected an ONNX model. Export or download it again.")
    for magic, kind in _FOREIGN_FORMATS:
        if content.startswith(magic):
            raise ModelError(f"{where} is not an ONNX model but {kind}.")
    if content[4:8] == b"ORTM":
        raise ModelError(f"{where} is in onnxruntime's own .ort format; pass the .onnx file that it was made from.")
    try:
        proto: onnx.ModelProto = onnx.ModelProto.FromString(content)
    # protobuf's DecodeError; naming it would tie us to protobuf's own package.
    except Exception as error:
        # ONNX writers put field 1, the IR version, first: tag 0x08 and a small number.
        if content[0] == 0x08 and len(content) > 1 and 0 < content[1] < 0x20:
            raise ModelError(
                f"{where} is damaged or truncated: it starts as an ONNX model, but its {len(content)} bytes do not "
                "form a complete one. Download or copy it again."
            ) from error
        raise ModelError(f"{where} is not an ONNX model: {len(content)} bytes that are no protobuf of one.") from error
    if not proto.ir_version and not proto.graph.node:
        raise ModelError(f"{where} is not an ONNX model: it has neither an IR version nor a node.")
    return proto

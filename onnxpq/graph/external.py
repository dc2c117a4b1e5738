"""Where the external data of a model lie, and that they are what the model says.

The rule is onnxruntime's: a data file is named relative to the model, and with all links followed it lies in the
folder of the model or below, or, where the model's path is itself a link, in that of the file behind it. So the caches
that keep files as blobs with links to them (Hugging Face) work, for there model and data are links to the same folder.
Nobody who writes a model file, or puts links beside one, makes onnxpq read a file outside of that model's own folder.
How many names the data file has (hard links) says nothing about where it lies, and does not count.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import onnx
import onnx_ir as ir

from onnxpq.errors import ModelError
from onnxpq.graph.protobuf import read_array, tensor_attributes
from onnxpq.graph.protos import tensors_of


def find(proto: onnx.ModelProto, path: str | None) -> list[ir.ExternalTensor]:
    """The tensors of a protobuf that lie in external data files, which need not exist.

    Args:
        proto: the model.
        path: of its file; None where it came without one, and its data are looked for in the working directory.

    Raises:
        ModelError: a tensor refers to its data in a way that cannot be, for instance by a negative offset, or to a
            file that is none of the model's.
    """
    outside = [tensor for tensor in tensors_of(proto) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    return [located(tensor, path) for tensor in map(_read, outside) if isinstance(tensor, ir.ExternalTensor)]


def _read(tensor: onnx.TensorProto) -> ir.TensorProtocol:
    try:
        return ir.serde.deserialize_tensor(tensor, "")
    # onnx_ir raises one class of its own around whatever it met.
    except Exception as error:
        raise ModelError(
            f"The external data of tensor '{tensor.name}' cannot be found: {error.__cause__ or error}. Copy the model "
            "again."
        ) from error


def located(tensor: ir.ExternalTensor, path: str | None) -> ir.ExternalTensor:
    """The tensor with the real path of its file, after which nobody follows a link or asks for a folder again.

    Args:
        tensor: its location is relative to the model, whatever its base directory.
        path: of the model's file, or None.

    Raises:
        ModelError: the file is none of the model's.
    """
    location = os.fspath(tensor.location).replace("\0", "?")
    folders = [os.path.realpath(os.path.dirname(path or ""))]
    if path is not None:
        folders.append(os.path.dirname(os.path.realpath(path)))
    real = os.path.realpath(os.path.join(os.path.dirname(path or ""), location))
    if os.path.isabs(location) or not any(folder in Path(real).parents for folder in map(Path, folders)):
        raise ModelError(
            f"The tensor '{tensor.name}' has its external data in '{location}', which is '{real}' and lies outside of "
            f"the model's folder {_quoted(folders)}. Put the data file beside the model, under a relative path."
        )
    return moved(tensor, real)


def moved(tensor: ir.ExternalTensor, path: str) -> ir.ExternalTensor:
    """The same tensor in a file of an absolute path."""
    return ir.ExternalTensor(
        path,
        tensor.offset,
        tensor.length,
        tensor.dtype,
        shape=ir.Shape(tensor.shape),
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def relocate(model: ir.Model, place: Callable[[ir.ExternalTensor], ir.ExternalTensor]) -> None:
    """Changes a model: every external tensor becomes what `place` makes of it."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = place(value.const_value)
    for node, name, tensor in list(tensor_attributes(model)):
        if isinstance(tensor, ir.ExternalTensor):
            node.attributes[name] = ir.AttrTensor(name, place(tensor))


def check(tensors: Iterable[ir.ExternalTensor], where: str) -> None:
    """Checks that data files exist and hold what the tensors need.

    Raises:
        ModelError: one does not; `where` names the model.
    """
    for tensor in tensors:
        try:
            size = os.path.getsize(tensor.path)
        except OSError as error:
            raise ModelError(
                f"{where} keeps the tensor '{tensor.name}' in the external data file '{tensor.path}', which does not "
                "exist or cannot be read. Copy it beside the model, and pass the model by its path."
            ) from error
        end = (tensor.offset or 0) + max(tensor.length or 0, tensor.nbytes)
        if size < end or (tensor.length is not None and tensor.length < tensor.nbytes):
            raise ModelError(
                f"{where}: the external data file '{tensor.path}' is too short for the tensor '{tensor.name}': found "
                f"{size} bytes, expected {end} or more. Copy it again."
            )
        read_array(tensor, tensor.name)


def _quoted(names: Iterable[str]) -> str:
    return " and ".join(f"'{name}'" for name in dict.fromkeys(names))

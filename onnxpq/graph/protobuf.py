"""Between protobufs and `onnx_ir.Model`: what neither onnx_ir nor ONNX's checker does by itself.

* onnx_ir has no map types (the output of scikit-learn's ZipMap): `from_proto` puts them aside, `to_proto` back.
* ONNX's checker and shape inference need a protobuf in memory, which ends at 2 GiB: `structure` is a model without
  the values of its weights.
* onnx_ir reads initializers from external data, but not the tensors of Constant nodes: `embed_external` does.
"""

from collections.abc import Iterator
from typing import Any, Final

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq.errors import ModelError
from onnxpq.graph.protos import graphs_of, tensors_of

EMBEDDED_BYTES: Final = 1024
"""Initializers up to this many bytes stay in the model file, where shape inference sees them."""

_TYPE_KEY: Final = "onnxpq.type_proto"


def from_proto(proto: onnx.ModelProto, where: str) -> ir.Model:
    """The protobuf as an `onnx_ir.Model` that shares its tensors.

    Raises:
        ModelError: the graph is invalid; `where` names the model in the message.
    """
    infos = [info for graph in graphs_of(proto) for info in (*graph.input, *graph.output, *graph.value_info)]
    set_aside = [(info, info.type.SerializeToString()) for info in infos if _holds_map(info.type)]
    for info, _ in set_aside:
        info.ClearField("type")
    try:
        model = ir.from_proto(proto)
    # onnx_ir raises many classes for graphs that it cannot hold.
    except Exception as error:
        raise ModelError(
            f"{where} cannot be read as an ONNX graph: {error.__cause__ or error}. Export it again."
        ) from error
    finally:
        for info, serialized in set_aside:
            info.type.ParseFromString(serialized)
    types = {info.name: serialized for info, serialized in set_aside}
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.outputs):
            if value.name in types:
                value.meta[_TYPE_KEY] = types[value.name]
    return model


def check_tensors(proto: onnx.ModelProto, where: str) -> None:
    """Checks the types and sizes of all tensors, some of which ONNX's checker does not look at.

    Raises:
        ModelError: a tensor has an unknown element type or a negative size; `where` names the model.
    """
    known = {int(dtype) for dtype in ir.DataType}
    for tensor in tensors_of(proto):
        if tensor.data_type not in known or any(size < 0 for size in tensor.dims):
            raise ModelError(
                f"{where} has a tensor '{tensor.name}' of element type {tensor.data_type} and sizes "
                f"{list(tensor.dims)}; expected one of ONNX's types and sizes of at least 0. The file is damaged: copy "
                "or export it again."
            )


def open_negative_dimensions(model: ir.Model) -> None:
    """Changes `model`: negative sizes of inputs, outputs and other values become unknown, as is meant by them.

    PaddlePaddle's exporter writes -1 for an open batch; onnxruntime takes it so.
    """
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.outputs, *(value for node in graph for value in node.outputs)):
            if value.shape is not None and any(isinstance(size, int) and size < 0 for size in value.shape):
                value.shape = ir.Shape([None if isinstance(size, int) and size < 0 else size for size in value.shape])


def to_proto(model: ir.Model) -> onnx.ModelProto:
    """The model as a protobuf; tensors in external data stay references to their files."""
    proto = ir.to_proto(model)
    types = {
        value.name: value.meta[_TYPE_KEY]
        for graph in model.graphs()
        for value in (*graph.inputs, *graph.outputs)
        if _TYPE_KEY in value.meta
    }
    if types:
        for graph_proto in graphs_of(proto):
            for info in (*graph_proto.input, *graph_proto.output):
                if info.name in types:
                    info.type.ParseFromString(types[info.name])
    return proto


def structure(model: ir.Model) -> onnx.ModelProto:
    """The model with its large initializers turned into graph inputs of the same type and shape.

    It is small however large the model is, and equivalent for checking and shape inference.
    """
    small = model.clone()
    graph = small.graph
    for name, value in list(graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING:
            continue
        if isinstance(tensor, ir.ExternalTensor) or tensor.nbytes > EMBEDDED_BYTES:
            del graph.initializers[name]
            value.const_value = None
            if not value.is_graph_input():
                value.type, value.shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
                graph.inputs.append(value)
    embed_external(small)
    return to_proto(small)


def read_array(tensor: ir.TensorProtocol, name: str) -> NDArray[Any]:
    """The values of a tensor.

    Raises:
        ModelError: sizes that do not fit each other, or a file that cannot be read; `name` names the tensor.
    """
    try:
        return tensor.numpy()
    # Damaged sizes reach us as errors of numpy, files out of reach as onnx_ir's ValueError or the system's OSError.
    except (ValueError, TypeError, OSError, MemoryError) as error:
        raise ModelError(f"The tensor '{name}' cannot be read: {error}. Export or copy the model again.") from error


def tensor_bytes(tensor: ir.TensorProtocol) -> int:
    """Bytes of the values of a tensor; strings, whose length is not their type's, count as nothing."""
    return 0 if tensor.dtype == ir.DataType.STRING else tensor.nbytes


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """All tensors of the model that lie in external data files."""
    return (tensor for tensor in all_tensors(model) if isinstance(tensor, ir.ExternalTensor))


def all_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """All constants of the model: initializers, and attributes of nodes, as weights are that some exporters write."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for _, _, tensor in tensor_attributes(model):
        yield tensor


def embed_external(model: ir.Model, *, most: int | None = None) -> None:
    """Changes `model`: reads tensors from external data into memory, initializers of `most` bytes at most."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and (most is None or tensor.nbytes <= most):
                value.const_value = _in_memory(tensor)
    for node, name, tensor in list(tensor_attributes(model)):
        if isinstance(tensor, ir.ExternalTensor):
            node.attributes[name] = ir.AttrTensor(name, _in_memory(tensor))


def _in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(read_array(tensor, tensor.name or "").copy(), dtype=tensor.dtype, name=tensor.name)


def tensor_attributes(model: ir.Model) -> Iterator[tuple[ir.Node, str, ir.TensorProtocol]]:
    """The tensors that are attributes of nodes, with node and name of the attribute."""
    nodes = [
        *model.graph.all_nodes(),
        *(node for function in model.functions.values() for node in function.all_nodes()),
    ]
    for node in nodes:
        for name, attribute in node.attributes.items():
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                yield node, name, attribute.as_tensor()


def _holds_map(type_proto: onnx.TypeProto) -> bool:
    kind = type_proto.WhichOneof("value")
    if kind in ("sequence_type", "optional_type"):
        return _holds_map(getattr(type_proto, kind).elem_type)
    return bool(kind == "map_type")

"""Between protobufs and `onnx_ir.Model`: what neither onnx_ir nor ONNX's checker does by itself.

* onnx_ir has no map types (the output of scikit-learn's ZipMap): `from_proto` puts them aside, `to_proto` back.
* ONNX's checker and shape inference need a protobuf in memory, which ends at 2 GiB: `structure` is a model without
  the values of its weights.
* onnx_ir reads initializers from external data, but not the tensors of Constant nodes: `embed_external` does.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import onnx
import onnx_ir as ir
from numpy.typing import NDArray
from onnx import checker, version_converter

from onnxpq.errors import ModelError

EMBEDDED_BYTES: Final = 1024
"""Initializers up to this many bytes stay in the model file, where shape inference sees them."""

FIRST_BROADCASTING_OPSET: Final = 7
"""The first opset whose operators broadcast as numpy does."""

_UNLIKELY_SIZE: Final = 1_000_003

_TYPE_KEY: Final = "onnxpq.type_proto"


def from_proto(proto: onnx.ModelProto, where: str) -> ir.Model:
    """The protobuf as an `onnx_ir.Model` that shares its tensors.

    Raises:
        ModelError: the graph is invalid, or has parts that onnx_ir would drop; `where` names the model in the message.
    """
    graphs = _graph_protos(proto)
    if proto.training_info or any(graph.sparse_initializer for graph in graphs):
        raise ModelError(
            f"{where} has sparse initializers or training information, which onnxpq would lose. Export the model for "
            "inference, with dense weights."
        )
    infos = [info for graph in graphs for info in (*graph.input, *graph.output, *graph.value_info)]
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
    for tensor in _tensor_protos(proto):
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


def raised(model: onnx.ModelProto, version: int, target: int) -> onnx.ModelProto:
    """The model at a newer operator set, by ONNX's converter, which raises errors of many classes.

    Below opset 7, where operators broadcast by attributes, it converts for known sizes only: open dimensions have sizes
    of their own meanwhile. The converter compares sizes and writes none of them into the graph.

    Args:
        model: not changed.
        version: its version of ai.onnx.
        target: the wanted version.
    """
    if version >= FIRST_BROADCASTING_OPSET:
        return version_converter.convert_version(model, target)
    known = onnx.ModelProto()
    known.CopyFrom(model)
    names: dict[str, int] = {}
    for info in (*known.graph.input, *known.graph.value_info, *known.graph.output):
        for dim in info.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = names.setdefault(dim.dim_param or f" {len(names)}", _UNLIKELY_SIZE + len(names))
    newer = version_converter.convert_version(known, target)
    types = {info.name: info.type for info in (*model.graph.input, *model.graph.output)}
    for info in (*newer.graph.input, *newer.graph.output):
        if info.name in types:
            info.type.CopyFrom(types[info.name])
    del newer.graph.value_info[:]
    return newer


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
        for graph_proto in _graph_protos(proto):
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


def check(model: ir.Model, *, full: bool = False) -> None:
    """Runs ONNX's checker on a model in memory, whatever its size.

    Args:
        model: the model.
        full: check types and shapes as well (ONNX's strict shape inference).

    Raises:
        ModelError: the checker's text.
    """
    run_checker(structure(model), "the model", full=full)


def run_checker(model: onnx.ModelProto | str, where: str, *, full: bool = False) -> None:
    """Runs ONNX's checker on a protobuf or on a file; `full` includes strict shape inference.

    Raises:
        ModelError: the checker's text; `where` names the model.
    """
    try:
        checker.check_model(model, full_check=full)
    # Besides its own classes the checker lets those of onnx's C++ code through: RuntimeError, ValueError, ...
    except Exception as error:
        raise ModelError(
            f"{where} is not a valid ONNX model. The checker of onnx {onnx.__version__} says: {error}"
        ) from error


def read_array(tensor: ir.TensorProtocol, name: str) -> NDArray[Any]:
    """The values of a tensor.

    Raises:
        ModelError: sizes that do not fit each other, or a file that cannot be read; `name` names the tensor.
    """
    try:
        return tensor.numpy()
    # Damaged sizes reach us as numpy's errors, files out of reach as onnx_ir's ValueError or the system's OSError.
    except (ValueError, TypeError, OSError) as error:
        raise ModelError(f"The tensor '{name}' cannot be read: {error}. Export or copy the model again.") from error


def external_tensors_of(proto: onnx.ModelProto, folder: str) -> list[ir.ExternalTensor]:
    """The tensors of a protobuf that lie in external data files below `folder`.

    Raises:
        ModelError: a tensor refers to its data in a way that cannot be, for instance by a negative offset.
    """
    outside = [tensor for tensor in _tensor_protos(proto) if tensor.data_location == onnx.TensorProto.EXTERNAL]
    tensors = []
    for tensor in outside:
        try:
            tensors.append(ir.serde.deserialize_tensor(tensor, folder))
        # onnx_ir raises one class of its own around whatever it met.
        except Exception as error:
            raise ModelError(
                f"The external data of tensor '{tensor.name}' cannot be found: {error.__cause__ or error}. Copy the "
                "model again."
            ) from error
    return [tensor for tensor in tensors if isinstance(tensor, ir.ExternalTensor)]


def external_tensors(model: ir.Model) -> Iterator[ir.ExternalTensor]:
    """All tensors of the model that lie in external data files."""
    return (tensor for tensor in all_tensors(model) if isinstance(tensor, ir.ExternalTensor))


def all_tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """All constants of the model: initializers, and attributes of nodes, as weights are that some exporters write."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for _, _, tensor in _tensor_attributes(model):
        yield tensor


def embed_external(model: ir.Model, *, initializers: bool = True) -> None:
    """Changes `model`: reads tensors from external data into memory."""
    for graph in model.graphs() if initializers else ():
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _in_memory(value.const_value)
    for node, name, tensor in list(_tensor_attributes(model)):
        if isinstance(tensor, ir.ExternalTensor):
            node.attributes[name] = ir.AttrTensor(name, _in_memory(tensor))


def _in_memory(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(read_array(tensor, tensor.name or "").copy(), dtype=tensor.dtype, name=tensor.name)


def _tensor_attributes(model: ir.Model) -> Iterator[tuple[ir.Node, str, ir.TensorProtocol]]:
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


def _graph_protos(proto: onnx.ModelProto) -> list[onnx.GraphProto]:
    """The main graph and all subgraphs, those in functions too."""
    in_functions = (graph for function in proto.functions for graph in _subgraphs(function.node))
    return [proto.graph, *_subgraphs(proto.graph.node), *in_functions]


def _subgraphs(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    for node in nodes:
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs) if attribute.HasField("g") else attribute.graphs:
                yield graph
                yield from _subgraphs(graph.node)


def _tensor_protos(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    graphs = _graph_protos(proto)
    for graph in graphs:
        yield from graph.initializer
    for container in (*graphs, *proto.functions):
        for node in container.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t

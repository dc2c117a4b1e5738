"""ONNX's checker, on models of any size and with the operators that onnxruntime alone has.

The checker needs a protobuf in memory, which ends at 2 GiB. What it sees is therefore the model without the values of
its large weights.
"""

from collections.abc import Collection

import onnx
import onnx_ir as ir
from onnx import checker

from onnxpq.errors import ModelError
from onnxpq.graph import private
from onnxpq.graph.protobuf import structure
from onnxpq.graph.protos import tensors_of


def check(model: ir.Model, *, full: bool = False) -> None:
    """Runs ONNX's checker on a model in memory, whatever its size.

    Args:
        model: the model.
        full: check types and shapes as well (ONNX's strict shape inference).

    Raises:
        ModelError: the checker's text.
    """
    text = objection(structure(model), full=full)
    if text is not None:
        raise refused("the model", text)


def refused(where: str, text: str) -> ModelError:
    """The error for a model that ONNX's checker refuses, `where` naming it."""
    return ModelError(f"{where} is not a valid ONNX model. The checker of onnx {onnx.__version__} says: {text}")


def objection(proto: onnx.ModelProto, *, elsewhere: Collection[str] = (), full: bool = False) -> str | None:
    """What ONNX's checker says against a model; None where it says nothing.

    Operators that onnxruntime alone has are no reason, nor are inputs and outputs of unknown shape.

    Args:
        proto: the model; not changed.
        elsewhere: initializers whose values are not in the protobuf.
        full: check types and shapes as well, where all are known.
    """
    seen = _as_seen(proto, elsewhere, full)
    try:
        checker.check_model(seen, full_check=full)
    # Besides its own classes the checker lets those of onnx's C++ code through: RuntimeError, ValueError, ...
    except Exception as error:
        return str(error).replace("\n", " ").strip()
    return None


def hollow(proto: onnx.ModelProto, elsewhere: Collection[str] = ()) -> onnx.ModelProto:
    """A copy without the values that are not in the protobuf: equivalent for checking and shape inference.

    Args:
        proto: the model; not changed.
        elsewhere: initializers whose values are not there either. Like those in external data they become inputs of
            the same type and shape.
    """
    small = onnx.ModelProto()
    small.CopyFrom(proto)
    graph = small.graph
    gone = [tensor for tensor in graph.initializer if tensor.name in elsewhere or _is_external(tensor)]
    inputs = {info.name for info in graph.input}
    for tensor in gone:
        if tensor.name not in inputs:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    names = {tensor.name for tensor in gone}
    kept = [tensor for tensor in graph.initializer if tensor.name not in names]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for tensor in filter(_is_external, tensors_of(small)):
        _empty(tensor)
    return small


def _is_external(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _empty(tensor: onnx.TensorProto) -> None:
    """One whose values lie in a file has none for the checker."""
    tensor.ClearField("data_location")
    del tensor.external_data[:]
    del tensor.dims[:]
    tensor.dims.append(0)


def _as_seen(proto: onnx.ModelProto, elsewhere: Collection[str], full: bool) -> onnx.ModelProto:
    """What the checker gets: the model itself, or a copy where it has parts that the checker cannot know."""
    is_hollow = bool(elsewhere) or any(map(_is_external, tensors_of(proto)))
    is_private = next(private.private_nodes(proto), None) is not None
    unshaped = not full and any(_lacks_shape(info) for info in (*proto.graph.input, *proto.graph.output))
    if not (is_hollow or is_private or unshaped):
        return proto
    seen = hollow(proto, elsewhere)
    private.set_aside(seen)
    for info in (*seen.graph.input, *seen.graph.output) if unshaped else ():
        if _lacks_shape(info):
            info.type.tensor_type.shape.SetInParent()
    return seen


def _lacks_shape(info: onnx.ValueInfoProto) -> bool:
    tensor = info.type.tensor_type
    return info.type.HasField("tensor_type") and bool(tensor.elem_type) and not tensor.HasField("shape")

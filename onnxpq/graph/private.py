"""Operators that onnxruntime has in the domain ai.onnx and ONNX has not, at least not in the operator set of the model.

onnxruntime's transformer optimizer and onnxruntime-genai write some of them, converters of 2018 the others. ONNX's
tools refuse them by name. They take any operator of a domain that they do not know, so that is where these are set
aside while such a tool looks.
"""

from collections.abc import Iterator
from typing import Final

import onnx
import onnx_ir as ir

from onnxpq.graph.protos import is_default, nodes_of, version_of

PRIVATE: Final = frozenset(
    {
        "Affine",
        "Crop",
        "DynamicSlice",
        "GRUUnit",
        "GivenTensorFill",
        "ImageScaler",
        "LayerNormalization",
        "MeanVarianceNormalization",
        "ParametricSoftplus",
        "Scale",
        "ScaledTanh",
        "SimplifiedLayerNormalization",
        "ThresholdedRelu",
    }
)
"""What `get_all_operator_schema` of onnxruntime 1.32 lists under ai.onnx, its own for TensorRT and copies apart."""

GONE_AT_10: Final = PRIVATE - {"LayerNormalization", "SimplifiedLayerNormalization"}
"""Those that onnxruntime takes below opset 10 only, where some mean something else."""

_ASIDE: Final = "onnxpq.set_aside"


def is_private(domain: str, op_type: str, version: int) -> bool:
    """Whether onnxruntime alone has this operator, in an operator set of ai.onnx."""
    return is_default(domain) and op_type in PRIVATE and not onnx.defs.has(op_type, version, "")


def private_nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes of such operators, those in functions too."""
    for container in (proto, *proto.functions):
        version = version_of(container, "")
        nodes = nodes_of(proto.graph.node if container is proto else container.node)
        yield from (node for node in nodes if is_private(node.domain, node.op_type, version or 0))


def in_functions(proto: onnx.ModelProto) -> set[ir.OperatorIdentifier]:
    """The local functions with such operators in them: onnxruntime 1.32 dies of these."""
    return {
        (function.domain, function.name, function.overload)
        for function in proto.functions
        if any(is_private(node.domain, node.op_type, version_of(function, "") or 0) for node in nodes_of(function.node))
    }


def set_aside(proto: onnx.ModelProto) -> bool:
    """Changes a model: its private operators go to a domain that no tool knows. Whether there are any."""
    nodes = list(private_nodes(proto))
    for node in nodes:
        node.domain = _ASIDE
    for container in (proto, *proto.functions) if nodes else ():
        container.opset_import.add(domain=_ASIDE, version=1)
    return bool(nodes)


def put_back(proto: onnx.ModelProto) -> None:
    """Changes a model: undoes `set_aside`."""
    for nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        for node in nodes_of(nodes):
            if node.domain == _ASIDE:
                node.domain = ""
    for container in (proto, *proto.functions):
        kept = [entry for entry in container.opset_import if entry.domain != _ASIDE]
        del container.opset_import[:]
        container.opset_import.extend(kept)

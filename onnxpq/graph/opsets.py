"""The operator sets of a model, and models of old ones brought to newer ones."""

from typing import Final

import onnx
import onnx_ir as ir
from onnx import version_converter

from onnxpq.errors import ModelError
from onnxpq.graph import private
from onnxpq.graph.protobuf import from_proto
from onnxpq.graph.protos import all_nodes, is_default

MIN_OPSET: Final = 9
"""The function body of `onnxpq::PQMatMul` needs ConstantOfShape, NonZero and Where of opset 9."""

RAISED_OPSET: Final = 13
"""Where models below `MIN_OPSET` are raised to, unless onnxruntime has lost some of their operators by then."""

FIRST_BROADCASTING_OPSET: Final = 7
"""The first opset whose operators broadcast as numpy does."""

_UNLIKELY_SIZE: Final = 1_000_003


def opset(model: ir.Model, domain: str = "") -> int:
    """Version of the operator set `domain` that the model imports ("ai.onnx" is another name of "").

    Raises:
        ModelError: the model does not import the domain.
    """
    version = imported(model, domain)
    if version is None:
        known = ", ".join(f"'{name}' {number}" for name, number in sorted(model.opset_imports.items()))
        raise ModelError(f"The model does not import the operator set '{domain or 'ai.onnx'}'. It imports: {known}.")
    return version


def imported(model: ir.Model, domain: str = "") -> int | None:
    """The same; None where the model does not import it."""
    names = ("", "ai.onnx") if is_default(domain) else (domain,)
    versions = [model.opset_imports[name] for name in names if name in model.opset_imports]
    return max(versions, default=None)


def raised(proto: onnx.ModelProto, version: int, where: str) -> ir.Model:
    """A model of an opset below `MIN_OPSET` at a newer one.

    Args:
        proto: the model, all tensors inside; changed.
        version: its version of ai.onnx.
        where: names it in messages.

    Raises:
        ModelError: ONNX's converter has no way for an operator; the message names it where it is unknown.
    """
    unknown = [
        node for node in all_nodes(proto) if is_default(node.domain) and not onnx.defs.has(node.op_type, version, "")
    ]
    foreign = [node for node in unknown if node.op_type not in private.PRIVATE]
    if foreign:
        raise ModelError(
            f"{where} has opset {version}, in which ONNX has no operator '{foreign[0].op_type}' (node "
            f"'{foreign[0].name or foreign[0].output[0]}'), so that it cannot be brought to opset {MIN_OPSET}, which "
            "onnxpq needs. Export it again with a newer opset, or replace that operator."
        )
    target = MIN_OPSET if any(node.op_type in private.GONE_AT_10 for node in unknown) else RAISED_OPSET
    private.set_aside(proto)
    try:
        newer = _converted(proto, version, target)
    # onnx's converter raises ConvertError, RuntimeError and others, by operator.
    except Exception as error:
        raise ModelError(
            f"{where} has opset {version}; onnxpq needs {MIN_OPSET} or newer, and onnx {onnx.__version__} cannot "
            f"convert the model: {error}. Export it again with a newer opset."
        ) from error
    private.put_back(newer)
    return from_proto(newer, where)


def _converted(model: onnx.ModelProto, version: int, target: int) -> onnx.ModelProto:
    """The model at a newer operator set, by ONNX's converter, which raises errors of many classes.

    Below opset 7, where operators broadcast by attributes, it converts for known sizes only: open dimensions have sizes
    of their own meanwhile. The converter compares sizes and writes none of them into the graph.
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

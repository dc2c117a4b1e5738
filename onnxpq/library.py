"""Single steps, for tools that build on onnxpq: rewrite a model by given codes, or take codes out again.

Nothing changes its argument. A model is a path, bytes, an `onnx.ModelProto` or an `onnx_ir.Model`; who passes a
protobuf gets a protobuf, everybody else an `onnx_ir.Model`. None of this needs torch.
"""

from collections.abc import Mapping
from typing import Any, overload

import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq import exporting, rewriting
from onnxpq.errors import ConfigError
from onnxpq.graph import Layer, files, prepare
from onnxpq.pq import PQTensor
from onnxpq.support.kinds import KINDS


@overload
def rewrite(model: onnx.ModelProto, tensors: Mapping[str, PQTensor]) -> onnx.ModelProto: ...
@overload
def rewrite(model: files.Source, tensors: Mapping[str, PQTensor]) -> ir.Model: ...
def rewrite(model: files.Source, tensors: Mapping[str, PQTensor]) -> onnx.ModelProto | ir.Model:
    """A copy of a model in which codes take the place of weights.

    Args:
        model: any; its weights may be of any kind (`onnxpq inspect` lists them).
        tensors: the quantized weights [out, in] by the name of the weight, or of the node that takes it. A kernel
            [out, C, ...] is a matrix of one row for each output; other stacks of matrices lie below one another.

    Returns:
        The copy, which ONNX's checker passes.

    Raises:
        ConfigError: a name is of no weight that can be compressed, or a tensor has other sizes.
        ModelError: the model cannot be loaded, or a tensor contradicts itself.
    """
    loaded = files.load(model)
    prepared = prepare(loaded)
    layers, _ = rewriting.find(prepared, min_weights=0, kinds=KINDS)
    chosen: dict[str, PQTensor] = {}
    for name, tensor in tensors.items():
        weights = _weights(layers, name)
        tensor.check()
        chosen.update(dict.fromkeys(weights, tensor))
    own = [layer for layer in layers if layer.weight in chosen]
    return _like(model, rewriting.rewrite(prepared, own, chosen))


@overload
def decompress(model: onnx.ModelProto) -> onnx.ModelProto: ...
@overload
def decompress(model: files.Source) -> ir.Model: ...
def decompress(model: files.Source) -> onnx.ModelProto | ir.Model:
    """A copy of a compressed model with dense weights: those that its function bodies decode, bit for bit.

    Raises:
        ModelError: the model has no operator of onnxpq, or codes that are computed or contradict each other.
    """
    return _like(model, rewriting.decompress(files.load(model)))


@overload
def inline(model: onnx.ModelProto) -> onnx.ModelProto: ...
@overload
def inline(model: files.Source) -> ir.Model: ...
def inline(model: files.Source) -> onnx.ModelProto | ir.Model:
    """A copy of a compressed model in standard operators alone, without functions; codes stay codes.

    Raises:
        ModelError: the functions cannot be inlined.
    """
    return _like(model, exporting.inlined(files.load(model)))


@overload
def update_weights(model: onnx.ModelProto, values: Mapping[str, NDArray[Any]]) -> onnx.ModelProto: ...
@overload
def update_weights(model: files.Source, values: Mapping[str, NDArray[Any]]) -> ir.Model: ...
def update_weights(model: files.Source, values: Mapping[str, NDArray[Any]]) -> onnx.ModelProto | ir.Model:
    """A copy of a model in which constants have other values of the same shape.

    Args:
        model: any.
        values: by the name of an initializer, or of the output of a Constant node.

    Raises:
        ModelError: there is no such constant, its shape differs, or a number is not finite.
    """
    return _like(model, rewriting.update_initializers(files.load(model), values))


def _weights(layers: list[Layer], name: str) -> list[str]:
    """The weights that a name stands for: its own, else those of the node."""
    found = {layer.weight for layer in layers if layer.weight == name}
    found = found or {layer.weight for layer in layers if layer.node == name}
    if len(found) == 1:
        return list(found)
    known = ", ".join(f"'{layer.weight}' (node '{layer.node}')" for layer in layers) or "none"
    problem = (
        "takes several weights: name one" if found else "is no weight that can be compressed, and no node with one"
    )
    raise ConfigError(f"'{name}' {problem}. Weights are: {known}.")


def _like(source: files.Source, result: ir.Model) -> onnx.ModelProto | ir.Model:
    return ir.to_proto(result) if isinstance(source, onnx.ModelProto) else result

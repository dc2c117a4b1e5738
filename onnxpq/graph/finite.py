"""Whether the constants of a model are usable numbers."""

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq.errors import ModelError
from onnxpq.graph.protobuf import read_array

_FLOATS: Final = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_WEIGHT_OPERATORS: Final = frozenset({"Gemm", "MatMul", "Conv", "ConvTranspose", "LSTM", "GRU", "RNN"})


def check_finite(model: ir.Model) -> None:
    """Checks that all initializers can be read and hold usable numbers.

    NaN is refused everywhere. Infinity is refused in the weights of Gemm, MatMul, convolutions and recurrent layers
    only: attention masks hold -inf on purpose.

    Raises:
        ModelError: an initializer cannot be read, or holds NaN or infinity; the message names it.
    """
    for graph in model.graphs():
        for name, value in graph.initializers.items():
            tensor = value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING:
                continue
            array = read_array(tensor, name or "")
            if tensor.dtype not in _FLOATS or bool(np.isfinite(array).all()):
                continue
            is_weight = any(node.op_type in _WEIGHT_OPERATORS and index > 0 for node, index in value.uses())
            if is_weight or bool(np.isnan(array).any()):
                raise _not_finite(f"initializer '{name}'", array)


def check_weights(model: ir.Model, nodes: Mapping[str, str]) -> None:
    """Checks that the weights of layers are usable numbers, and that float32 holds them.

    `check_finite` does not look at constants that are nodes: those of a mask may be NaN, and which of them are weights
    is known when the layers are found.

    Args:
        model: normalised.
        nodes: by the name of a weight, an initializer, the node of a layer that it belongs to.

    Raises:
        ModelError: a weight holds NaN or infinity, or is larger or smaller than float32 can be; the message names it
            and its node.
    """
    for name, node in nodes.items():
        tensor = model.graph.initializers[name].const_value
        if tensor is None:
            continue
        array = read_array(tensor, name)
        if not bool(np.isfinite(array).all()):
            raise _not_finite(f"weight '{name}' of node '{node}'", array)
        if tensor.dtype == ir.DataType.DOUBLE:
            _check_fits(array, name, node)


def _check_fits(array: NDArray[np.float64], name: str, node: str) -> None:
    """Codebooks and scales are float32 at most."""
    largest, limits = float(np.abs(array).max(initial=0.0)), np.finfo(np.float32)
    if largest > float(limits.max) or 0 < largest < float(limits.tiny):
        raise ModelError(
            f"The weight '{name}' of node '{node}' has double-precision values up to {largest:.1e}; codebooks are "
            f"float32, which reaches from {limits.tiny:.1e} to {limits.max:.1e}. Leave the layer out with --exclude "
            f"'{node}', or scale the weight."
        )


def _not_finite(what: str, array: NDArray[Any]) -> ModelError:
    nans, infinite = int(np.isnan(array).sum()), int(np.isinf(array).sum())
    return ModelError(
        f"The {what} has {nans} NaN and {infinite} infinite values of {array.size}; expected finite numbers. "
        "Export the model again from a checkpoint whose training did not diverge."
    )

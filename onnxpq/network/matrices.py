"""A layer's weight as a matrix in torch, and a matrix in the shape that the layer's constant has."""

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxpq.errors import ModelError
from onnxpq.graph import Layer
from onnxpq.pq.matrix import from_matrix, to_matrix


def weight(model: ir.Model, layer: Layer) -> Tensor:
    """A layer's weight as the matrix [out, in] in float32.

    Args:
        model: normalised.
        layer: of it.

    Raises:
        ModelError: the weight has no values.
    """
    return matrix_of(np.asarray(_tensor(model, layer).numpy()), layer)


def matrix_of(array: NDArray[np.floating], layer: Layer) -> Tensor:
    """A layer's constant as the matrix [out, in] in float32."""
    values = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    return to_matrix(values, layer.in_features, is_in_out=layer.weight_is_in_out).contiguous()


def constant_of(model: ir.Model, layer: Layer, matrix: NDArray[np.floating]) -> NDArray[np.float32]:
    """A layer's constant with other values.

    Args:
        model: normalised.
        layer: of it.
        matrix: [out, in], the values.

    Raises:
        ModelError: the weight has no values.
    """
    shape = _tensor(model, layer).shape.numpy()
    return from_matrix(torch.from_numpy(matrix).float(), shape, is_in_out=layer.weight_is_in_out).numpy()


def _tensor(model: ir.Model, layer: Layer) -> ir.TensorProtocol:
    tensor = model.graph.initializers[layer.weight].const_value
    if tensor is None:
        raise ModelError(f"Initializer '{layer.weight}' of node '{layer.node}' has no values.")
    return tensor

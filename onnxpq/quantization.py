"""From a layer's weight to its quantized form."""

import numpy as np
import torch
from torch import Tensor

from onnxpq.layers import Layer
from onnxpq.pq import codec
from onnxpq.pq.layout import Layout
from onnxpq.pq.quantized import Quantized


def quantize(matrix: Tensor, layout: Layout, *, seed: int) -> Quantized:
    """Product-quantize a weight by weighted k-means (`onnxpq.pq.codec.encode`).

    Args:
        matrix: [out, in] float32.
        layout: how to cut it.
        seed: of the k-means start.
    """
    generator = torch.Generator().manual_seed(seed)
    codebooks, codes, scales = codec.encode(matrix.detach(), layout, generator=generator)
    return Quantized(layout, codebooks, codes, scales)


def matrix_of(array: "np.ndarray[tuple[int, ...], np.dtype[np.floating]]", layer: Layer) -> Tensor:
    """A layer's initializer as the matrix [out, in]."""
    weight = torch.from_numpy(np.array(array, dtype=np.float32))
    return weight.T.contiguous() if layer.weight_is_in_out else weight

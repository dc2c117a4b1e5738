"""From a layer's weight to its quantized form."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxpq.config import FLOAT, INT8
from onnxpq.graph import Layer
from onnxpq.pq import InputStatistics, Layout, PQTensor, calibrated, codec, decode
from onnxpq.pq.quantized import MAX_INT8, Quantized
from onnxpq.report import LayerReport
from onnxpq.support import device as devices


def quantize(
    matrix: Tensor,
    layout: Layout,
    *,
    seed: int,
    statistics: InputStatistics | None = None,
    importance: NDArray[np.float32] | None = None,
    magnitude: int = MAX_INT8,
) -> Quantized:
    """Product-quantize a weight; on a GPU where torch has one, with the same result up to rounding.

    Args:
        matrix: [out, in] float32.
        layout: how to cut it.
        seed: of the k-means start.
        statistics: of the layer's inputs, or of a table's gradients; with them the error of the outputs is made small
            (`onnxpq.pq.calibrated`), without them that of the weight, by weighted k-means (`onnxpq.pq.codec.encode`).
        importance: what the squared error of each row counts, [out], positive; by default all the same.
        magnitude: the largest of int8 codewords.
    """
    generator = torch.Generator().manual_seed(seed)
    device = devices.best()
    weight = matrix.detach().to(device)
    factors = None if importance is None else codec.row_factors(importance)
    if factors is not None:
        weight = weight * factors.to(device)
    input_error = None if statistics is None else statistics.rounding_error(matrix.detach().cpu().numpy())
    if statistics is None:
        parts = codec.encode(weight, layout, generator=generator)
    else:
        # Not held here: where it is filled up, `encode` lets go of it.
        parts = calibrated.encode(
            weight, layout, torch.from_numpy(statistics.regularized()).to(device), generator=generator
        )
    codebooks, codes, scales = (part.cpu() for part in parts)
    if factors is not None:
        scales = scales / factors[:, 0]
    return Quantized(layout, codebooks, codes.to(torch.uint8), scales, magnitude, input_error)


def report(
    layer: Layer, layout: Layout, exact: NDArray[np.floating], tensor: PQTensor, *, earlier: Sequence[LayerReport] = ()
) -> LayerReport:
    """What became of a layer.

    Args:
        layer: the layer.
        layout: how it was cut.
        exact: its weight [out, in] before.
        tensor: its weight now.
        earlier: reports of layers that have been counted: those that share the weight share its bytes, and within one
            graph what it becomes.
    """
    sharing = [other for other in earlier if other.weight == layer.weight]
    is_stored = any(other.place == layer.place for other in sharing)
    decoded = decode(tensor.codebooks, tensor.codes, tensor.scales, tensor.in_features)
    body = INT8 if tensor.multiplies_int8 else FLOAT
    return LayerReport(
        node=layer.node,
        weight=layer.weight,
        shape=(layer.out_features, layer.in_features),
        sub_vector=layout.sub_vector,
        codewords=layout.codewords,
        groups=layout.groups,
        bytes_before=0 if sharing else layer.weight_bytes or exact.nbytes,
        bytes_after=0 if is_stored else tensor.nbytes + layer.input_bytes,
        place=layer.place,
        body="" if layer.is_table else body,
        weight_error=float(np.linalg.norm(decoded - exact)) / max(float(np.linalg.norm(exact)), 1e-30),
    )

"""Product quantization of a matrix: the mathematics, free of ONNX.

In: a matrix [out, in], a `Layout`, and moments of what it is multiplied by. Out: codebooks, codes and scales. The names
that this face imports need numpy alone, so that reading a compressed model does not need torch; the modules that it
lists (`codec`, ...) are batched torch.
"""

from onnxpq.pq.layout import Layout, codebook_bytes
from onnxpq.pq.packing import pack_codes, unpack_codes
from onnxpq.pq.reference import decode
from onnxpq.pq.statistics import ColumnStatistics, InputStatistics
from onnxpq.pq.tensor import PQTensor, packed_bytes

__all__ = [
    "ColumnStatistics",
    "InputStatistics",
    "Layout",
    "PQTensor",
    "calibrated",
    "codebook_bytes",
    "codec",
    "decode",
    "matrix",
    "pack_codes",
    "packed_bytes",
    "quantized",
    "unpack_codes",
]

"""`PQTensor`: a product-quantized matrix."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxpq.operators import UNIT_BYTES, block_outputs


@dataclass(frozen=True, eq=False)
class PQTensor:
    """A matrix W of shape [out, in], cut along `in` into M sub-vectors of length d, each one of K codewords.

    ``W[o, m*d : (m+1)*d] = scales[o] * sum_r codebooks[r, m // ceil(M/G), codes[o, r, m], :]``

    Attributes:
        codebooks: [R, G, K, d] int8, float16 or float32, one codeword per row.
        codes: [out, R, M] uint8, not packed.
        scales: [out] float32.
        in_features: `in`; the last ``M*d - in`` entries of a decoded row are padding and are dropped.
        fast: whether the operator is to use tables of 8 bits (`onnxpq.operators.schema.ATTR_FAST`).
        multiplies_int8: whether runtimes without the operator are to multiply in int8, for which the codebooks are int8
            of 7 bits, and R is 1 (`onnxpq.operators.schema.MAX_MAGNITUDE`).
    """

    codebooks: NDArray[np.floating]
    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    in_features: int
    fast: bool = False
    multiplies_int8: bool = False

    @property
    def out_features(self) -> int:
        """`out`, the number of rows."""
        return int(self.codes.shape[0])

    @property
    def sub_vectors(self) -> int:
        """M, the number of sub-vectors of a row."""
        return int(self.codes.shape[2])

    @property
    def codewords(self) -> int:
        """K, the number of codewords of a codebook."""
        return int(self.codebooks.shape[2])

    @property
    def nbytes(self) -> int:
        """Bytes that the operator's inputs take in a file: packed codes, codebooks, scales."""
        return self.codebooks.nbytes + self._packed_bytes() + self.scales.nbytes

    def _packed_bytes(self) -> int:
        out_features, stages, sub_vectors = self.codes.shape
        return packed_bytes(out_features, stages, sub_vectors, self.codewords)


def packed_bytes(out_features: int, stages: int, sub_vectors: int, codewords: int) -> int:
    """Bytes of the packed codes of an [out, R, M] code array for K codewords (layout: `onnxpq.operators.schema`)."""
    blocks = -(-out_features // block_outputs(codewords))
    return blocks * stages * sub_vectors * UNIT_BYTES

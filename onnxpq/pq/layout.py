"""How a matrix is cut into sub-vectors and codebooks."""

from dataclasses import dataclass

from onnxpq.operators import MAX_NIBBLE_CODEWORDS
from onnxpq.pq.tensor import packed_bytes

SCALE_BYTES = 4
"""Row scales are stored as float32."""


@dataclass(frozen=True)
class Layout:
    """How a matrix [out, in] is cut.

    Attributes:
        out_features: `out`.
        in_features: `in`.
        sub_vector: d.
        codewords: K.
        groups: G, number of codebooks; sub-vector m uses codebook ``m // ceil(M/G)``.
    """

    out_features: int
    in_features: int
    sub_vector: int
    codewords: int
    groups: int

    @property
    def sub_vectors(self) -> int:
        """M."""
        return -(-self.in_features // self.sub_vector)

    @property
    def per_group(self) -> int:
        """Number of sub-vector positions that share a codebook, ceil(M/G)."""
        return -(-self.sub_vectors // self.groups)

    @property
    def codebook_bytes(self) -> int:
        """Bytes of an element of a codeword: int8, but float16 where 8 bits a weight deserve finer codewords."""
        return codebook_bytes(self.sub_vector, self.codewords)

    @property
    def nbytes(self) -> int:
        """Bytes of codes, codebooks and scales in a file."""
        codebooks = self.groups * self.codewords * self.sub_vector * self.codebook_bytes
        codes = packed_bytes(self.out_features, 1, self.sub_vectors, self.codewords)
        return codes + codebooks + self.out_features * SCALE_BYTES


def codebook_bytes(sub_vector: int, codewords: int) -> int:
    """Bytes of an element of a codeword.

    int8 adds at most .5 % to a weight's error at 2 bits a weight and less, 1 to 6 % at 4 bits. With 8 bits a weight it
    would triple it (`python -m benchmarks codewords`).
    """
    return 2 if sub_vector == 1 and codewords > MAX_NIBBLE_CODEWORDS else 1

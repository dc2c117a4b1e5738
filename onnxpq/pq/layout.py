"""How a matrix is cut into sub-vectors and codebooks."""

from dataclasses import dataclass

from onnxpq.pq.tensor import packed_bytes

CODEBOOK_BYTES = 2
"""Codewords are stored as float16."""

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
    def nbytes(self) -> int:
        """Bytes of codes, codebooks and scales in a file."""
        codebooks = self.groups * self.codewords * self.sub_vector * CODEBOOK_BYTES
        codes = packed_bytes(self.out_features, 1, self.sub_vectors, self.codewords)
        return codes + codebooks + self.out_features * SCALE_BYTES

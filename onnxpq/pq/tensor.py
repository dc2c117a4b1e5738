"""`PQTensor`: a product-quantized matrix."""

from dataclasses import dataclass, fields
from os import PathLike
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from onnxpq.errors import ModelError
from onnxpq.operators import MAX_CODEWORDS, MAX_MAGNITUDE, UNIT_BYTES, block_outputs

_TYPES = ("int8", "float16", "float32")


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

    @classmethod
    def from_codes(
        cls, codebooks: ArrayLike, codes: ArrayLike, scales: ArrayLike | None = None, *, in_features: int | None = None
    ) -> Self:
        """A matrix of codes that somebody else found, as faiss or k-means do.

        Args:
            codebooks: [K, d], one for all; [G, K, d], one for each ``ceil(M/G)`` neighbouring sub-vectors, as faiss has
                one for each (G = M); or [R, G, K, d]. int8, float16 or float32; float64 becomes float32.
            codes: [out, M], or [out, R, M]; integers below K.
            scales: of the rows, [out]; ones by default.
            in_features: `in`; M*d by default.

        Raises:
            ModelError: shapes, types or values contradict each other, or a number is not finite.
        """
        books, numbers = np.asarray(codebooks), np.asarray(codes)
        books = books.astype(np.float32) if books.dtype == np.float64 else books
        books = books.reshape((1,) * (4 - books.ndim) + books.shape) if books.ndim < 4 else books
        numbers = numbers[:, None] if numbers.ndim == 2 else numbers
        is_small = not numbers.size or 0 <= numbers.min() <= numbers.max() < MAX_CODEWORDS
        if not np.issubdtype(numbers.dtype, np.integer) or not is_small:
            raise ModelError(f"Codes are {numbers.dtype}; expected integers from 0 to {MAX_CODEWORDS - 1}.")
        rows = np.ones(len(numbers), np.float32) if scales is None else np.asarray(scales, np.float32)
        columns = numbers.shape[-1] * books.shape[-1] if in_features is None else in_features
        found = cls(books, numbers.astype(np.uint8), rows, columns)
        found.check()
        return found

    def check(self) -> None:
        """Refuse what no operator and no function body could compute.

        Raises:
            ModelError: shapes, types or values contradict each other, or a number is not finite.
        """
        books, codes, scales = self.codebooks, self.codes, self.scales
        if books.ndim != 4 or codes.ndim != 3 or scales.ndim != 1 or 0 in (*books.shape, *codes.shape):
            raise ModelError(
                f"A PQTensor has codebooks {list(books.shape)}, codes {list(codes.shape)} and scales "
                f"{list(scales.shape)}; expected [R, G, K, d], [out, R, M] and [out], no size zero."
            )
        stages, groups, codewords, length = books.shape
        out_features, own_stages, sub_vectors = codes.shape
        least, most = (sub_vectors - 1) * length + 1, sub_vectors * length
        problems = {
            f"codebooks of {books.dtype}; expected one of {', '.join(_TYPES)}": books.dtype.name not in _TYPES,
            f"codes of {codes.dtype}; expected uint8": codes.dtype != np.uint8,
            f"{codewords} codewords; expected 2 to {MAX_CODEWORDS}": not 2 <= codewords <= MAX_CODEWORDS,
            f"{own_stages} stages of codes and {stages} of codebooks": own_stages != stages,
            f"{groups} groups of codebooks for {sub_vectors} sub-vectors": groups > sub_vectors,
            f"{len(scales)} scales for {out_features} rows": len(scales) != out_features,
            f"in_features {self.in_features}; expected {least} to {most}": not least <= self.in_features <= most,
            f"the code {codes.max()}; expected codes below {codewords}": codes.max() >= codewords,
            "codebooks with NaN or infinity": not np.isfinite(books.astype(np.float32)).all(),
            "scales with NaN or infinity": not np.isfinite(scales).all(),
            f"int8 products of codebooks that are not int8 of at most {MAX_MAGNITUDE}": self.multiplies_int8
            and (books.dtype != np.int8 or int(np.abs(books.astype(np.int16)).max()) > MAX_MAGNITUDE),
        }
        for problem, is_so in problems.items():
            if is_so:
                raise ModelError(f"A PQTensor has {problem}.")

    def decode(self) -> NDArray[np.float32]:
        """The matrix [out, in], with the bits that a function body in float32 decodes."""
        _, groups, _, _ = self.codebooks.shape
        group = np.arange(self.sub_vectors) // -(-self.sub_vectors // groups)
        units = self.codebooks[0, group, self.codes[:, 0]].astype(np.float32)
        for stage in range(1, len(self.codebooks)):
            units += self.codebooks[stage, group, self.codes[:, stage]].astype(np.float32)
        matrix = units.reshape(self.out_features, -1)[:, : self.in_features]
        return np.ascontiguousarray(matrix * self.scales.astype(np.float32)[:, None])

    def save(self, path: str | PathLike[str]) -> None:
        """Write an `.npz` file, which `load` reads."""
        values: dict[str, Any] = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        with open(path, "wb") as file:
            np.savez(file, **values)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            ModelError: the file is none of these, or what it holds contradicts itself.
        """
        names = [entry.name for entry in fields(cls)]
        with np.load(path, allow_pickle=False) as file:
            if set(names) != set(file.files):
                raise ModelError(f"'{path}' has the arrays {sorted(file.files)}; expected {sorted(names)}.")
            codebooks, codes, scales, in_features, fast, multiplies_int8 = (file[name] for name in names)
        found = cls(codebooks, codes, scales, int(in_features), bool(fast), bool(multiplies_int8))
        found.check()
        return found

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

"""The stored order of the codes: [out, R, M] codes <-> [B, R*M, 16] bytes (layout: `onnxpq.operators.schema`)."""

import numpy as np
from numpy.typing import NDArray

from onnxpq.errors import ModelError
from onnxpq.operators import MAX_CODEWORDS, UNIT_BYTES, block_outputs, codes_per_byte


def packed_shape(out_features: int, stages: int, sub_vectors: int, codewords: int) -> tuple[int, int, int]:
    """Shape [B, R*M, 16] of the packed codes of an [out, R, M] code array for K codewords."""
    return -(-out_features // block_outputs(codewords)), stages * sub_vectors, UNIT_BYTES


def pack_codes(codes: NDArray[np.uint8], codewords: int) -> NDArray[np.uint8]:
    """Put codes into the order in which the kernels read them.

    Args:
        codes: [out, R, M], each below `codewords`.
        codewords: K, 2 to 256.

    Returns:
        [B, R*M, 16]; the codes of outputs past `out` are zero.

    Raises:
        ModelError: `codes` is no three-dimensional uint8 array, is empty, or holds a code past the codebook.
    """
    _check_codewords(codewords)
    if codes.dtype != np.uint8 or codes.ndim != 3 or 0 in codes.shape:
        raise ModelError(
            f"Codes to pack are {codes.dtype} of shape {list(codes.shape)}; expected uint8 [out, R, M], no size zero."
        )
    _check_range(codes, codewords)
    out, stages, sub_vectors = codes.shape
    blocks, units, unit_bytes = packed_shape(out, stages, sub_vectors, codewords)
    places = codes_per_byte(codewords)
    padded = np.zeros((blocks * places * unit_bytes, units), np.uint8)
    padded[:out] = codes.reshape(out, units)
    digits = padded.reshape(blocks, places, unit_bytes, units)
    packed = digits[:, 0] if places == 1 else digits[:, 0] | (digits[:, 1] << 4)
    return np.ascontiguousarray(packed.transpose(0, 2, 1))


def unpack_codes(packed: NDArray[np.uint8], out_features: int, stages: int, codewords: int) -> NDArray[np.uint8]:
    """Exact inverse of `pack_codes`.

    Args:
        packed: [B, R*M, 16].
        out_features: `out`.
        stages: R.
        codewords: K, 2 to 256.

    Returns:
        [out, R, M].

    Raises:
        ModelError: the sizes contradict each other, or a code is past the codebook.
    """
    _check_codewords(codewords)
    units = packed.shape[1] if packed.ndim == 3 else 0
    sizes_agree = units > 0 and stages > 0 and out_features > 0 and units % stages == 0
    if not sizes_agree or packed.shape != packed_shape(out_features, stages, units // stages, codewords):
        raise ModelError(
            f"Packed codes have shape {list(packed.shape)}; expected [{-(-out_features // block_outputs(codewords))},"
            f" a positive multiple of {stages}, {UNIT_BYTES}] for {out_features} outputs, R={stages} and K={codewords}."
        )
    if packed.dtype != np.uint8:
        raise ModelError(f"Packed codes are {packed.dtype}; expected uint8.")
    digits = [packed] if codes_per_byte(codewords) == 1 else [packed & 15, packed >> 4]
    codes = np.stack(digits, axis=1).transpose(0, 1, 3, 2).reshape(-1, stages, units // stages)[:out_features]
    _check_range(codes, codewords)
    return np.ascontiguousarray(codes)


def _check_codewords(codewords: int) -> None:
    if not 2 <= codewords <= MAX_CODEWORDS:
        raise ModelError(f"A codebook has {codewords} codewords; expected 2 to {MAX_CODEWORDS}.")


def _check_range(codes: NDArray[np.uint8], codewords: int) -> None:
    """Codes are [out, R, M]."""
    if codes.max() >= codewords:
        where = tuple(int(i) for i in np.argwhere(codes >= codewords)[0])
        raise ModelError(
            f"Code {codes[where]} at [output, stage, sub-vector] {list(where)} points past a codebook of {codewords}"
            " codewords."
        )

"""What the operator means, in plain numpy: the oracle of the kernels and of the function body.

Letters: see `onnxpq.graph.layers`. Written to be read; speed does not matter here.
"""

import numpy as np
from numpy.typing import NDArray

TABLE_GROUP = 64
"""Sub-vectors that share one scale of the integer tables."""

TABLE_RANGE = 16340.0
"""Largest sum of a group's entries before rounding; the 64 roundings add at most 32, and 16383 is the limit."""

FAST_TABLE_RANGE = 127.0
"""Largest entry of a fast table."""

MIN_SPAN = 1e-30
"""A group whose tables span less than this counts as constant: the scale would overflow float32."""

Float = NDArray[np.floating]


def decode(codebooks: Float, codes: NDArray[np.uint8], scales: Float, in_features: int) -> NDArray[np.float64]:
    """The matrix that the codes stand for.

    Args:
        codebooks: [R, G, K, d].
        codes: [out, R, M], not packed.
        scales: [out].
        in_features: `in`, at most M*d; what lies beyond it is padding and is dropped.

    Returns:
        W [out, in] float64.
    """
    out, stages, sub_vectors = codes.shape
    d = codebooks.shape[3]
    weight = np.zeros((out, sub_vectors * d))
    for r in range(stages):
        for m in range(sub_vectors):
            codebook = codebooks[r, group_of(m, codebooks.shape[1], sub_vectors)].astype(np.float64)  # [K, d]
            weight[:, m * d : (m + 1) * d] += codebook[codes[:, r, m]]
    return weight[:, :in_features] * scales.astype(np.float64)[:, None]


def pq_matmul(x: Float, codebooks: Float, codes: NDArray[np.uint8], scales: Float, bias: Float) -> NDArray[np.float64]:
    """``Y[..., o] = bias[o] + scales[o] * sum_m < X[..., m*d : (m+1)*d], sum_r C[r, g(m), code[o, r, m], :] >``.

    Args:
        x: [..., in].
        codebooks: [R, G, K, d].
        codes: [out, R, M], not packed.
        scales: [out].
        bias: [out].

    Returns:
        [..., out] float64, by the sum of table entries in float64.
    """
    tables = _tables(x.reshape(-1, x.shape[-1]).astype(np.float64), codebooks.astype(np.float64), codes.shape[2])
    units = codes.reshape(codes.shape[0], -1)  # [out, R*M]
    sums = np.zeros((tables.shape[0], codes.shape[0]))
    for j in range(units.shape[1]):
        sums += tables[:, j, units[:, j]]
    return (bias.astype(np.float64) + scales.astype(np.float64) * sums).reshape(*x.shape[:-1], codes.shape[0])


@np.errstate(over="ignore", invalid="ignore")
def pq_matmul_tables(
    x: Float,
    codebooks: Float,
    codes: NDArray[np.uint8],
    scales: Float,
    bias: Float,
    *,
    fast: bool = False,
) -> NDArray[np.float32]:
    """The same with the kernels' integer tables (K <= 16), step by step in the kernels' float32 arithmetic.

    Sub-vectors are taken in groups of `TABLE_GROUP`. With ``c`` the mid-range and ``h`` the half-span of each table and
    ``scale = TABLE_RANGE / sum of h``, a table becomes ``rint((T - c) * scale)``: a sum over the group has 15 bits,
    whatever the codes. With `fast`, ``scale = FAST_TABLE_RANGE / max of h``, and each entry has 8 bits. A group that
    holds a NaN or an infinity makes its whole row NaN.

    Args:
        x: [..., in].
        codebooks: [R, G, K, d], K <= 16.
        codes: [out, R, M], not packed.
        scales: [out].
        bias: [out].
        fast: tables of 8 bits.

    Returns:
        [..., out] float32, equal bit for bit to what every level of the kernels gives.
    """
    tables = _tables(x.reshape(-1, x.shape[-1]).astype(np.float32), codebooks.astype(np.float32), codes.shape[2])
    rows, count, _ = tables.shape
    units = codes.reshape(codes.shape[0], -1)  # [out, R*M]
    centre_total = np.zeros((rows, 1), np.float32)
    products = []
    for first in range(0, count, TABLE_GROUP):
        group = tables[:, first : first + TABLE_GROUP]
        integers, step, centre = _integer_group(group, fast=fast)
        sums = np.zeros((rows, codes.shape[0]), np.int16)
        for j in range(group.shape[1]):
            sums += integers[:, j, units[:, first + j]]
        centre_total += centre
        products.append(sums.astype(np.float32) * step)
    y = np.broadcast_to(centre_total, (rows, codes.shape[0])).copy()
    for product in products:
        y += product
    y = y * scales.astype(np.float32) + bias.astype(np.float32)
    return y.reshape(*x.shape[:-1], codes.shape[0])


def group_of(sub_vector: int, groups: int, sub_vectors: int) -> int:
    """g(m): the codebook group of sub-vector m out of M, with G groups."""
    return sub_vector // -(-sub_vectors // groups)


def _tables(x: Float, codebooks: Float, sub_vectors: int) -> Float:
    """T[n, r*M + m, k] = < x_m, C[r, g(m), k] >, summed in order of the elements, in the type of the arguments."""
    stages, groups, codewords, d = codebooks.shape
    tables = np.zeros((x.shape[0], stages * sub_vectors, codewords), x.dtype)
    for r in range(stages):
        for m in range(sub_vectors):
            for i in range(min(d, x.shape[1] - m * d)):
                codeword_elements = codebooks[r, group_of(m, groups, sub_vectors), :, i]  # [K]
                tables[:, r * sub_vectors + m] += x[:, m * d + i, None] * codeword_elements
    return tables


def _integer_group(tables: Float, *, fast: bool) -> tuple[NDArray[np.int16], NDArray[np.float32], NDArray[np.float32]]:
    """Tables [N, S, K] float32 of one group -> integers [N, S, K], value of one unit [N, 1], sum of centres [N, 1]."""
    half = np.float32(0.5)
    low, high = half * tables.min(axis=2), half * tables.max(axis=2)  # [N, S]
    centres = low + high
    table_range = np.float32(FAST_TABLE_RANGE if fast else TABLE_RANGE)
    span, centre = np.zeros((2, tables.shape[0], 1), np.float32)
    for j in range(tables.shape[1]):
        half_span = (high - low)[:, j, None]
        span = np.maximum(span, half_span) if fast else span + half_span
        centre += centres[:, j, None]
    finite = np.logical_and.reduce(np.isfinite(tables), axis=(1, 2))[:, None] & np.isfinite(span)  # [N, 1]
    usable = finite & (span >= np.float32(MIN_SPAN))
    scale = np.where(usable, table_range / np.where(usable, span, np.float32(1)), np.float32(0))
    step = np.where(usable, span / table_range, np.where(finite, np.float32(0), np.float32(np.nan)))
    shifted = np.where(usable[:, :, None], tables - centres[:, :, None], np.float32(0))
    return np.rint(shifted * scale[:, :, None]).astype(np.int16), step, centre

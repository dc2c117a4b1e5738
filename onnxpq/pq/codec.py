"""Encode a matrix as codewords, decode it again; all in torch, so that gradients reach the codebooks."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxpq.pq import kmeans
from onnxpq.pq.layout import Layout

_ROWS = 256
"""Rows of a matrix that are worked on at a time."""

_MOST_SPAN = 1e36
"""Of rows in common units: float32 has 38 decades below 1."""

_POINT_ELEMENTS = 2**19
"""Numbers in the points that are clustered at a time."""


def split(matrix: Tensor, layout: Layout, groups: slice | None = None) -> Tensor:
    """Cut a matrix [out, in] into the points of each codebook.

    Args:
        matrix: [out, in].
        layout: how to cut it.
        groups: only those of these codebooks.

    Returns:
        Points [G, per_group * out, d]; the last group is filled up with zero points when G does not divide M
        (`point_weights` gives them weight 0).
    """
    first, last, _ = (groups or slice(None)).indices(layout.groups)
    width = layout.per_group * layout.sub_vector
    part = matrix[:, first * width : last * width]
    padded = torch.nn.functional.pad(part, (0, (last - first) * width - part.shape[1]))
    points = padded.reshape(layout.out_features, last - first, layout.per_group, layout.sub_vector)
    return points.permute(1, 2, 0, 3).reshape(last - first, -1, layout.sub_vector)


def point_weights(
    rows: Tensor, layout: Layout, groups: slice | None = None, *, positions: Tensor | None = None
) -> Tensor:
    """Weights [G, per_group * out] of the points of `split`: that of their row [out] times that of their position [M].

    Filled-up positions get 0, positions 1 where no weights are given.
    """
    given = torch.ones(layout.sub_vectors, dtype=rows.dtype, device=rows.device) if positions is None else positions
    filled = torch.nn.functional.pad(given, (0, layout.groups * layout.per_group - layout.sub_vectors))
    grid = filled.reshape(layout.groups, layout.per_group, 1)[groups or slice(None)] * rows
    return grid.reshape(len(grid), -1)


def to_codes(index: Tensor, layout: Layout) -> Tensor:
    """Codes [out, M] uint8 from the centroid indices [G, per_group * out] of `split`'s points."""
    grid = index.reshape(layout.groups * layout.per_group, layout.out_features)
    return grid[: layout.sub_vectors].T.to(torch.uint8, memory_format=torch.contiguous_format)


def to_index(codes: Tensor, layout: Layout) -> Tensor:
    """Centroid indices [G, per_group * out] from codes [out, M]; 0 for filled-up positions."""
    grid = torch.nn.functional.pad(codes.T, (0, 0, 0, layout.groups * layout.per_group - layout.sub_vectors))
    return grid.reshape(layout.groups, -1)


def row_scales(matrix: Tensor) -> Tensor:
    """Root mean square of each row of [out, in]; 1 for rows of zeros."""
    largest = torch.maximum(matrix.amax(1), -matrix.amin(1))
    unit = torch.where(largest > 0, largest, torch.ones_like(largest))
    # Squares of very large or small weights would leave float32.
    norms = [torch.linalg.vector_norm(rows / own.unsqueeze(1), dim=1) for rows, own in parts(matrix, unit)]
    return torch.where(largest > 0, torch.cat(norms) / matrix.shape[1] ** 0.5 * unit, unit)


def spans_float32(matrix: Tensor) -> bool:
    """Whether the rows of a matrix [out, in] differ by so much that float32 cannot hold them in common units."""
    largest = torch.maximum(matrix.amax(1), -matrix.amin(1))
    sizes = largest[largest > 0].double()
    return bool(len(sizes)) and bool(sizes.max() / sizes.min() > _MOST_SPAN)


def parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """A few rows of each at a time, so that what is made of them takes little memory."""
    return zip(*(torch.split(tensor, _ROWS) for tensor in tensors), strict=True)


def row_weights(scales: Tensor) -> Tensor:
    """What an error of each unit row [out] counts in the matrix: its squared scale, 1 for the largest."""
    return (scales / scales.max()).square()


def row_factors(importance: NDArray[np.float32]) -> Tensor:
    """What the rows of a matrix are multiplied by, [out, 1], for their squared errors to count so much, [out]."""
    return torch.from_numpy(importance).sqrt().unsqueeze(1)


def encode(
    matrix: Tensor,
    layout: Layout,
    *,
    iterations: int = kmeans.DEFAULT_ITERATIONS,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    """Product-quantize a matrix: rows scaled to unit root mean square, then k-means in each codebook's points.

    The k-means points are weighted by the squared scale of their row, so that it minimises the squared error of
    the matrix and not that of the scaled rows. Scales are then refitted by least squares.

    Args:
        matrix: [out, in] float32.
        layout: how to cut it.
        iterations: limit of Lloyd steps.
        generator: source of randomness.

    Returns:
        Codebooks [G, K, d] float32, codes [out, M] uint8, scales [out] float32.
    """
    scales = row_scales(matrix)
    codebooks, codes = cluster(matrix, scales, layout, iterations=iterations, generator=generator)
    return codebooks, codes, _fitted_scales(matrix, codebooks, codes, layout, scales)


def cluster(
    matrix: Tensor,
    scales: Tensor,
    layout: Layout,
    *,
    positions: Tensor | None = None,
    iterations: int = kmeans.DEFAULT_ITERATIONS,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """k-means of a matrix's sub-vectors in units of its row scales, each weighted by its row's squared scale.

    Args:
        matrix: [out, in].
        scales: of its rows, [out].
        layout: how to cut it.
        positions: what an error counts at each position, [M]; default: the same everywhere.
        iterations: limit of Lloyd steps.
        generator: source of randomness.

    Returns:
        Codebooks [G, K, d], codes [out, M] uint8.
    """
    centroids, index = [], []
    rows = row_weights(scales)
    # Some codebooks at a time: all points together would take as much memory as the matrix itself.
    step = max(1, _POINT_ELEMENTS // (layout.per_group * matrix.shape[0] * layout.sub_vector))
    for start in range(0, layout.groups, step):
        some = slice(start, start + step)
        weights = point_weights(rows, layout, some, positions=positions)
        points = split(matrix, layout, some).reshape(-1, layout.out_features, layout.sub_vector)
        points = (points / scales.unsqueeze(1)).reshape(*weights.shape, layout.sub_vector)
        found = kmeans.kmeans(points, layout.codewords, weights=weights, iterations=iterations, generator=generator)
        centroids.append(found[0])
        index.append(found[1])
    return torch.cat(centroids), to_codes(torch.cat(index), layout)


def _fitted_scales(matrix: Tensor, centroids: Tensor, codes: Tensor, layout: Layout, fallback: Tensor) -> Tensor:
    """Least-squares scales [out] of a matrix [out, in]; `fallback` where they would not be positive.

    Some rows at a time: the decoded matrix would take as much memory as the matrix itself.
    """
    fitted = []
    for rows, own in parts(matrix, codes):
        unit = decode(centroids, own, torch.ones_like(rows[:, 0]), layout)
        power = unit.square().sum(1)
        fitted.append((rows * unit).sum(1) / power.clamp_min(torch.finfo(unit.dtype).tiny))
    scales = torch.cat(fitted)
    return torch.where(scales > 0, scales, fallback)


def assign(units: Tensor, centroids: Tensor, layout: Layout) -> Tensor:
    """Codes [out, M] uint8 of the nearest codewords of a matrix [out, in] with rows of unit size."""
    return to_codes(kmeans.nearest(split(units, layout), centroids), layout)


def coded(matrix: Tensor, layout: Layout, codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [out, M] uint8 and scales [out] of rows [out, in] for given codebooks [G, K, d]; see `encode`."""
    scales = row_scales(matrix)
    codes = assign(matrix / scales.unsqueeze(1), codebooks, layout)
    return codes, _fitted_scales(matrix, codebooks, codes, layout, scales)


def flat_index(codes: Tensor, layout: Layout) -> Tensor:
    """Index [out, M] of each code's codeword in the codebooks laid end to end as [G * K, d]."""
    group = torch.arange(layout.sub_vectors, device=codes.device) // layout.per_group
    return codes + group * layout.codewords


def decode(centroids: Tensor, codes: Tensor, scales: Tensor, layout: Layout) -> Tensor:
    """The matrix [out, in] that codebooks [G, K, d], codes [out, M] and scales [out] stand for."""
    # The gradient of an embedding, or of an index, takes 2 to 5 times as long.
    table, index = centroids.reshape(-1, layout.sub_vector), flat_index(codes, layout)
    rows = table.index_select(0, index.reshape(-1))
    matrix = rows.reshape(len(codes), -1)[:, : layout.in_features]
    return matrix * scales.unsqueeze(1)

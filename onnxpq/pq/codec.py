"""Encode a matrix as codewords, decode it again; all in torch, so that gradients reach the codebooks."""

import torch
from torch import Tensor

from onnxpq.pq import kmeans
from onnxpq.pq.layout import Layout


def split(matrix: Tensor, layout: Layout) -> Tensor:
    """Cut a matrix [out, in] into the points of each codebook.

    Returns:
        Points [G, per_group * out, d]; the last group is filled up with zero points when G does not divide M
        (`point_weights` gives them weight 0).
    """
    columns = layout.groups * layout.per_group * layout.sub_vector
    padded = torch.nn.functional.pad(matrix, (0, columns - layout.in_features))
    points = padded.reshape(layout.out_features, layout.groups, layout.per_group, layout.sub_vector)
    return points.permute(1, 2, 0, 3).reshape(layout.groups, -1, layout.sub_vector)


def point_weights(row_weights: Tensor, layout: Layout) -> Tensor:
    """Weights [G, per_group * out] of the points of `split`: that of their row, 0 for filled-up positions."""
    used = torch.arange(layout.groups * layout.per_group, device=row_weights.device) < layout.sub_vectors
    grid = used.reshape(layout.groups, layout.per_group, 1) * row_weights
    return grid.reshape(layout.groups, -1)


def to_codes(index: Tensor, layout: Layout) -> Tensor:
    """Codes [out, M] int64 from the centroid indices [G, per_group * out] of `split`'s points."""
    grid = index.reshape(layout.groups * layout.per_group, layout.out_features)
    return grid[: layout.sub_vectors].T.contiguous()


def to_index(codes: Tensor, layout: Layout) -> Tensor:
    """Centroid indices [G, per_group * out] from codes [out, M]; 0 for filled-up positions."""
    grid = torch.nn.functional.pad(codes.T, (0, 0, 0, layout.groups * layout.per_group - layout.sub_vectors))
    return grid.reshape(layout.groups, -1)


def row_scales(matrix: Tensor) -> Tensor:
    """Root mean square of each row of [out, in]; 1 for rows of zeros."""
    rms = matrix.square().mean(1).sqrt()
    return torch.where(rms > 0, rms, torch.ones_like(rms))


def encode(
    matrix: Tensor, layout: Layout, *, iterations: int = kmeans.DEFAULT_ITERATIONS, generator: torch.Generator
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
        Codebooks [G, K, d] float32, codes [out, M] int64, scales [out] float32.
    """
    scales = row_scales(matrix)
    points = split(matrix / scales.unsqueeze(1), layout)
    weights = point_weights(scales.square(), layout)
    centroids, index = kmeans.kmeans(
        points, layout.codewords, weights=weights, iterations=iterations, generator=generator
    )
    codes = to_codes(index, layout)
    return centroids, codes, fit_scales(matrix, decode(centroids, codes, torch.ones_like(scales), layout), scales)


def fit_scales(matrix: Tensor, unscaled: Tensor, fallback: Tensor) -> Tensor:
    """Least-squares factor [out] from the rows of `unscaled` [out, in] to those of `matrix`; `fallback` for zeros."""
    power = unscaled.square().sum(1)
    fitted = (matrix * unscaled).sum(1) / power.clamp_min(torch.finfo(matrix.dtype).tiny)
    return torch.where((power > 0) & (fitted > 0), fitted, fallback)


def assign(matrix: Tensor, centroids: Tensor, scales: Tensor, layout: Layout) -> Tensor:
    """Codes [out, M] int64 of the nearest codewords of a matrix [out, in] for given codebooks and scales."""
    index, _ = kmeans.nearest(split(matrix / scales.unsqueeze(1), layout), centroids)
    return to_codes(index, layout)


def flat_index(codes: Tensor, layout: Layout) -> Tensor:
    """Index [out, M] of each code's codeword in the codebooks laid end to end as [G * K, d]."""
    group = torch.arange(layout.sub_vectors, device=codes.device) // layout.per_group
    return codes + group * layout.codewords


def decode(centroids: Tensor, codes: Tensor, scales: Tensor, layout: Layout) -> Tensor:
    """The matrix [out, in] that codebooks [G, K, d], codes [out, M] and scales [out] stand for."""
    rows = torch.nn.functional.embedding(flat_index(codes, layout), centroids.reshape(-1, layout.sub_vector))
    matrix = rows.reshape(layout.out_features, -1)[:, : layout.in_features]
    return matrix * scales.unsqueeze(1)

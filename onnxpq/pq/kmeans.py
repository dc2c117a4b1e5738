"""k-means for many small problems at once: one per codebook, as batched tensor operations.

Lloyd's algorithm (Lloyd 1982) from a k-means++ start (Arthur and Vassilvitskii 2007), with weighted points.
"""

import math

import torch
from torch import Tensor

DEFAULT_ITERATIONS = 50
SETTLED = 1e-3
"""Lloyd steps end once a smaller share of the points than this changes its centroid: what follows gains less than the
choice of the start."""

_CHUNK_ELEMENTS = 2**24
"""Largest number of point-to-centroid distances held at once (64 MiB of float32)."""

_BLOCK_ELEMENTS = 2**21
"""Number of distances of the sets that are clustered together (8 MiB of float32)."""


def nearest(points: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest centroid of each point.

    Args:
        points: [G, N, d] float32.
        centroids: [G, K, d] float32.

    Returns:
        Indices [G, N] int64 (the lowest of equally near ones) and squared distances [G, N].
    """
    groups, count, _ = points.shape
    index = torch.empty(groups, count, dtype=torch.int64, device=points.device)
    squared = torch.empty(groups, count, dtype=points.dtype, device=points.device)
    half_norms = 0.5 * centroids.square().sum(-1)
    rows = max(1, _CHUNK_ELEMENTS // (centroids.shape[1] * min(groups, max(1, _CHUNK_ELEMENTS // count))))
    for start in range(0, count, rows):
        part = points[:, start : start + rows]
        # argmin |p - c|^2 = argmax <p, c> - |c|^2 / 2: one product, no [G, N, K, d] array.
        scores = torch.baddbmm(-half_norms.unsqueeze(1), part, centroids.transpose(1, 2))
        best, where = scores.max(-1)
        index[:, start : start + rows] = where
        squared[:, start : start + rows] = (part.square().sum(-1) - 2 * best).clamp_min(0)
    return index, squared


def _plus_plus(points: Tensor, weights: Tensor, codewords: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++ start.

    A candidate for the next centroid is a point drawn with probability weight * squared distance; of a few such
    candidates the one that leaves the least weighted distance is taken (Arthur and Vassilvitskii, section 5;
    2 + log K of them, as in scikit-learn).
    """
    groups, _, _ = points.shape
    rows = torch.arange(groups, device=points.device)
    trials = 2 + int(math.log(codewords))
    chosen = torch.multinomial(_probabilities(weights), 1, generator=generator).squeeze(1)
    centroids = [points[rows, chosen]]
    squared = (points - centroids[0].unsqueeze(1)).square().sum(-1)
    for _ in range(1, codewords):
        drawn = torch.multinomial(_probabilities(weights * squared), trials, replacement=True, generator=generator)
        best = torch.full((groups,), torch.inf, dtype=points.dtype, device=points.device)
        left, winner = squared, centroids[0]
        for trial in range(trials):
            candidate = points[rows, drawn[:, trial]]
            remaining = torch.minimum(squared, (points - candidate.unsqueeze(1)).square().sum(-1))
            potential = (weights * remaining).sum(-1)
            better = (potential < best).unsqueeze(1)
            left, winner = torch.where(better, remaining, left), torch.where(better, candidate, winner)
            best = torch.minimum(best, potential)
        squared = left
        centroids.append(winner)
    return torch.stack(centroids, 1)


def _probabilities(mass: Tensor) -> Tensor:
    """Rows of `mass` [G, N] made drawable: a row of zeros (all points covered) becomes uniform."""
    return torch.where(mass.sum(-1, keepdim=True) > 0, mass, torch.ones_like(mass))


def update(points: Tensor, weights: Tensor, index: Tensor, centroids: Tensor) -> Tensor:
    """Weighted mean of the points of each centroid; a centroid without points stays where it is.

    Args:
        points: [G, N, d].
        weights: [G, N], not negative.
        index: [G, N] int64, the centroid of each point.
        centroids: [G, K, d], the centroids so far.

    Returns:
        The new centroids [G, K, d].
    """
    sums = torch.zeros_like(centroids)
    sums.scatter_add_(1, index.unsqueeze(-1).expand_as(points), points * weights.unsqueeze(-1))
    mass = torch.zeros(centroids.shape[:2], dtype=points.dtype, device=points.device)
    mass.scatter_add_(1, index, weights)
    return torch.where((mass > 0).unsqueeze(-1), sums / mass.clamp_min(1e-30).unsqueeze(-1), centroids)


def _refill(points: Tensor, weighted: Tensor, index: Tensor, centroids: Tensor) -> Tensor:
    """Move the centroids that own no point to the points that are worst served (largest weighted distance)."""
    counts = torch.zeros(centroids.shape[:2], dtype=torch.int64, device=points.device)
    counts.scatter_add_(1, index, torch.ones_like(index))
    empty = counts == 0
    if not bool(empty.any()):
        return centroids
    wanted = min(int(empty.sum(1).max()), points.shape[1])
    worst, where = weighted.topk(wanted, dim=1)
    moved = centroids.clone()
    for group in torch.nonzero(empty.any(1)).flatten().tolist():
        slots = torch.nonzero(empty[group]).flatten()[:wanted]
        useful = worst[group, : len(slots)] > 0
        moved[group, slots[useful]] = points[group, where[group, : len(slots)][useful]]
    return moved


def kmeans(
    points: Tensor,
    codewords: int,
    *,
    weights: Tensor | None = None,
    iterations: int = DEFAULT_ITERATIONS,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Cluster G sets of N points each.

    Args:
        points: [G, N, d] float32.
        codewords: K.
        weights: [G, N], not negative; ones where absent.
        iterations: upper limit of Lloyd steps; it stops earlier once hardly a point changes its centroid (`SETTLED`).
        generator: source of randomness (on the CPU); the same one gives the same result.

    Returns:
        Centroids [G, K, d] and the nearest one of each point [G, N] int64. Where a set has fewer than K distinct
        points, the centroids left over repeat others.
    """
    if weights is None:
        weights = torch.ones(points.shape[:2], dtype=points.dtype, device=points.device)
    # Sets are independent: a few at a time stay in the processor's cache through all steps.
    block = max(1, _BLOCK_ELEMENTS // (points.shape[1] * codewords))
    parts = [
        _lloyd(some, mass, codewords, iterations, generator)
        for some, mass in zip(torch.split(points, block), torch.split(weights, block), strict=True)
    ]
    return torch.cat([centroids for centroids, _ in parts]), torch.cat([index for _, index in parts])


def _lloyd(
    points: Tensor, weights: Tensor, codewords: int, iterations: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    centroids = _plus_plus(points, weights, codewords, generator)
    index, squared = nearest(points, centroids)
    for _ in range(iterations):
        centroids = update(points, weights, index, centroids)
        centroids = _refill(points, weights * squared, index, centroids)
        before = index
        index, squared = nearest(points, centroids)
        if float((index != before).float().mean()) < SETTLED:
            break
    return centroids, index

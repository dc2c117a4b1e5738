"""k-means for many small problems at once: one per codebook, as batched tensor operations.

Lloyd's algorithm (Lloyd 1982) from a k-means++ start (Arthur and Vassilvitskii 2007), with weighted points.

The sets are independent, and a few of them are clustered at a time, so that their tables of scores stay in the
processor's cache through all steps; so do the points of a large set, a chunk at a time. A Lloyd step is two batched
products (scores of all centroids, then sums of the points by centroid) around a comparison with the best score; the
index of the nearest centroid is only found in the end, because a reduction that tracks indices takes several times as
long as the rest of the step.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

DEFAULT_ITERATIONS = 50
SETTLED = 2e-3
"""Lloyd steps end once one gains less than this share of the squared error: what follows gains less than the choice of
the start."""

SETTLED_SETS = 0.5
"""The sets that are clustered together end once more than this share of them has settled."""

_STRETCH, _MOMENTUM = 1.5, 0.6
"""A step moves a centroid by `_STRETCH` times the way to its points' mean, and `_MOMENTUM` times its last move (heavy
ball, Polyak 1964): Lloyd's steps point the same way for long, and so far fewer of these reach the same error."""

_THINNED = (64, 1024)
"""Points per codeword of the samples on which the steps begin, smallest first: there a step costs less."""

_HELD_ELEMENTS = 2**22
"""Numbers in points that are laid out for the products once; those of larger sets are laid out for each step anew, a
chunk at a time: that takes a step hardly longer, and all of them would take several times the memory of the points."""

_CHUNK_ELEMENTS = {"cpu": 2**20, "cuda": 2**26}
"""Point-to-centroid scores that are held at once: on a CPU 4 MiB of float32, which stay near the processor through a
step; a GPU needs as many as keep it busy."""


class _Points(NamedTuple):
    """A few sets of points, side by side as the products read them.

    Attributes:
        columns: [G, d + 1, N], the last row of ones.
        weighted: [G, d + 1, N], the same times the weights.
        weights: [G, N].
        norms: [G, N], squared norms.
    """

    columns: Tensor
    weighted: Tensor
    weights: Tensor
    norms: Tensor

    @classmethod
    def of(cls, points: Tensor, weights: Tensor) -> "_Points":
        """From points [G, N, d] and weights [G, N]."""
        columns = torch.cat([points.transpose(1, 2), torch.ones_like(weights).unsqueeze(1)], 1)
        return cls(columns, columns * weights.unsqueeze(1), weights, points.square().sum(2))

    @classmethod
    def parts(cls, points: Tensor, weights: Tensor, codewords: int) -> Callable[[], Iterator[tuple[slice, "_Points"]]]:
        """Gives, in each step, all points in chunks whose scores with so many centroids are held at once."""
        ranges = list(_chunks(points, codewords))
        if points.numel() <= _HELD_ELEMENTS:
            whole = cls.of(points, weights)
            held = [cls(*(tensor[..., some] for tensor in whole)) for some in ranges]
            return lambda: zip(ranges, held, strict=True)
        return lambda: ((some, cls.of(points[:, some], weights[:, some])) for some in ranges)

    def squared(self, centroids: Tensor) -> Tensor:
        """Squared distances [G, K, N] to centroids [G, K, d]."""
        return torch.bmm(_extended(centroids).mul_(-2), self.columns).add_(self.norms.unsqueeze(1)).clamp_min_(0)


def nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """The nearest centroid of each point.

    Args:
        points: [G, N, d] float32.
        centroids: [G, K, d] float32.

    Returns:
        Indices [G, N] uint8, beyond 256 codewords int64 (the lowest of equally near ones).
    """
    kind = torch.uint8 if centroids.shape[1] <= 256 else torch.int64
    index = torch.empty(points.shape[:2], dtype=kind, device=points.device)
    half_norms = 0.5 * centroids.square().sum(-1, keepdim=True)
    for some in _chunks(points, centroids.shape[1]):
        # argmin |p - c|^2 = argmax <p, c> - |c|^2 / 2: one product, no [G, N, K, d] array.
        scores = torch.baddbmm(-half_norms, centroids, points[:, some].transpose(1, 2))
        index[:, some] = _first_equal(scores, scores.amax(1))
    return index


def _chunks(points: Tensor, codewords: int) -> Iterator[slice]:
    """Ranges of the points [G, N, ...] whose scores are held at once."""
    size = max(1, _CHUNK_ELEMENTS[points.device.type] // (points.shape[0] * codewords))
    return (slice(start, start + size) for start in range(0, points.shape[1], size))


def _extended(centroids: Tensor) -> Tensor:
    """Centroids [G, K, d] followed by -|c|^2 / 2: their product with (p, 1) is largest for the nearest one."""
    return torch.cat([centroids, -0.5 * centroids.square().sum(-1, keepdim=True)], 2)


def _first_equal(scores: Tensor, best: Tensor) -> Tensor:
    """The lowest k with ``scores[:, k] == best``, [G, N] int64; overwrites `scores` [G, K, N].

    `argmax` gives the same and takes several times as long, as it is not vectorized.
    """
    rank = torch.arange(scores.shape[1], 0, -1, dtype=scores.dtype, device=scores.device)
    hits = scores.eq_(best.unsqueeze(1)).mul_(rank.unsqueeze(1))
    return scores.shape[1] - hits.amax(1).long()


def _plus_plus(points: Tensor, data: _Points, codewords: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++ start.

    A candidate for the next centroid is a point drawn with probability weight * squared distance; of a few such
    candidates the one that leaves the least weighted distance is taken (Arthur and Vassilvitskii, section 5;
    2 + log K of them, as in scikit-learn).
    """
    rows = torch.arange(len(points), device=points.device)
    trials = 2 + int(math.log(codewords))
    chosen = _draw(data.weights, 1, generator).squeeze(1)
    centroids = [points[rows, chosen]]
    squared = data.squared(centroids[0].unsqueeze(1)).squeeze(1)
    for _ in range(1, codewords):
        drawn = _draw(data.weights * squared, trials, generator)
        candidates = points[rows.unsqueeze(1), drawn]
        remaining = torch.minimum(data.squared(candidates), squared.unsqueeze(1))
        winner = torch.bmm(remaining, data.weights.unsqueeze(2)).squeeze(2).argmin(1)
        squared = remaining[rows, winner]
        # Rounding leaves some distance; a point that is a centroid must not be drawn again.
        squared[rows, drawn[rows, winner]] = 0
        centroids.append(candidates[rows, winner])
    return torch.stack(centroids, 1)


def _draw(mass: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices [G, count] drawn in proportion to `mass` [G, N]; evenly where a row is all zero."""
    upper = torch.where(mass.amax(1, keepdim=True) > 0, mass, torch.ones_like(mass)).cumsum(1)
    # The generator is the CPU's everywhere, so that a GPU draws the same.
    uniform = torch.rand(len(mass), count, generator=generator).to(mass.device)
    drawn = torch.searchsorted(upper, uniform * upper[:, -1:], right=True)
    return drawn.clamp_max(mass.shape[1] - 1)


def _refill(points: Tensor, missed: Tensor, empty: Tensor, centroids: Tensor) -> Tensor:
    """Move the centroids that own no point to the points that are worst served (largest weighted distance)."""
    wanted = min(int(empty.sum(1).max()), points.shape[1])
    worst, where = missed.topk(wanted, dim=1)
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
        iterations: upper limit of Lloyd steps; it stops earlier once they gain hardly anything (`SETTLED`).
        generator: source of randomness (on the CPU); the same one gives the same result.

    Returns:
        Centroids [G, K, d] and the nearest one of each point [G, N], as of `nearest`. Where a set has fewer than K
        distinct points, the centroids left over repeat others.
    """
    groups, count, d = points.shape
    centroids = torch.empty(groups, codewords, d, dtype=points.dtype, device=points.device)
    index = []
    block = max(1, _CHUNK_ELEMENTS[points.device.type] // (count * codewords))
    for start in range(0, groups, block):
        some = slice(start, start + block)
        mass = torch.ones_like(points[some, :, 0]) if weights is None else weights[some]
        centroids[some] = _cluster(points[some], mass, codewords, iterations, generator)
        index.append(nearest(points[some], centroids[some]))
    return centroids, torch.cat(index)


def _cluster(points: Tensor, weights: Tensor, codewords: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Centroids [G, K, d] of a few sets: from a start on a sample to Lloyd's steps on all points."""
    strides = [points.shape[1] // (share * codewords) for share in _THINNED]
    first, *later = [*(stride for stride in strides if stride > 1), 1]
    sample, mass = points[:, ::first], weights[:, ::first]
    centroids = _lloyd(sample, mass, _plus_plus(sample, _Points.of(sample, mass), codewords, generator), iterations)
    for stride in later:
        centroids = _lloyd(points[:, ::stride], weights[:, ::stride], centroids, iterations)
    return centroids


def _lloyd(points: Tensor, weights: Tensor, centroids: Tensor, iterations: int) -> Tensor:
    """Lloyd's steps from given centroids [G, K, d], until they settle."""
    parts = _Points.parts(points, weights, centroids.shape[1])
    missed = torch.empty_like(weights, memory_format=torch.contiguous_format)
    before = torch.full_like(centroids[:, :1, :1], torch.inf)
    means, move = centroids, torch.zeros_like(centroids)
    for _ in range(iterations):
        owned = _owned(parts(), centroids, missed)
        means, masses = _means(owned, centroids)
        squared = missed.sum(1).reshape(before.shape)
        if bool((empty := masses <= 0).any()):
            means = _refill(points, missed, empty, means)
        elif bool(((before - squared).abs() <= SETTLED * squared).float().mean() > SETTLED_SETS):
            break
        # Where the last move was too long, start anew from the means (O'Donoghue and Candès 2015).
        anew = (squared > before) | empty.unsqueeze(2)
        way = means - centroids
        move = torch.where(anew, way, _STRETCH * way + _MOMENTUM * move)
        centroids, before = centroids + move, squared
    return means


def _owned(parts: Iterable[tuple[slice, _Points]], centroids: Tensor, missed: Tensor) -> Tensor:
    """Weighted sums [G, K, d + 1] of the points (p, 1) of each centroid.

    Args:
        parts: all points.
        centroids: [G, K, d].
        missed: [G, N], is set to the weighted squared distances.
    """
    extended = _extended(centroids)
    owned = torch.zeros_like(extended)
    for some, part in parts:
        scores = torch.bmm(extended, part.columns)
        best = scores.amax(1)
        missed[:, some] = (part.norms - 2 * best).mul_(part.weights)
        hits = scores.eq_(best.unsqueeze(1))
        owned += torch.bmm(hits, part.weighted.transpose(1, 2))
    return owned


def _means(owned: Tensor, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted means from sums [G, K, d + 1] (the last: of weights); a centroid without points stays where it is.

    Returns:
        Centroids [G, K, d], and the weight of the points of each [G, K].
    """
    masses = owned[:, :, -1]
    means = owned[:, :, :-1] / masses.clamp_min(1e-30).unsqueeze(2)
    return torch.where((masses > 0).unsqueeze(2), means, centroids), masses

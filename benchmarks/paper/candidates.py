"""Which setting of a method each layer gets so that all layers together take the bytes of a factor.

Each method lists what it could make of a layer, with its bytes. Of all combinations over the layers that fit, the one
with the least sum of the layers' relative squared weight errors is taken: no data are looked at.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import torch
from torch import Tensor

from benchmarks.paper.forms import FLOAT_BYTES, Coded, Dense, Form, LowRank
from benchmarks.paper.graph import packed_bytes
from onnxpq.pq import kmeans

SUB_VECTORS: Final = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32)
CODEWORDS: Final = (2, 4, 16, 256)
"""Those that fill the bits of their codes: a file has no place for codes of 3 bits."""

STAGES: Final = (2, 3, 4)
RESIDUAL_CODEWORDS: Final = (16, 256)

TOLERANCE: Final = 1.02
"""A method may take 2 % more bytes than the factor allows: 4-bit scalar codes with a codebook are just above 1/8."""

SEARCHED: Final = (0.5, 6.0)
"""A layer's own factor is looked for in this range around that of all layers."""

MOST: Final = 2.0
"""The end of that range for the layer that has most of the weights: what others gain by more is too little."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """What a method could make of a layer.

    Attributes:
        nbytes: in the file.
        settings: in words.
        make: the form; clustered only when it is asked for.
        formula_bits: what Gong et al. (2014) count for it: numbers of 32 bits and log2 K bits a code; None where they
            have no formula.
    """

    nbytes: int
    settings: str
    make: Callable[[], Form]
    formula_bits: float | None = None


class Clusterer:
    """The candidates of one layer; what was clustered once is kept."""

    def __init__(self, matrix: Tensor, seed: int) -> None:
        self.matrix, self.seed = matrix, seed
        self.out, self.columns = matrix.shape
        self.block = lru_cache(maxsize=None)(self._block)
        self.residual = lru_cache(maxsize=None)(self._residual)
        self.stages = lru_cache(maxsize=None)(self._stages)

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed)

    def _block(self, d: int, codewords: int) -> Coded:
        """Product quantization with a codebook for each block of d columns (Gong et al. 2014)."""
        points = self._points(self.matrix, d).transpose(0, 1).contiguous()
        centroids, index = kmeans.kmeans(points, codewords, generator=self._generator())
        return Coded([index.T.long().contiguous()], [centroids], self.columns)

    def scalar(self, codewords: int) -> Coded:
        """k-means of the single weights."""
        return self.residual(1, codewords, 1)

    def _residual(self, d: int, codewords: int, stages: int) -> Coded:
        """Each stage codes what the ones before left over (Chen, Guan, Wang 2010), with a codebook for the layer."""
        return Coded(*zip(*self.stages(d, codewords, stages), strict=True), self.columns)

    def _stages(self, d: int, codewords: int, stages: int) -> list[tuple[Tensor, Tensor]]:
        """Codes [out, M] and codebook [1, K, d] of each stage; fewer stages are the first of more."""
        if stages == 0:
            return []
        found = self.stages(d, codewords, stages - 1)
        left = self.matrix - self.residual(d, codewords, stages - 1).matrix().detach() if found else self.matrix
        points = self._points(left, d).reshape(1, -1, d)
        centroids, index = kmeans.kmeans(points, codewords, generator=self._generator())
        return [*found, (index.long().reshape(self.out, -1), centroids)]

    def _points(self, matrix: Tensor, d: int) -> Tensor:
        """Sub-vectors [out, M, d], the last ones filled up with zeros."""
        missing = -self.columns % d
        return torch.nn.functional.pad(matrix, (0, missing)).reshape(self.out, -1, d)

    def pq(self, weights: range) -> Iterator[Candidate]:
        """Product quantization in a range of bytes."""
        for d, k in itertools.product(SUB_VECTORS, CODEWORDS):
            blocks = -(-self.columns // d)
            nbytes = packed_bytes(self.out * blocks, k) + FLOAT_BYTES * k * blocks * d
            if nbytes in weights and k <= self.out and d <= self.columns:
                bits = 32 * k * self.columns + (k - 1).bit_length() * self.out * blocks
                yield Candidate(nbytes, f"d={d} K={k}", lambda d=d, k=k: self.block(d, k), bits)

    def kmeans(self, weights: range) -> Iterator[Candidate]:
        """Scalar k-means in a range of bytes."""
        for k in CODEWORDS:
            nbytes = packed_bytes(self.matrix.numel(), k) + FLOAT_BYTES * k
            if nbytes in weights:
                bits = 32 * k + (k - 1).bit_length() * self.matrix.numel()
                yield Candidate(nbytes, f"K={k}", lambda k=k: self.scalar(k), bits)

    def residuals(self, weights: range) -> Iterator[Candidate]:
        """Residual vector quantization in a range of bytes."""
        for d, k, stages in itertools.product(SUB_VECTORS, RESIDUAL_CODEWORDS, STAGES):
            count = self.out * -(-self.columns // d)
            nbytes = stages * (packed_bytes(count, k) + FLOAT_BYTES * k * d)
            if nbytes in weights and k <= count and d <= self.columns:
                yield Candidate(nbytes, f"d={d} K={k} R={stages}", lambda d=d, k=k, s=stages: self.residual(d, k, s))

    def svd(self, weights: range) -> Iterator[Candidate]:
        """Truncated SVD of every rank in a range of bytes, and the weight in float16 where it is as small."""
        if FLOAT_BYTES * self.matrix.numel() in weights:
            yield Candidate(FLOAT_BYTES * self.matrix.numel(), "float16", lambda: Dense(self.matrix))
        for rank in range(1, min(self.matrix.shape) + 1):
            nbytes = FLOAT_BYTES * rank * (self.out + self.columns)
            if nbytes in weights:
                yield Candidate(nbytes, f"rank {rank}", lambda rank=rank: LowRank.truncated(self.matrix, rank))


Kind = Callable[[Clusterer, range], Iterator[Candidate]]
KINDS: Final[dict[str, Kind]] = {
    "pq": Clusterer.pq,
    "kmeans": Clusterer.kmeans,
    "residual": Clusterer.residuals,
    "svd": Clusterer.svd,
}


def choose(clusterers: Sequence[Clusterer], kind: str, budget: float) -> list[Candidate] | None:
    """The candidate of each layer; None where the method cannot be so small.

    Args:
        clusterers: one per layer.
        kind: a key of `KINDS`.
        budget: bytes for all layers together, which `TOLERANCE` is added to.
    """
    total = sum(4 * c.matrix.numel() for c in clusterers)
    budget *= TOLERANCE
    lists = []
    for clusterer in clusterers:
        part = 4 * clusterer.matrix.numel() / total
        least = part * budget / (MOST if part > 0.5 else SEARCHED[1])
        most = min(budget, part * budget / SEARCHED[0])
        found = list(KINDS[kind](clusterer, range(int(least), int(most) + 1)))
        found = found or [min(KINDS[kind](clusterer, range(2**62)), key=lambda c: c.nbytes)]
        lists.append([(candidate, _error(clusterer, candidate, kind)) for candidate in found])
    fitting = [some for some in itertools.product(*lists) if sum(c.nbytes for c, _ in some) <= budget]
    if not fitting:
        return None
    best = min(fitting, key=lambda some: sum(error for _, error in some))
    return [candidate for candidate, _ in best]


def _error(clusterer: Clusterer, candidate: Candidate, kind: str) -> float:
    """Relative squared error of the weight."""
    if kind == "svd" and candidate.settings.startswith("rank "):
        rank = int(candidate.settings.split()[1])
        squares = _singular(clusterer).square()
        return float(squares[rank:].sum() / squares.sum())
    missed = clusterer.matrix - candidate.make().matrix().detach()
    return float(missed.square().sum() / clusterer.matrix.square().sum())


@lru_cache(maxsize=8)
def _singular(clusterer: Clusterer) -> Tensor:
    return torch.linalg.svdvals(clusterer.matrix.double())

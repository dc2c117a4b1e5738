"""The relative squared error of a layer at each of its layouts, from some of its rows.

Four things keep that true and cheap:

* Rows are drawn in proportion to their part of what is weighed, and weighed by its inverse (Horvitz and Thompson 1952),
  so that a few large rows of many are not missed.
* Codewords that serve few sub-vectors learn them by heart, and all layers are measured with as few as that takes; how
  much too low that makes the error depends on hardly anything but their number (`optimism`).
* What is costly to know of the inputs, a factor of H^-1, serves all layouts.
* Lengths, numbers of codewords and numbers of codebooks between those that are measured are interpolated.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxpq.pq import InputStatistics, Layout, calibrated, codec

Family: TypeAlias = Sequence[Layout]
"""Layouts that differ in the length of their sub-vectors, by growing length."""

POINTS: Final = 32
"""Sub-vectors for each codeword that errors are measured with, where the weight has as many."""

LEAST_ROWS: Final = 32
"""Rows of a weight that errors are measured on, at least."""

MEASURED: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24)
"""Lengths of sub-vectors that are measured."""

FEW_MEASURED: Final = (2, 6, 16)
"""Lengths at which it is measured what several codebooks gain, with the fewest codewords: it changes little from length
to length, and with the number of codewords. At high resolution it does not (Zador 1982)."""

NARROW: Final = 32
"""Weights with at most so many columns are measured at all lengths: each has another number of sub-vectors."""

BY_HEART: Final = 8.0
"""Where codewords have fewer sub-vectors than this each, no number of codewords is interpolated."""

TINY: Final = 1e-12
"""Errors below this count as this."""

_ROWS: Final = 1024
"""Rows of a weight that are replaced at a time."""


@dataclass(frozen=True, eq=False)
class _Sample:
    """Some rows of a weight.

    Attributes:
        matrix: [n, in], each row times the root of what it stands for.
        rows: number of rows of equal size that would tell as much.
    """

    matrix: Tensor
    rows: float


@dataclass(frozen=True, eq=False)
class _Line:
    """Something that is known at some lengths of sub-vectors and linear between them.

    Attributes:
        lengths: [n], ascending.
        values: [n].
    """

    lengths: Sequence[float]
    values: Sequence[float]

    def at(self, layout: Layout) -> float:
        """The value for a layout; beyond what is known the nearest one."""
        return float(np.interp(_length(layout), self.lengths, self.values))


class Weight:
    """A weight whose errors are asked for.

    Attributes:
        matrix: [out, in].
    """

    def __init__(
        self,
        matrix: Tensor,
        statistics: InputStatistics | None = None,
        importance: NDArray[np.float32] | None = None,
        *,
        seed: int,
    ) -> None:
        """Look at the rows and at the inputs.

        Args:
            matrix: the weight [out, in].
            statistics: of the layer's inputs; without, it is the error of the weight instead of the outputs'.
            importance: what the squared error of each row counts, [out], positive; by default all the same.
            seed: of the choice of rows and of k-means.
        """
        self.matrix, self._seed = matrix, seed
        self._factors = None if importance is None else codec.row_factors(importance)
        self._moment = None if statistics is None else torch.from_numpy(statistics.regularized())
        self._upper = None if self._moment is None else calibrated.factor_of_inverse(self._moment)
        self._energies = _energies(matrix, importance)

    def curves(self, families: Sequence[Family]) -> list[list[float]]:
        """The error with each layout, family by family.

        Some layouts are measured, for the others the logarithm of the error is taken to be linear in the length, in
        the logarithm of the number of codewords, and in that of codebooks, apart from what is learned by heart.

        Args:
            families: each with one number of codewords; with one codebook, or with several.
        """
        single = {family[0].codewords: family for family in families if family[-1].groups == 1}
        if not single:
            return [self.measure(family) for family in families]
        lines = self._lines(single)
        fewest = [family for family in families if family[0].codewords == min(single) and family[-1].groups > 1]
        most = max(fewest, key=lambda family: family[-1].groups, default=None)
        gains = None if most is None else self._gains(most, lines)
        return [[self._between(layout, lines, gains) for layout in family] for family in families]

    def measure(self, layouts: Sequence[Layout]) -> list[float]:
        """The error with each of some layouts."""
        return [math.exp(self._settled(layout)) * self._optimism(layout) for layout in layouts]

    def missed(self, layout: Layout) -> tuple[Tensor, float]:
        """What a layout misses of the matrix, [out, in], nearly, and the error.

        The codewords are those of some rows.
        """
        codebooks, _, _ = self._encoded(self._sample(layout), layout)
        differences, missed, whole = torch.empty_like(self.matrix), 0.0, 0.0
        for start in range(0, len(self.matrix), _ROWS):
            some = slice(start, start + _ROWS)
            rows = self.matrix[some]
            differences[some] = self._coded(rows, layout, codebooks) - rows
            factors = 1.0 if self._factors is None else self._factors[some]
            missed += _size(differences[some] * factors, self._moment)
            whole += _size(rows * factors, self._moment)
        return differences, missed / whole if whole > 0 else 0.0

    def _lines(self, single: Mapping[int, Family]) -> dict[int, _Line]:
        """What is measured of the families with one codebook, by the number of codewords."""
        chosen = {codewords for codewords in single if codewords in (min(single), max(single))}
        chosen |= {codewords for codewords, family in single.items() if self._points(family[-1]) < BY_HEART}
        return {codewords: self._line(single[codewords], MEASURED) for codewords in chosen}

    def _line(self, family: Family, lengths: Sequence[int]) -> _Line:
        ends, is_narrow = (family[0], family[-1]), family[0].in_features <= NARROW
        some = [layout for layout in family if layout.sub_vector in lengths or layout in ends or is_narrow]
        return _Line([_length(layout) for layout in some], [self._settled(layout) for layout in some])

    def _gains(self, family: Family, lines: Mapping[int, _Line]) -> _Line:
        """The logarithm of what each doubling of the codebooks multiplies the error by."""
        is_narrow = family[0].in_features <= NARROW
        some = [layout for layout in family if layout.sub_vector in FEW_MEASURED or is_narrow] or family[:1]
        values = [(self._settled(layout) - _one(layout, lines)) / math.log2(layout.groups) for layout in some]
        return _Line([_length(layout) for layout in some], values)

    def _between(self, layout: Layout, lines: Mapping[int, _Line], gains: _Line | None) -> float:
        value = _one(layout, lines)
        if layout.groups > 1 and gains is not None:
            value += gains.at(layout) * math.log2(layout.groups)
        return math.exp(value) * self._optimism(layout)

    def _settled(self, layout: Layout) -> float:
        """The logarithm of what the error were if nothing was learned by heart."""
        sample = self._sample(layout)
        error = self._error(sample, layout)
        return math.log(max(error, TINY) / optimism(_points(sample.rows, layout)))

    def _error(self, sample: _Sample, layout: Layout) -> float:
        whole = _size(sample.matrix, self._moment)
        if whole <= 0:
            return 0.0
        own = replace(layout, out_features=len(sample.matrix))
        found = codec.decode(*self._encoded(sample, layout), own)
        return _size(sample.matrix - found, self._moment) / whole

    def _encoded(self, sample: _Sample, layout: Layout) -> tuple[Tensor, Tensor, Tensor]:
        """Codebooks, codes and scales of some rows by one pass of the quantizer."""
        generator = torch.Generator().manual_seed(self._seed)
        own = replace(layout, out_features=len(sample.matrix))
        if self._moment is None:
            return codec.encode(sample.matrix, own, generator=generator)
        return calibrated.encode(sample.matrix, own, self._moment, generator=generator, rounds=0, upper=self._upper)

    def _coded(self, rows: Tensor, layout: Layout, codebooks: Tensor) -> Tensor:
        """Rows as given codebooks give them back."""
        own = replace(layout, out_features=len(rows))
        if self._moment is None:
            return codec.decode(codebooks, *codec.coded(rows, own, codebooks), own)
        return codec.decode(codebooks, *calibrated.coded(rows, own, self._moment, codebooks, upper=self._upper), own)

    def _optimism(self, layout: Layout) -> float:
        return optimism(self._points(layout))

    def _points(self, layout: Layout) -> float:
        return _points(_rows_of_one_size(self._energies), layout)

    def _sample(self, layout: Layout) -> _Sample:
        """As many rows as measuring a layout takes."""
        count = max(LEAST_ROWS, -(-POINTS * layout.codewords // layout.per_group))
        index, inclusion = drawn(self._energies, count, np.random.default_rng(self._seed))
        rows = self.matrix[torch.from_numpy(index)]
        factors = torch.from_numpy(1 / np.sqrt(inclusion)).float().unsqueeze(1)
        if self._factors is not None:
            factors = factors * self._factors[torch.from_numpy(index)]
        rows = rows * factors
        largest = rows.abs().max() if len(rows) else torch.zeros(())
        return _Sample(rows / largest if largest > 0 else rows, _rows_of_one_size(self._energies[index] / inclusion))


def optimism(points: float) -> float:
    """By how much too low the error is that codewords have on what they were learned from.

    It was so up to .15 for normal and low-rank sub-vectors of 2 to 32 numbers, 16 and 256 codewords; of clusters less
    is learned by heart once each has a codeword (`python -m benchmarks sensitivity --points`).

    Args:
        points: sub-vectors for each codeword.
    """
    return math.exp(-2.3 * max(points, 1.0) ** -0.87)


def drawn(
    energies: NDArray[np.float64], count: int, random: np.random.Generator
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Rows at random, in proportion to what each weighs, but none twice.

    Args:
        energies: what each weighs, [out], not negative.
        count: of rows; fewer where fewer weigh anything.
        random: source of randomness.

    Returns:
        Their index in ascending order, and the probability with which each was taken.
    """
    if count >= len(energies):
        return np.arange(len(energies)), np.ones(len(energies))
    chances = _chances(energies, count)
    order = random.permutation(len(energies))
    upper = np.cumsum(chances[order])
    at = np.searchsorted(upper, np.arange(random.random(), upper[-1]), side="right")
    index = np.sort(order[at])
    return index, chances[index]


def _chances(energies: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Probabilities [out] in proportion to the energies, that add up to a count; none is above 1."""
    chances, surely = np.zeros(len(energies)), np.zeros(len(energies), bool)
    while not surely.all() and (rest := energies[~surely].sum()) > 0:
        chances[~surely] = (count - surely.sum()) * energies[~surely] / rest
        chances[surely] = 1.0
        beyond = ~surely & (chances >= 1)
        if not beyond.any():
            break
        surely |= beyond
    return np.minimum(chances, 1.0)


def _energies(matrix: Tensor, importance: NDArray[np.float32] | None) -> NDArray[np.float64]:
    """What each row [out] weighs."""
    scales = codec.row_scales(matrix).double()
    scales[torch.maximum(matrix.amax(1), -matrix.amin(1)) == 0] = 0
    if scales.max() == 0:
        scales += 1  # none of the rows counts for more than another
    energies = (scales / scales.max()).square().numpy()
    return energies if importance is None else energies * importance


def _rows_of_one_size(energies: NDArray[np.float64]) -> float:
    """How many rows of equal size would tell as much (Kish 1965)."""
    power = float(np.square(energies).sum())
    return float(energies.sum()) ** 2 / power if power > 0 else float(len(energies))


def _points(rows: float, layout: Layout) -> float:
    """Sub-vectors for each codeword."""
    return rows * layout.sub_vectors / layout.groups / layout.codewords


def _length(layout: Layout) -> float:
    """Of a sub-vector, without what fills up the last one."""
    return layout.in_features / layout.sub_vectors


def _one(layout: Layout, lines: Mapping[int, _Line]) -> float:
    """The logarithm of the settled error if the layout had one codebook."""
    below = max((codewords for codewords in lines if codewords <= layout.codewords), default=min(lines))
    above = min((codewords for codewords in lines if codewords >= layout.codewords), default=max(lines))
    first, last = lines[below].at(layout), lines[above].at(layout)
    if below == above:
        return first
    return first + (last - first) * math.log(layout.codewords / below) / math.log(above / below)


def _size(matrix: Tensor, moment: Tensor | None) -> float:
    weighted = matrix if moment is None else matrix @ moment
    return float(torch.einsum("oi,oi->", matrix, weighted))

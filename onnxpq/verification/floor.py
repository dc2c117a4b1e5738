"""The floor: what a result has to keep of the original, whatever was asked for, to be written at all.

Each output is judged by what it is (`Kind`), and what it loses is one number, 0 for nothing:

=========== ================================================== =========================================== =======
kind        an output of                                        its loss                                    floor
=========== ================================================== =========================================== =======
labelled    scores of classes, where labels are given           points of accuracy                           5 %
classes     scores of classes, or values that are no floats     share of other answers                       5 %
decisions   one probability (a sigmoid)                         share of other decisions at one half         5 %
embedding   vectors of many numbers                             1 - mean cosine                             10 %
numbers     any other numbers                                   root mean square, relative to the spread    30 %
=========== ================================================== =========================================== =======

The spread of numbers is their distance from the mean of their column. So a model that gives the mean for everything has
lost everything, however large that mean is. Where a column does not vary the loss is relative to the numbers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxpq.errors import FloorError
from onnxpq.report import FloorReport, Report, StandsStill
from onnxpq.verification.metrics import is_scores, wilson

EMBEDDING_COLUMNS: Final = 32
"""Vectors of at least so many numbers are embeddings: their direction counts. Fewer are numbers of their own."""

FEW_SAMPLES: Final = 3
"""Of fewer samples nobody can say that they vary."""

STANDS_STILL: Final = 1e-6
"""A column whose spread is below this share of its size does not vary: float32 has 24 bits."""


class Kind(Enum):
    """What an output is; the value is how its loss is called."""

    LABELLED = "loss of accuracy"
    CLASSES = "share of other answers"
    DECISIONS = "share of other decisions"
    EMBEDDING = "1 - cosine"
    NUMBERS = "relative error"


FLOORS: Final = {Kind.LABELLED: 0.05, Kind.CLASSES: 0.05, Kind.DECISIONS: 0.05, Kind.EMBEDDING: 0.1, Kind.NUMBERS: 0.3}
"""The largest loss that is written, where the settings say nothing."""

MADE_UP: Final = 4
"""So many times the floor may be lost on random inputs. They tell a ruined model from a usable one, and no more: a
classifier that keeps 99.8 % of its answers on real samples gives other ones for 10 % of them."""

SHARES: Final = frozenset({Kind.LABELLED, Kind.CLASSES, Kind.DECISIONS})
"""Losses that are shares of answers."""

LEAST_FLOOR: Final = 0.05
"""A drop by a metric up to which a target allows no more than the floors do."""


def kind_of(values: NDArray[np.generic], *, scores: bool = True, sigmoid: bool = False) -> Kind:
    """What an output is.

    Args:
        values: what the original gives there for some samples.
        scores: whether the graph speaks for scores of classes along the last axis.
        sigmoid: whether it comes from a sigmoid.
    """
    if not np.issubdtype(values.dtype, np.floating):
        return Kind.CLASSES
    columns = values.shape[-1] if values.ndim > 1 else 1
    if sigmoid and columns == 1:
        return Kind.DECISIONS
    if scores and is_scores(values):
        return Kind.CLASSES
    return Kind.EMBEDDING if columns >= EMBEDDING_COLUMNS else Kind.NUMBERS


@dataclass
class Spread:
    """Sums from which the spread of numbers [..., C] around the means of their columns follows, batch by batch."""

    rows: int = 0
    entries: int = 0
    total: float = 0.0
    squares: float = 0.0
    columns: NDArray[np.float64] | None = None

    def add(self, values: NDArray[np.float64]) -> None:
        """Count in a batch; where C changes from call to call all numbers are one column."""
        if values.size == 0:
            return
        table = values.reshape(-1, values.shape[-1] if values.ndim > 1 else 1)
        own = table.sum(0)
        if self.rows == 0:
            self.columns = np.zeros_like(own)
        fits = self.columns is not None and self.columns.shape == own.shape
        self.columns = self.columns + own if fits and self.columns is not None else None
        self.rows += len(table)
        self.entries += table.size
        self.total += float(own.sum())
        self.squares += float(np.square(table).sum())

    def value(self) -> float:
        """Sum of the squared distances from the means; 0 for what does not vary but for rounding."""
        if not self.entries:
            return 0.0
        means = self.total**2 / self.entries
        if self.columns is not None:
            means = float(np.square(self.columns).sum()) / self.rows
        found = self.squares - means
        return found if found > STANDS_STILL**2 * self.squares else 0.0


@dataclass
class Loss:
    """What an output loses, added up batch by batch.

    Attributes:
        kind: of the output; not `LABELLED`, which `Verification.accuracy` tells.
    """

    kind: Kind
    reference: Spread = field(default_factory=Spread)
    found: Spread = field(default_factory=Spread)
    squared_difference: float = 0.0
    lost: float = 0.0
    compared: int = 0
    answers: tuple[set[object], set[object]] = field(default_factory=lambda: (set(), set()))

    def add(self, reference: NDArray[np.generic], found: NDArray[np.generic]) -> None:
        """Count in a batch. Arrays of different shapes have lost everything."""
        if reference.shape != found.shape:
            self._count(np.ones(max(1, reference.size)))
            self.squared_difference += float("inf")
            return
        if np.issubdtype(reference.dtype, np.floating):
            exact, other = reference.astype(np.float64), found.astype(np.float64)
            self.reference.add(exact)
            self.found.add(other)
            self.squared_difference += float(np.square(exact - other).sum())
        if self.kind is Kind.EMBEDDING:
            self._count(1 - _cosine(reference, found))
        elif self.kind is not Kind.NUMBERS:
            answers = self._answers(reference), self._answers(found)
            self._count(answers[0] != answers[1])
            for known, given in zip(self.answers, answers, strict=True):
                # Two are enough to know that an output is not the same for all.
                known.update(np.unique(given)[:2].tolist())

    def _answers(self, values: NDArray[np.generic]) -> NDArray[np.generic]:
        if self.kind is Kind.DECISIONS:
            return np.asarray(values.astype(np.float64) > 0.5)
        return values.argmax(-1) if is_scores(values) else values

    def _count(self, lost: NDArray[np.generic]) -> None:
        self.lost += float(lost.sum())
        self.compared += lost.size

    @property
    def value(self) -> float:
        """The loss: 0 for nothing, in the unit of the kind."""
        if self.kind is not Kind.NUMBERS:
            return self.lost / self.compared if self.compared else 0.0
        spread = self.reference.value() if self.reference.rows >= FEW_SAMPLES else 0.0
        whole = spread or self.reference.squares
        if self.squared_difference == 0:
            return 0.0
        return math.sqrt(self.squared_difference / whole) if whole > 0 else math.inf

    @property
    def stands_still(self) -> str | None:
        """How the found output is the same for all samples, where the reference is not; as the rest of a sentence."""
        given, found = self.answers
        if self.compared >= FEW_SAMPLES and len(found) == 1 and len(given) > 1:
            return f"gives the same answer, {next(iter(found))}, for everything"
        if self.reference.rows >= FEW_SAMPLES and self.found.value() == 0 and self.reference.value() > 0:
            return "gives the same numbers for everything"
        return None


def _cosine(reference: NDArray[np.generic], found: NDArray[np.generic]) -> NDArray[np.float64]:
    """Of the vectors along the last axis; two zeros are alike, one zero is like nothing."""
    exact, other = reference.astype(np.float64), found.astype(np.float64)
    lengths = np.linalg.norm(exact, axis=-1), np.linalg.norm(other, axis=-1)
    product = lengths[0] * lengths[1]
    both_zero = (lengths[0] == 0) & (lengths[1] == 0)
    inner = (exact * other).sum(-1)
    return np.asarray(np.where(product > 0, inner / np.where(product > 0, product, 1.0), both_zero))


def judge(
    losses: Mapping[str, Loss],
    output: str,
    drop: float | None,
    *,
    floor: float | None,
    made_up: bool = False,
    way: str = "",
) -> FloorReport:
    """Whether a result keeps enough to be written.

    Args:
        losses: of every output.
        output: the one that counts.
        drop: of accuracy by labels, where there are labels of classes.
        floor: the largest loss of that output; None for that of its kind.
        made_up: whether the samples are random numbers, of which far more lie between two answers.
        way: of running the model, where it is not the only one.
    """
    kind = Kind.LABELLED if drop is not None else losses[output].kind
    limit = FLOORS[kind] * (MADE_UP if made_up else 1) if floor is None else floor
    value = losses[output].value if drop is None else drop
    still = tuple(
        StandsStill(name, reason) for name, loss in losses.items() if (reason := loss.stands_still) is not None
    )
    total = losses[output].compared
    interval = wilson(round(min(1.0, max(0.0, value)) * total), total) if kind in SHARES and total else None
    resolution = None if interval is None else (interval.high - interval.low) / 2
    return FloorReport(output, kind.value, value, limit, still, resolution, way)


class HasReport(Protocol):
    """What the pipeline gives to the user."""

    @property
    def report(self) -> Report:
        """What is known of the compressed model."""
        ...


Result = TypeVar("Result", bound=HasReport)


def above_floor(result: Result) -> Result:
    """The result, if it keeps enough of the original.

    Raises:
        FloorError: it does not; the error has the result.
    """
    for found in result.report.verification.floors:
        if not found.kept:
            raise FloorError(found.sentence(), result=result)
    return result

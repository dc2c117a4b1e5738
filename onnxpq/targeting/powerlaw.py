"""What a model of another size is expected to lose, from those that were judged.

The drop is taken to grow like a power of the squared error that the layers bring into the output. Only guesses rest on
it: what is guessed is made and judged.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

POWERS: Final = (0.5, 1.0)
"""The power is between these: 1/2 where each error as large as the distance to the nearest other class counts, 1 where
errors in both directions cancel, and for squared errors."""

USUAL_POWER: Final = 0.75
"""The power where too few models say which."""

TELLING: Final = 0.03
"""Drops below this share of the limit do not count for the power: they are hardly more than their standard errors."""

APART: Final = 1.4
"""Costs that tell the power are at least this factor apart; what is nearer to a model tells no more than that one."""

LEAST: Final = 1e-3
"""Drops below this share of the limit count as this: zero has no logarithm."""

LEAST_LIMIT: Final = 1e-6
"""A limit below this counts as this."""

MOST: Final = 1e6
"""Drops above this count as this."""

SURE: Final = 0.9
"""Share of the limit that a model without training aims at: one that just misses tells less than one that just does."""

REST: Final = 0.6
"""The rest of the training is expected to lower the squared error by this power of the factor by which a brief one did.
It was .7 to 1.4 on MiniLM (three sizes), .6 on rapidocr."""

STEP: Final = 16.0
"""By what factor the cost may change from one trained model to the next: guesses do not reach farther."""

_NO_COST: Final = 1e-30


@dataclass(frozen=True)
class Seen:
    """A model that was judged.

    Attributes:
        cost: squared relative error of the output that its layouts are expected to bring.
        share: of the training that it had.
        drop: what it lost, with one standard error.
    """

    cost: float
    share: float
    drop: float


class PowerLaw:
    """The models that were judged, and where others are expected to meet a limit."""

    def __init__(self, limit: float) -> None:
        """Nothing is known yet.

        Args:
            limit: of the drop.
        """
        self.limit = max(limit, LEAST_LIMIT)
        self.seen: list[Seen] = []

    def add(self, cost: float, share: float, drop: float) -> None:
        """A model was judged; see `Seen`."""
        finite = drop if drop < MOST else MOST  # which is what NaN counts as, too
        self.seen.append(Seen(max(cost, _NO_COST), share, max(finite, LEAST * self.limit)))

    def recount(self, costs: Sequence[float]) -> None:
        """The costs of all models so far turned out to be these."""
        pairs = zip(self.seen, costs, strict=True)
        self.seen = [replace(entry, cost=max(cost, _NO_COST)) for entry, cost in pairs]

    def last(self, share: float) -> Seen | None:
        """The last one with so much of the training."""
        return next((entry for entry in reversed(self.seen) if entry.share == share), None)

    @property
    def power(self) -> float:
        """Of the squared error that the drop grows like, by the models without training."""
        told = [entry for entry in self._alone() if entry.drop > TELLING * self.limit]
        costs, drops = _logarithms(told)
        if len(told) < 2 or np.ptp(costs) < math.log(APART):
            return USUAL_POWER
        return float(np.clip(np.polyfit(costs, drops, 1)[0], *POWERS))

    def meeting(self, entry: Seen, share: float = 1.0) -> float:
        """The cost at which as much training is expected to end at a share of the limit."""
        return entry.cost * _step(self.room(entry, share))

    def room(self, entry: Seen, share: float = 1.0) -> float:
        """By what factor the cost may grow until the drop is a share of the limit; below 1, has to fall."""
        return float((share * self.limit / entry.drop) ** (1 / self.power))

    def untrained(self) -> float | None:
        """The cost that meets the limit without training: on the line between the two models next to it.

        None where none of them lost too much. Where the one that did not lost hardly anything, which tells nothing of
        where it begins to, it is where the power puts it from the other, or if that tells no more, half way.
        """
        met = [entry for entry in self._alone() if entry.drop <= self.limit]
        missed = [entry for entry in self._alone() if entry.drop > self.limit]
        if not met or not missed:
            return None
        below, above = max(met, key=_cost), min(missed, key=_cost)
        if below.drop < TELLING * self.limit:
            guess = self.meeting(above, SURE)
            return guess if guess > APART * below.cost else math.sqrt(below.cost * above.cost)
        costs, drops = _logarithms([below, above])
        return float(np.exp(np.interp(math.log(SURE * self.limit), drops, costs)))

    def trained(self, brief: Seen) -> float:
        """The cost that meets the limit after all of the training, from a brief one and what it brought."""
        gain = max(1.0, (self._lost(brief.cost) / brief.drop) ** (1 / self.power))
        return brief.cost * _step(self.room(brief) * gain**REST)

    def _lost(self, cost: float) -> float:
        """The drop without training: between two models on the line, beyond them by the power."""
        alone = sorted(self._alone(), key=_cost)
        costs, drops = _logarithms(alone)
        beyond = cost / min(max(cost, alone[0].cost), alone[-1].cost)
        return float(np.exp(np.interp(math.log(cost), costs, drops)) * beyond**self.power)

    def _alone(self) -> list[Seen]:
        return [entry for entry in self.seen if entry.share == 0]


def _step(factor: float) -> float:
    return min(STEP, max(1 / STEP, factor))


def _cost(entry: Seen) -> float:
    return entry.cost


def _logarithms(entries: Sequence[Seen]) -> NDArray[np.float64]:
    """Those of the costs and of the drops, [2, n]."""
    return np.log([[entry.cost for entry in entries], [entry.drop for entry in entries]])

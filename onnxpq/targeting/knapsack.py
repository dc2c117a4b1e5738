"""The best choice of one option per item for every number of bytes: a multiple-choice knapsack.

Dynamic programming over the items. Kept are all sums of bytes and cost that no other sum beats in both (Nemhauser and
Ullmann 1969); that is exact, and gives the answer for all numbers of bytes at once. Only where these are more than
`STATES` are they thinned, which loses less than 1/1000 of the bytes for each factor of 10 that they span.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxpq.errors import ConfigError

Bytes: TypeAlias = NDArray[np.int64]
Costs: TypeAlias = NDArray[np.float64]

STATES: Final = 2**14
"""Sums that are kept after each item."""


@dataclass(frozen=True, eq=False)
class _Step:
    """What one item added: for each state the state before it, and the option taken."""

    before: NDArray[np.intp]
    option: NDArray[np.intp]


class Frontier:
    """The choices that nothing beats in bytes and in cost.

    Attributes:
        bytes: [S], ascending.
        costs: [S], descending.
    """

    def __init__(self, items: Sequence[tuple[Sequence[int], Sequence[float]]], *, states: int = STATES) -> None:
        """Work out the frontier.

        Args:
            items: for each item the bytes and the costs of its options; both add up over the items.
            states: sums to keep after each item, at least 2.
        """
        self.bytes: Bytes = np.zeros(1, np.int64)
        self.costs: Costs = np.zeros(1)
        self._steps: list[_Step] = []
        for sizes, costs in items:
            if not len(sizes) == len(costs) > 0:
                raise ConfigError(f"An item has {len(sizes)} sizes and {len(costs)} costs; one each per option needed.")
            self._add(np.asarray(sizes, np.int64), np.asarray(costs, np.float64), states)

    def within(self, budget: float) -> int | None:
        """The state with the least cost of at most `budget` bytes; None where all take more."""
        count = int(np.searchsorted(self.bytes, budget, side="right"))
        return count - 1 if count else None

    def choice(self, state: int) -> list[int]:
        """The option of each item in a state."""
        picked = []
        for step in reversed(self._steps):
            picked.append(int(step.option[state]))
            state = int(step.before[state])
        return picked[::-1]

    def _add(self, sizes: Bytes, costs: Costs, states: int) -> None:
        total = (self.bytes[:, None] + sizes).ravel()
        cost = (self.costs[:, None] + costs).ravel()
        order = np.lexsort((cost, total))
        least = np.minimum.accumulate(cost[order])
        # What costs no less than something as small or smaller is beaten.
        kept = order[np.concatenate([[True], cost[order][1:] < least[:-1]])]
        kept = kept[_thinned(total[kept], states)]
        self.bytes, self.costs = total[kept], cost[kept]
        self._steps.append(_Step(kept // len(sizes), kept % len(sizes)))


def _thinned(sizes: Bytes, states: int) -> NDArray[np.intp]:
    """At most `states` of the states: the smallest one, and of those with nearly equal bytes the cheapest."""
    if len(sizes) <= states:
        return np.arange(len(sizes))
    scale = np.log(np.maximum(sizes, 1))
    slot = ((scale - scale[0]) / (scale[-1] - scale[0]) * (states - 2)).astype(np.int64)
    # They are in order of bytes, and so of falling cost: the last of a slot is its cheapest.
    last = np.flatnonzero(np.append(slot[1:] != slot[:-1], True))
    return last if last[0] == 0 else np.concatenate([[0], last])

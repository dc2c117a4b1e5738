"""The best layouts for any number of bytes, and the bytes that a target allows."""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np

from onnxpq.config import TargetConfig
from onnxpq.errors import TargetError
from onnxpq.pq import Layout
from onnxpq.quantization.sensitivity import Curve
from onnxpq.targeting.knapsack import Frontier

Layouts: TypeAlias = Mapping[str, Layout]

EXPECTED_POINTS: Final = 12
"""Points of the curve of what is expected."""


@dataclass(frozen=True)
class Plan:
    """A choice of layouts.

    Attributes:
        layouts: by weight name.
        layer_bytes: of all layers.
        cost: squared relative error of the output that is expected without training.
    """

    layouts: Layouts
    layer_bytes: int
    cost: float


class Planner:
    """The best layouts for any number of bytes."""

    def __init__(self, curves: Sequence[Curve], weigh: Callable[[Layouts], int]) -> None:
        """Work out the best choices.

        Args:
            curves: of all weights.
            weigh: bytes of the file with given layouts.
        """
        self._curves = curves
        self._frontier = Frontier([(curve.sizes, curve.final_costs) for curve in curves])
        self._weigh = weigh
        self.smallest, self.largest = self._plan(0), self._plan(len(self._frontier.bytes) - 1)
        self.overhead = weigh(self.smallest.layouts) - self.smallest.layer_bytes

    def file_bytes(self, plan: Plan) -> int:
        """Bytes of the file, exactly."""
        return self._weigh(plan.layouts)

    def within_layers(self, layer_bytes: float) -> Plan | None:
        """The least cost whose layers take at most so many bytes; None where there is nothing so small."""
        state = self._frontier.within(layer_bytes)
        return None if state is None else self._plan(state)

    def within_file(self, file_bytes: int) -> Plan | None:
        """The same for the whole file."""
        budget = file_bytes - self.overhead
        while (plan := self.within_layers(budget)) is not None:
            # Apart from the layers' bytes a file differs by the digits of their sizes: a few bytes.
            excess = self.file_bytes(plan) - file_bytes
            if excess <= 0:
                return plan
            budget = plan.layer_bytes - excess
        return None

    def with_cost(self, cost: float) -> Plan:
        """The fewest bytes that cost at most so much without training; the largest choice where none does.

        Nearly: what is best for the cost in the end need not be for that without training.
        """
        states = range(len(self._frontier.bytes))
        return self._plan(min(bisect.bisect_left(states, -cost, key=lambda at: -self._plan(at).cost), states[-1]))

    def costs(self, layouts: Layouts) -> dict[str, float]:
        """What each weight is expected to bring into the output without training, by name."""
        return {curve.weight: curve.costs[curve.layouts.index(layouts[curve.weight])] for curve in self._curves}

    def corrected(self, factors: Mapping[str, float]) -> "Planner":
        """The same for weights of which each brings in so many times what was expected, by name."""
        curves = [curve.scaled(factors[curve.weight]) for curve in self._curves]
        return Planner(curves, self._weigh)

    def expected(self) -> tuple[tuple[int, float], ...]:
        """Bytes of the file (up to a few) and relative error of the output, from the smallest choice to the largest."""
        sizes = np.geomspace(self.smallest.layer_bytes, self.largest.layer_bytes, EXPECTED_POINTS)
        states = {state for size in sizes if (state := self._frontier.within(round(float(size)))) is not None}
        plans = [self._plan(state) for state in sorted(states)]
        return tuple((self.overhead + plan.layer_bytes, math.sqrt(plan.cost)) for plan in plans)

    def _plan(self, state: int) -> Plan:
        options = self._frontier.choice(state)
        layouts = {curve.weight: curve.layouts[i] for curve, i in zip(self._curves, options, strict=True)}
        cost = sum(curve.costs[i] for curve, i in zip(self._curves, options, strict=True))
        return Plan(layouts, int(self._frontier.bytes[state]), cost)


def asked(target: TargetConfig, metric: str | None) -> str:
    """What a target asks for, in words."""
    parts = []
    if target.ratio is not None:
        parts.append(f"a file at least {target.ratio:g} times smaller")
    if target.fc_ratio is not None:
        parts.append(f"layers at least {target.fc_ratio:g} times smaller")
    if target.size is not None:
        parts.append(f"a file of at most {target.size:,} bytes")
    if target.max_drop is not None:
        share = f"at most {100 * target.max_drop:g} %"
        squared = {
            "mse": f"a squared error {share} higher",
            "relative mse": f"a squared error of {share} of the output's mean square",
        }
        parts.append(squared.get(str(metric), f"{metric} {share} lower"))
    return " and ".join(parts)


def limit(planner: Planner, target: TargetConfig, file_before: int, layers_before: int) -> Plan:
    """The best layouts of the bytes that a target allows; all bytes where it names none.

    Args:
        planner: of the model.
        target: the target.
        file_before: bytes of the original file.
        layers_before: bytes of its weights that are compressed.

    Raises:
        TargetError: it is out of reach; the message says what is possible.
    """
    if target.fc_ratio is not None:
        plan = planner.within_layers(layers_before / target.fc_ratio)
        best = f"the layers have {planner.smallest.layer_bytes:,} bytes, " + _times(
            layers_before, planner.smallest.layer_bytes
        )
    elif target.ratio is not None or target.size is not None:
        allowed = int(file_before / target.ratio) if target.ratio is not None else target.size or 0
        plan = planner.within_file(allowed)
        smallest = planner.file_bytes(planner.smallest)
        best = (
            f"the file has {smallest:,} bytes, {_times(file_before, smallest)}, of which {planner.overhead:,} are all "
            "that is not a compressed layer"
        )
    else:
        return planner.largest
    if plan is None:
        raise TargetError(
            f"Out of reach: {asked(TargetConfig(target.ratio, target.fc_ratio, target.size), None)}. With the smallest "
            f"codes for every layer {best}. Ask for less, or let more layers be compressed (--include, --exclude, "
            "--min-weights, --conv1x1, --tables)."
        )
    return plan


def _times(before: int, after: int) -> str:
    return f"{before / after:.2f} times smaller"

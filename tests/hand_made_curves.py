"""Weights whose curves are worked by hand: a layout stands for a number of bytes."""

from onnxpq.pq.layout import Layout
from onnxpq.quantization.sensitivity import Curve
from onnxpq.targeting.planning import Layouts, Planner

OVERHEAD = 1000
SIZES = (100, 200, 400, 800, 1600, 3200)


def layout(size: int) -> Layout:
    """A layout that stands for a number of bytes (its `in_features`)."""
    return Layout(1, size, 1, 16, 1)


def curve(name: str, influence: float = 1.0, gain: float = 1.0) -> Curve:
    """A weight whose error falls with the square of its bytes."""
    errors = tuple((SIZES[0] / size) ** 2 for size in SIZES)
    return Curve(name, tuple(map(layout, SIZES)), SIZES, errors, ((1.0, influence),), gain)


def layer_bytes(layouts: Layouts) -> int:
    return sum(entry.in_features for entry in layouts.values())


def weigh(layouts: Layouts) -> int:
    # The digits of the sizes differ by a few bytes.
    return OVERHEAD + layer_bytes(layouts) + sum(len(str(entry.in_features)) - 3 for entry in layouts.values())


def planner(*influences: float, gain: float = 1.0) -> Planner:
    return Planner([curve(f"W{i}", influence, gain) for i, influence in enumerate(influences or (0.01, 0.01))], weigh)

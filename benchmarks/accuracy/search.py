"""What the search for a drop costs and how near it comes, on models that only exist as formulas.

    python -m benchmarks search

A model has two weights whose squared errors fall with a power of their bytes; the drop grows with a power of their sum,
which a brief training divides by one number and the rest by another. The numbers are about those seen on real models.
Drops are off by a tenth at random, or known but for a standard error. Each line is the mean over twelve searches
(limits that are easy and hard to reach, three seeds): models made without training, with a brief one, with all of it,
and the bytes of the result over the fewest that would do, with the worst of the twelve.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from onnxpq.config.target import TargetConfig
from onnxpq.errors import TargetError
from onnxpq.pq.layout import Layout
from onnxpq.quantization.sensitivity import Curve
from onnxpq.support.figures import Interval
from onnxpq.targeting import searching
from onnxpq.targeting.planning import Layouts, Plan, Planner
from onnxpq.targeting.searching import Work
from onnxpq.verification.scoring import Drop

SIZES: Final = tuple(sorted({int(100 * 1.12**step) for step in range(40)}))
INFLUENCES: Final = (0.5, 0.1)
LIMIT: Final = 0.02
SCALES: Final = (0.05, 0.2, 1.0, 5.0)
"""The drop of a model whose squared error is 1."""

SEEDS: Final = 3


@dataclass(frozen=True)
class Law:
    """How a model behaves.

    Attributes:
        fall: the squared error falls with this power of the bytes.
        growth: the drop grows with this power of the squared error.
        brief: what a brief training divides the squared error by.
        rest: what the rest of the training divides it by.
        free: share of the squared error 1 that loses nothing.
    """

    fall: float
    growth: float
    brief: float
    rest: float
    free: float = 0.0


LAWS: Final = {
    "MiniLM, a twelfth": Law(3.8, 1.0, 1.2, 1.14),
    "MiniLM, a sixteenth": Law(3.8, 1.0, 1.2, 1.3),
    "rapidocr": Law(4.0, 0.6, 3.3, 2.1),
    "magika": Law(3.0, 0.75, 1.0, 1.0),
    "training does much": Law(3.0, 1.0, 6.0, 3.0),
    "training harms": Law(3.0, 0.75, 0.9, 0.8),
    "mnist_mlp": Law(3.0, 0.75, 1.0, 0.8, 0.02),
    "half of it is free": Law(3.0, 0.75, 1.2, 1.3, 0.05),
}


def squared_error(layouts: Layouts, law: Law) -> float:
    sizes = (layout.in_features for layout in layouts.values())
    return sum(influence * (SIZES[0] / size) ** law.fall for influence, size in zip(INFLUENCES, sizes, strict=True))


def drop(layouts: Layouts, share: float, law: Law, scale: float) -> float:
    gain = {0.0: 1.0, searching.BRIEF: law.brief, 1.0: law.brief * law.rest}[share]
    return scale * max(0.0, squared_error(layouts, law) / gain - law.free) ** law.growth


def planner(law: Law) -> Planner:
    layouts = tuple(Layout(1, size, 1, 16, 1) for size in SIZES)
    errors = tuple((SIZES[0] / size) ** law.fall for size in SIZES)
    curves = [
        Curve(f"W{at}", layouts, SIZES, errors, ((1.0, influence),), searching.TRAINING_GAIN)
        for at, influence in enumerate(INFLUENCES)
    ]
    return Planner(curves, lambda chosen: sum(layout.in_features for layout in chosen.values()))


def fewest(plans: Planner, law: Law, scale: float, error: float) -> Plan:
    """The smallest plan that keeps to the limit with the gains that training really brings."""
    shares = (0.0, searching.BRIEF, 1.0)
    size = float(plans.smallest.layer_bytes)
    while True:
        plan = plans.within_layers(size) or plans.largest
        if min(drop(plan.layouts, share, law, scale) for share in shares) + error <= LIMIT:
            return plan
        size += 1


def search(law: Law, scale: float, noise: float, error: float, seed: int) -> tuple[list[int], float] | None:
    """Models of each share of the training, and bytes over the fewest; None where nothing keeps to the limit."""
    plans, random, target = planner(law), np.random.default_rng(seed), TargetConfig(max_drop=LIMIT)

    def judge(made: tuple[Layouts, float]) -> Drop:
        value = drop(*made, law, scale) * math.exp(noise * random.standard_normal())
        return Drop("accuracy", Interval(value, value, value + 1.96 * error), 0.0, 100)

    work = Work(lambda layouts, share: (layouts, share), judge, True)
    try:
        found = searching.search(target, plans, lambda own: own.largest, work)
    except TargetError:
        return None
    counts = [sum(trial.trained == share for trial in found.trials) for share in (0.0, searching.BRIEF, 1.0)]
    least = fewest(plans, law, scale, error).layer_bytes
    return counts, found.trials[found.chosen].layer_bytes / least


def main() -> None:
    print("| model | off by | standard error | without training | brief | whole | bytes over the fewest | worst |")
    print("|---" * 8 + "|")
    for name, law in LAWS.items():
        for noise, error in ((0.0, 0.0), (0.1, 0.0), (0.1, 0.15)):
            runs = [search(law, scale, noise, error * LIMIT, seed) for seed in range(SEEDS) for scale in SCALES]
            counts, ratios = zip(*(run for run in runs if run is not None), strict=True)
            made = " | ".join(f"{count:.1f}" for count in np.mean(counts, 0))
            print(
                f"| {name} | {100 * noise:.0f} % | {100 * error:.0f} % of the limit | {made} | {np.mean(ratios):.2f} | "
                f"{max(ratios):.2f} |"
            )

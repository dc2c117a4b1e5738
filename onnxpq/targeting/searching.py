"""From a target to layouts: how large the result may be, what is tried in which order, and when it is good enough.

Nothing is compressed here: what makes a model and what judges it are passed in.
"""

import bisect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, TypeAlias, TypeVar

import numpy as np

from onnxpq.config import TargetConfig
from onnxpq.errors import TargetError
from onnxpq.pq import Layout
from onnxpq.quantization.sensitivity import Curve
from onnxpq.report import Trial
from onnxpq.targeting.knapsack import Frontier
from onnxpq.targeting.powerlaw import STEP, SURE, PowerLaw
from onnxpq.verification import Drop

Layouts: TypeAlias = Mapping[str, Layout]
Made = TypeVar("Made")

CLOSE: Final = 1.1
"""The search for the smallest file ends once layers of this times fewer bytes are known or expected to lose too much;
without training it makes sure."""

SCANS: Final = 4
"""Models that are made and judged without training before the first one is trained; without training, twice as many."""

TRAINING_GAIN: Final = 4.0
"""By what factor training is expected to lower the squared error that a layer brings into the output."""

TABLE_GAIN: Final = 2.0
"""The same of a table that is looked up: it is not trained, but the layers learn to do with what is left of it. The two
only set how bytes are shared between layers and tables. With 1 here MiniLM at a sixteenth of its file ends with a
relative error of .328, with 2 or 4 of .275 (one seed)."""

BRIEF: Final = 0.125
"""Share of a training that a brief one has."""

BRIEFS: Final = 3
"""Models that are trained briefly, at most, before the first one is trained wholly."""

BRIEF_GAIN: Final = 1.5
"""By what factor a brief training is expected to lower the squared error before one was seen to, which says where the
first one is: 1.2 on MiniLM, 1.0 on magika, 3.3 on rapidocr."""

NEAR: Final = 2.0
"""A model is near the limit where its squared error would have to change by at most this factor to meet it. A brief
training that is tells the size for a whole one."""

AIM: Final = 0.7
"""Share of the allowed drop that the next trial aims at."""

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


@dataclass(frozen=True, eq=False)
class Work(Generic[Made]):
    """What the search can do.

    Attributes:
        make: a model with given layouts after a share of the training: 0 is none, 1 all of it.
        judge: what it loses; None where there are no data to judge by.
        trains: whether there is training at all.
    """

    make: Callable[[Layouts, float], Made]
    judge: Callable[[Made], Drop] | None
    trains: bool


@dataclass
class Found(Generic[Made]):
    """What the search found.

    Attributes:
        made: the result.
        trials: all that was tried.
        chosen: index of the trial that gave the result.
        last: what the last trial lost; None where it was not judged.
    """

    made: Made
    trials: list[Trial] = field(default_factory=list)
    chosen: int = 0
    last: Drop | None = None


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


def limit(target: TargetConfig, planner: Planner, file_before: int, layers_before: int) -> Plan:
    """The best layouts of the bytes that a target allows; all bytes where it names none.

    Args:
        target: the target.
        planner: of the model.
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


def search(target: TargetConfig, planner: Planner, top: Plan, work: Work[Made]) -> Found[Made]:
    """Make models until one is what the target asks for.

    Where bytes are limited that is one model of all the bytes allowed. For `max_drop` alone some are made without
    training first: that tells whether the target can be reached, and a size at which it surely is. A few that are
    trained briefly tell what training is worth here. Then at most `attempts` are trained, each with as many bytes as
    the one before lets expect to suffice, and the smallest that kept to the limit is taken.

    Args:
        target: the target.
        planner: of the model.
        top: the best layouts of the bytes allowed, from `limit`.
        work: what can be done.

    Raises:
        TargetError: even with the most accurate codes for each layer the metric drops by more than allowed.
    """
    hunt = _Hunt(target, planner, work)
    if target.limits_bytes or work.judge is None:
        hunt.trial(top, 1.0 if work.trains else 0.0)
    elif not hunt.scan(SCANS if work.trains else 2 * SCANS):
        raise TargetError(_impossible(target, hunt.trials[-1], hunt.last))
    elif work.trains:
        hunt.train_briefly()
        hunt.train()
    return hunt.found()


def _impossible(target: TargetConfig, trial: Trial, drop: Drop | None) -> str:
    if drop is None:
        raise AssertionError("a drop is limited only where it can be judged")
    return (
        f"Out of reach: {asked(target, drop.metric)}. With the most accurate codes for every layer, in a file of "
        f"{trial.file_bytes:,} bytes, it loses {100 * drop.drop.value:.3g} % ({100 * drop.cautious:.3g} % with one "
        f"standard error) on {drop.samples} samples. Allow more, or leave layers alone with --exclude."
    )


class _Hunt(Generic[Made]):
    """The models tried so far, and what they say of the size that is needed."""

    def __init__(self, target: TargetConfig, planner: Planner, work: Work[Made]) -> None:
        self.target, self.planner, self.work = target, planner, work
        self.law = PowerLaw(math.inf if target.max_drop is None else target.max_drop)
        self.trials: list[Trial] = []
        self.last: Drop | None = None
        self.share = 0.0
        """Share of the training that models are given at present."""
        self.kept: tuple[Plan, int, Made] | None = None
        """The smallest that kept to the target, its trial and its model; before that, the last one tried."""

    def trial(self, plan: Plan, share: float) -> bool:
        """Make a model with a share of the training and judge it; whether it keeps to the target."""
        made = self.work.make(plan.layouts, share)
        self.last = None if self.work.judge is None else self.work.judge(made)
        limit = self.target.max_drop
        met = limit is None or (self.last is not None and self.last.cautious <= limit)
        self.trials.append(
            Trial(
                self.planner.file_bytes(plan),
                plan.layer_bytes,
                share,
                math.sqrt(plan.cost),
                None if self.last is None else self.last.relative_error,
                None if self.last is None else self.last.drop,
                met,
            )
        )
        if self.last is not None and limit is not None:
            self.law.add(plan.cost, share, self.last.cautious)
        if met or not self._does():
            self.kept = plan, len(self.trials) - 1, made
        return met

    @property
    def low(self) -> float:
        """Layers of so many bytes were too small with as much training, or are smaller than any."""
        missed = [trial.layer_bytes for trial in self.trials if trial.trained == self.share and not trial.met]
        return max(missed, default=self.planner.smallest.layer_bytes / CLOSE)

    def scan(self, count: int) -> bool:
        """Find the smallest that does without training, roughly where some are trained; whether any does.

        It begins where the squared error is expected to be as large as the drop may be.
        """
        plan: Plan | None = self.planner.with_cost(self.law.limit)
        while plan is not None and len(self.trials) < count:
            self.trial(plan, 0.0)
            plan = self._smaller() if self._does() else self._larger()
        if not self._does() and self.low < self.planner.largest.layer_bytes:
            self.trial(self.planner.largest, 0.0)
        return self._does()

    def _larger(self) -> Plan | None:
        """After one without training that lost too much, what is expected to do; after a bad guess the largest."""
        last = self.law.seen[-1]
        if self.low >= self.planner.largest.layer_bytes:
            return None
        guess = self.planner.with_cost(self.law.meeting(last, SURE))
        is_sound = len(self.trials) == 1 or self.law.room(last) >= 1 / NEAR
        return guess if is_sound and guess.layer_bytes > CLOSE * self.low else self.planner.largest

    def _smaller(self) -> Plan | None:
        """After one without training that did, what is expected to do just so; None where it saves next to nothing."""
        middle = self._between()
        if middle is None:
            return None
        cost = self.law.untrained()
        if cost is None:  # all did
            cost = self.law.meeting(self.law.seen[-1], SURE)
        plan = self.planner.with_cost(cost)
        if plan.layer_bytes <= CLOSE * self.low:
            plan = middle
        if self._saves(plan):
            return plan
        return None if self.work.trains else self._step_down()

    def train_briefly(self) -> None:
        """Train a few a little, beginning below the smallest that did without training, until one is near the limit."""
        self.share = BRIEF
        first = self.planner.with_cost(self._high().cost * BRIEF_GAIN)
        # Errors may grow by more than that from one choice to the next smaller one, which is tried then.
        plan = first if self._saves(first) else self._step_down()
        for _ in range(BRIEFS):
            if plan is None:
                return
            # What the training brings is seen beside the same codes without any, which cost little more.
            if not self._tried(plan, 0.0):
                self.trial(plan, 0.0)
            self.trial(plan, BRIEF)
            if 1 / NEAR <= self.law.room(self.law.seen[-1]) <= NEAR:
                return
            plan = self._next()

    def train(self) -> None:
        """Train models, beginning where the brief trainings let expect that the limit is just kept to."""
        self.share = 1.0
        safe = self._high()
        brief = self.law.last(BRIEF)
        guess = safe if brief is None else self.planner.with_cost(self.law.trained(brief))
        plan: Plan | None = guess if self._saves(guess) else safe
        for _ in range(self.target.attempts - 1):
            if plan is None:
                break
            self.trial(plan, 1.0)
            plan = self._next()
        if not any(trial.met for trial in self.trials if trial.trained == 1):
            # The last one is not beyond where less training did.
            plan = None if self._tried(safe, 1.0) else self._surely(safe)
        if plan is not None:
            self.trial(plan, 1.0)

    def found(self) -> Found[Made]:
        """The result."""
        if self.kept is None:
            raise AssertionError("search() makes at least one model")
        return Found(self.kept[2], self.trials, self.kept[1], self.last)

    def _does(self) -> bool:
        """Whether any kept to the target."""
        return self.kept is not None and self.trials[self.kept[1]].met

    def _tried(self, plan: Plan, share: float) -> bool:
        """Whether a model of this size had so much of the training."""
        return any((trial.layer_bytes, trial.trained) == (plan.layer_bytes, share) for trial in self.trials)

    def _high(self) -> Plan:
        """The smallest that did, or else the most accurate of all."""
        return self.kept[0] if self.kept is not None and self._does() else self.planner.largest

    def _between(self) -> Plan | None:
        """Half way between what was too small and what did; None where they are close."""
        high = self._high().layer_bytes
        if high / self.low < CLOSE:
            return None
        # Where there is nothing right below the middle, what there is above it.
        plans = (self.planner.within_layers(size) for size in (math.sqrt(high * self.low), high - 1))
        return next((plan for plan in plans if plan is not None and self.low < plan.layer_bytes < high), None)

    def _surely(self, safe: Plan) -> Plan:
        """Where the last one trained wholly lets expect that the limit is met with room; else what did with less."""
        last = self.law.last(1.0)
        guess = safe if last is None else self.planner.with_cost(self.law.meeting(last, AIM))
        return guess if self._saves(guess) else safe

    def _next(self) -> Plan | None:
        """Where the last drop says that the limit is met, with some room if there is any; inside of what is known."""
        middle, last = self._between(), self.law.seen[-1]
        if middle is None:
            return None
        for share in (AIM, 1.0):
            guess = self.planner.with_cost(self.law.meeting(last, share))
            if guess.layer_bytes > CLOSE * self.low and self._saves(guess):
                return guess
        if not self.trials[-1].met or self._saves(guess):
            return middle
        # Nothing much smaller is expected to do: the last one is near the limit, or there is nothing within a step.
        return self._step_down() if self.law.room(last) > STEP else None

    def _saves(self, plan: Plan) -> bool:
        """Whether it is much smaller than what did."""
        return plan.layer_bytes < self._high().layer_bytes / CLOSE

    def _step_down(self) -> Plan | None:
        """The best of what is much smaller than what did; None where that was too small, or nothing is."""
        plan = self.planner.within_layers(self._high().layer_bytes / CLOSE)
        return plan if plan is not None and plan.layer_bytes > CLOSE * self.low else None


def _times(before: int, after: int) -> str:
    return f"{before / after:.2f} times smaller"

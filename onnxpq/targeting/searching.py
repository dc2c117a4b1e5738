"""What is tried for a target, in which order, and when it is good enough.

Nothing is compressed here: what makes a model and what judges it are passed in.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Generic, TypeVar

from onnxpq.config import TargetConfig
from onnxpq.errors import TargetError
from onnxpq.report import Trial
from onnxpq.targeting.planning import Layouts, Plan, Planner, asked
from onnxpq.targeting.powerlaw import STEP, SURE, PowerLaw
from onnxpq.verification import Drop

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

TRUE: Final = 2.0
"""An error of the output of more than this times the expected one, before training, has its causes looked for."""

CORRECTIONS: Final = 2
"""How often layouts are chosen anew for that, at most."""


@dataclass(frozen=True, eq=False)
class Work(Generic[Made]):
    """What the search can do.

    Attributes:
        make: a model with given layouts after a share of the training: 0 is none, 1 all of it.
        judge: what it loses; None where there are no data to judge by.
        trains: whether there is training at all.
        trace: the squared relative error of the output that each weight of a model brings in alone, by name; None where
            that cannot be told.
    """

    make: Callable[[Layouts, float], Made]
    judge: Callable[[Made], Drop] | None
    trains: bool
    trace: Callable[[Made], Mapping[str, float]] | None = None


@dataclass
class Found(Generic[Made]):
    """What the search found.

    Attributes:
        made: the result.
        trials: all that was tried.
        chosen: index of the trial that gave the result.
        last: what the last trial lost; None where it was not judged.
        planner: with all that was learned.
        remarks: what turned out otherwise than expected, in whole sentences.
    """

    made: Made
    planner: Planner
    trials: list[Trial] = field(default_factory=list)
    chosen: int = 0
    last: Drop | None = None
    remarks: list[str] = field(default_factory=list)


def search(target: TargetConfig, planner: Planner, top: Callable[[Planner], Plan], work: Work[Made]) -> Found[Made]:
    """Make models until one is what the target asks for.

    Where bytes are limited that is one model of all the bytes allowed; before its training it is looked whether what it
    loses was to be expected. For `max_drop` alone some are made without
    training first: that tells whether the target can be reached, and a size at which it surely is. A few that are
    trained briefly tell what training is worth here. Then at most `attempts` are trained, each with as many bytes as
    the one before lets expect to suffice, and the smallest that kept to the limit is taken.

    Args:
        target: the target.
        planner: of the model.
        top: the best layouts of the bytes allowed, by what a planner expects.
        work: what can be done.

    Raises:
        TargetError: even with the most accurate codes for each layer the metric drops by more than allowed.
    """
    hunt = _Hunt(target, planner, work)
    if target.limits_bytes or work.judge is None:
        plan = hunt.confirm(top) if work.judge is not None else top(planner)
        if work.trains or work.judge is None:
            hunt.trial(plan, 1.0 if work.trains else 0.0)
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
        self.remarks: list[str] = []
        self.share = 0.0
        """Share of the training that models are given at present."""
        self.kept: tuple[Plan, int, Made] | None = None
        """The smallest that kept to the target, its trial and its model; before that, the last one tried."""
        self._judged: list[Plan] = []
        """Of what the power law knows."""

    def trial(self, plan: Plan, share: float) -> Made:
        """Make a model with a share of the training and judge it."""
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
            self._judged.append(plan)
        if met or not self._does():
            self.kept = plan, len(self.trials) - 1, made
        return made

    @property
    def low(self) -> float:
        """Layers of so many bytes were too small with as much training, or are smaller than any."""
        missed = [trial.layer_bytes for trial in self.trials if trial.trained == self.share and not trial.met]
        return max(missed, default=self.planner.smallest.layer_bytes / CLOSE)

    def confirm(self, choose: Callable[[Planner], Plan]) -> Plan:
        """Make a model without training, and choose anew while it errs more than expected; what errs least."""
        tried: list[tuple[float, Plan, tuple[Plan, int, Made] | None]] = []
        plan: Plan | None = choose(self.planner)
        while plan is not None:
            made = self.trial(plan, 0.0)
            error = None if self.last is None else self.last.relative_error
            tried.append((math.inf if error is None else error, plan, self.kept))
            is_wrong = len(tried) <= CORRECTIONS and self._learned(plan, made)
            plan = self._anew(plan, choose) if is_wrong else None
        _, best, kept = min(tried, key=lambda entry: entry[0])
        if self.target.max_drop is None:
            self.kept = kept
        return self._recounted(best)

    def _anew(self, before: Plan, choose: Callable[[Planner], Plan]) -> Plan | None:
        """Another choice than before; None where that is still the best one."""
        plan = choose(self.planner)
        if plan.layouts == before.layouts:
            self.remarks[-1] += " No other choice is expected to be better."
            return None
        self.remarks[-1] += " The layouts were chosen anew."
        return plan

    def _recounted(self, plan: Plan) -> Plan:
        """With the cost that is expected now."""
        return replace(plan, cost=sum(self.planner.costs(plan.layouts).values()))

    def _learned(self, plan: Plan, made: Made) -> bool:
        """Whether the last model erred more than expected; then what each weight brings in alone is expected of it."""
        error = None if self.last is None else self.last.relative_error
        if error is None or error <= TRUE * math.sqrt(plan.cost):
            return False
        costs = self.planner.costs(plan.layouts)
        found = {} if self.work.trace is None else self.work.trace(made)
        factors = {
            name: found[name] / cost if cost > 0 and found.get(name, 0) > 0 else 1.0 for name, cost in costs.items()
        }
        total = sum(costs[name] * factor for name, factor in factors.items())
        # Together they may bring in more than one by one.
        rest = max(1.0, error**2 / total) if total > 0 else 1.0
        worst = max(costs, key=lambda name: costs[name] * (factors[name] - 1))
        self.remarks.append(
            f"Before training, the error of the output was {error:.3g} where {math.sqrt(plan.cost):.3g} was expected: "
            f"weight '{worst}' brings in {math.sqrt(factors[worst] * rest):.2g} times what was expected of it."
        )
        self.planner = self.planner.corrected({name: factor * rest for name, factor in factors.items()})
        self._judged = [self._recounted(entry) for entry in self._judged]
        self.law.recount([entry.cost for entry in self._judged])
        if self.kept is not None:
            self.kept = self._recounted(self.kept[0]), *self.kept[1:]
        return True

    def scan(self, count: int) -> bool:
        """Find the smallest that does without training, roughly where some are trained; whether any does.

        It begins where the squared error is expected to be as large as the drop may be.
        """
        plan: Plan | None = self.planner.with_cost(self.law.limit)
        while plan is not None and len(self.trials) < count:
            made = self.trial(plan, 0.0)
            if len(self.remarks) < CORRECTIONS:
                self._learned(plan, made)
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
        return Found(self.kept[2], self.planner, self.trials, self.kept[1], self.last, self.remarks)

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

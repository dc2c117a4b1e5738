"""Training of a network whose layers are in some form: the comparators' share of what onnxpq does.

The loss (labels and distillation, as onnxpq's default), mixtures of samples, batch, optimizer, schedule and the choice
of the best epoch by mixtures of held-out images are onnxpq's own, so that what differs between methods is what they
store.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor

from benchmarks.paper.forms import Form
from benchmarks.paper.tasks import Task, batch
from onnxpq.config.settings import TrainingConfig
from onnxpq.graph.layers import Layer
from onnxpq.training import objectives
from onnxpq.training.objectives import Objective

TUNED_STEPS: Final = 4000
"""Steps for what begins at the trained network: what onnxpq takes by itself (`onnxpq.training.schedule.MANY_STEPS`)."""

SCRATCH_STEPS: Final = 8000
"""Steps for what begins at random weights."""

RATES: Final = {
    "svd": 1e-1,
    "kmeans": 3e-1,
    "residual": 1e-1,
    "pq": 1e-1,
    "dense": 1e-2,
    "sign": 3e-2,
    "hashed": 3e-1,
    "smaller": 3e-2,
}
"""Peak learning rate of each kind of form: the best of those tried, by `rates`; of a smaller dense network that of the
weights behind a sign, which are as many."""

OTHER_RATE: Final = TrainingConfig().learning_rate
"""That of biases, as in onnxpq."""

BATCH: Final = 256
MIXUP: Final = 1.0
"""Parameter of the Beta distribution by which images are mixed in pairs."""

WARM_UP: Final = 0.05
Term = Callable[[float], Tensor]
"""What is added to the loss, given the share of the steps that is done."""


@dataclass(frozen=True)
class Effort:
    """How long is trained.

    Attributes:
        tuned: steps from a trained network.
        scratch: steps from random weights.
        ours: steps of onnxpq; None for its default.
    """

    tuned: int = TUNED_STEPS
    scratch: int = SCRATCH_STEPS
    ours: int | None = None


FULL: Final = Effort()
QUICK: Final = Effort(tuned=60, scratch=120, ours=60)
NONE: Final = Effort(tuned=0, scratch=0, ours=0)


@dataclass(eq=False)
class Student:
    """What is trained.

    Attributes:
        task: the network.
        forms: of its layers, by weight name.
        others: constants of the head that are trained as they are (biases), by name.
    """

    task: Task
    forms: Mapping[str, Form]
    others: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, task: Task, forms: Mapping[str, Form]) -> "Student":
        """With the biases of the layers."""
        known = task.initializers()
        names = [layer.bias for layer in task.chain if layer.bias is not None]
        return cls(task, forms, {name: known[name].clone().requires_grad_() for name in names})

    def weights(self) -> dict[str, Tensor]:
        """The head's initializers."""
        layers = {layer.weight: layer for layer in self.task.chain}
        made = {name: _as_stored(form.matrix(), layers[name]) for name, form in self.forms.items()}
        return {**made, **self.others}

    def scores(self, features: Tensor) -> Tensor:
        """Class scores of some images."""
        task = self.task
        return task.head({task.feature: features}, weights=self.weights())[task.output]

    def parameters(self) -> list[Tensor]:
        """All that is trained."""
        return [*(p for form in self.forms.values() for p in form.parameters), *self.others.values()]


def _as_stored(matrix: Tensor, layer: Layer) -> Tensor:
    # Not `from_matrix`: a smaller network has other sizes than the layer.
    return matrix.T if layer.weight_is_in_out else matrix


def tune(
    student: Student, steps: int, *, rate: float, seed: int, term: Term | None = None, keep_best: bool = True
) -> None:
    """Train a student in place.

    Args:
        student: the network.
        steps: updates; none at all for 0.
        rate: peak learning rate of the forms' parameters.
        seed: of the order and the mixing of the samples.
        term: is added to the loss.
        keep_best: end at the epoch with the lowest loss on mixtures of held-out images (or where it began), not at the
            last one.
    """
    if steps == 0:
        return
    trainer = _Trainer(student, steps, rate, seed, term)
    best, kept = trainer.validate(), [value.detach().clone() for value in student.parameters()]
    for _ in trainer.epochs():
        if not keep_best:
            continue
        loss = trainer.validate()
        if loss < best:
            best, kept = loss, [value.detach().clone() for value in student.parameters()]
    if keep_best:
        with torch.no_grad():
            for value, own in zip(student.parameters(), kept, strict=True):
                value.copy_(own)


class _Trainer:
    def __init__(self, student: Student, steps: int, rate: float, seed: int, term: Term | None) -> None:
        self.student, self.steps, self.term = student, steps, term
        self.objective = _objective(student.task)
        self.random = np.random.default_rng(seed)
        forms = [p for form in student.forms.values() for p in form.parameters]
        self.rates = (rate, OTHER_RATE)
        groups = [{"params": forms, "lr": rate}, {"params": list(student.others.values()), "lr": OTHER_RATE}]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)

    def epochs(self) -> Iterator[None]:
        """Train; yields after each pass over the data."""
        rows = self.student.task.rows[0]
        size = min(BATCH, len(rows))
        step = 0
        while step < self.steps:
            order = self.random.permutation(rows)
            for start in range(0, len(order) - size + 1, size):
                if step == self.steps:
                    break
                self._step(step, order[start : start + size])
                step += 1
            yield

    def _step(self, step: int, index: np.ndarray) -> None:
        done = step / self.steps
        factor = min(1.0, (step + 1) / max(1.0, WARM_UP * self.steps)) * 0.5 * (1 + math.cos(math.pi * done))
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        mixture = _mixture(self.student.task, index, self.random)
        loss = mixture.loss(self.objective, self.student.scores(mixture.features))
        if self.term is not None:
            loss = loss + self.term(done)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def validate(self) -> float:
        """Mean loss on mixtures of the held-out images."""
        return _mean_loss(self.student, self.objective)


@dataclass(frozen=True, eq=False)
class _Mixture:
    """Images mixed in pairs (mixup).

    Attributes:
        features: [N, ...], mixed.
        teacher: [N, classes], the original's scores for them.
        labels: [N] of the images, and of those that they are mixed with.
        share: of each image's own.
    """

    features: Tensor
    teacher: Tensor
    labels: tuple[Tensor, Tensor]
    share: float

    def loss(self, objective: Objective, scores: Tensor) -> Tensor:
        own, other = (objective(scores, self.teacher, labels) for labels in self.labels)
        return self.share * own + (1 - self.share) * other


def _mixture(task: Task, index: np.ndarray, random: np.random.Generator, *, mixed: bool = True) -> _Mixture:
    features, labels = batch(task, index)
    share = float(random.beta(MIXUP, MIXUP)) if mixed else 1.0
    other = torch.from_numpy(random.permutation(len(labels)))
    blend = share * features + (1 - share) * features[other]
    with torch.no_grad():
        teacher = task.head({task.feature: blend})[task.output]
    return _Mixture(blend, teacher, (labels, labels[other]), share)


def held_out_loss(student: Student, *, mixed: bool = True) -> float:
    """Mean loss of a student on mixtures of the held-out images, or on the images as they are."""
    return _mean_loss(student, _objective(student.task), mixed=mixed)


def _objective(task: Task) -> Objective:
    """Onnxpq's default where there are labels."""
    return objectives.choose(TrainingConfig(), task.teacher, task.train[1])


@torch.no_grad()
def _mean_loss(student: Student, objective: Objective, *, mixed: bool = True) -> float:
    # The same mixtures each time. The networks know these images by heart, and on them as they are nothing is as good
    # as the original (`onnxpq.training.finetuning` compares states likewise).
    rows, total = student.task.rows[1], 0.0
    for number, part in enumerate(np.array_split(rows, max(1, len(rows) // 1024))):
        mixture = _mixture(student.task, part, np.random.default_rng(number), mixed=mixed)
        total += len(part) * float(mixture.loss(objective, student.scores(mixture.features)))
    return total / len(rows)

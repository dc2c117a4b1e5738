"""Fine-tuning: train the weights so that they quantize well, then tune what is stored.

The cost is ``task + features(t) * error of the layers' outputs + alpha(t) * sum over layers of R(W)``: features falls
to 0, alpha grows geometrically. Two phases share one schedule of the learning rate:

1. *regularized*. Float weights are trained under the term R. They begin at the codewords that the quantizer chose. The
   forward pass uses their quantized form and the gradient passes straight through to them (Bengio, Léonard, Courville
   2013), so codes move while the network learns to live with them. All that is stored learns too.
2. *tuned*. Codes stay; codebooks, scales, biases, and what normalizations scale and shift by are trained.

Weights are handled as ``W = s * u`` with s a scale per row and u of unit size, so that one learning rate fits weights
and codewords of every layer. The network's own parameters never change: they are the teacher, which also says what the
layers should give (Romero et al. 2015) and labels mixtures of samples (mixup, Zhang et al. 2018), so that training
never runs out of new ones. What was measured of each choice: benchmarks/README.md.
"""

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxpq.config import TrainingConfig
from onnxpq.data import Place
from onnxpq.errors import TrainingError
from onnxpq.graph import Layer
from onnxpq.network import Network
from onnxpq.pq.quantized import Quantized
from onnxpq.report import Epoch
from onnxpq.support import device as devices
from onnxpq.support import memory
from onnxpq.training import course as courses
from onnxpq.training import objectives
from onnxpq.training import schedule as schedules
from onnxpq.training.course import Course, Live
from onnxpq.training.objectives import Objective
from onnxpq.training.schedule import Schedule
from onnxpq.training.student import REGULARIZED, TUNED, Student
from onnxpq.workspace import Piece

Array: TypeAlias = NDArray[np.generic]
Progress: TypeAlias = Callable[[int, int], None]
Inputs: TypeAlias = dict[str, Tensor]

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises to its peak."""

LABELLED_RATE = 1.0
"""Learning rate of float weights, where there are labels, at least; in units of that of what is stored
(benchmarks/README.md)."""

UNLABELLED_MIXING = 0.5
"""Share of the batches that are mixed where no labels count; all are where they do (benchmarks/README.md)."""

VALIDATION_BATCHES = 4
"""Validation runs so many training batches at a time: it keeps no values for a gradient."""


LARGEST_TAUGHT: Final = 1e18
"""Of the original's outputs: the square of ten times as much leaves float32."""


class Batch(NamedTuple):
    """Some samples, where torch computes.

    Attributes:
        inputs: of the network, samples first.
        taught: what the original gets in their place.
        teacher: what the original makes of it.
        labels: if there are any.
    """

    inputs: Inputs
    taught: Inputs
    teacher: Tensor
    labels: Tensor | None


@dataclass(frozen=True, eq=False)
class Problem:
    """What is trained.

    Attributes:
        network: the imported model, which is also the teacher, but for `originals`.
        layers: the layers to train; several may share a weight.
        output: the network's output that the loss looks at.
        vectors: names of initializers that are trained along: biases, scales and shifts of normalizations.
        fixed_batch: the number of samples that the network takes at a time; None for any.
        places: where the samples lie in the network's inputs and in the output; along axis 0 in what is not named.
        objective: the loss; None for what the settings and the labels ask for.
        originals: initializers of the network that have other values in the original, by name, and those values.
        whole: whether it takes whole calls, one at a time and as they are.
    """

    network: Network
    layers: Sequence[Layer]
    output: str
    vectors: Sequence[str] = ()
    fixed_batch: int | None = None
    places: Mapping[str, Place] = field(default_factory=dict)
    objective: Objective | None = None
    originals: Mapping[str, Array] = field(default_factory=dict)
    whole: bool = False

    def run(self, inputs: Inputs, weights: Mapping[str, Tensor], keep: Collection[str] = ()) -> dict[str, Tensor]:
        """What the network gives: inputs and `output` have the samples first, values to `keep` are as they are.

        Of a whole call all is as it is.
        """
        if self.whole:
            return dict(self.network(inputs, weights=weights, keep=keep))
        given = {name: self._place(name).to_model(value) for name, value in inputs.items()}
        found: dict[str, Tensor] = dict(self.network(given, weights=weights, keep=keep))
        found[self.output] = self._place(self.output).to_front(found[self.output])
        return found

    def _place(self, name: str) -> Place:
        return self.places.get(name, Place())


@dataclass(frozen=True, eq=False)
class Samples:
    """Some rows of a data set: what the network is given, what the original makes of it, and labels if there are any.

    The arrays hold the whole data set and may be memory-mapped; only batches are copied.

    Attributes:
        inputs: of the network, [N, ...] by name.
        teacher: the original's output, [N, ...].
        labels: [N, ...], if there are any.
        rows: which of them.
        taught: what the original is given; None where that is `inputs`. What comes before the network may be compressed
            already.
        whole: whether they are whole calls: all arrays then are [N] objects, and labels have the form of `teacher`.
    """

    inputs: Mapping[str, Array]
    teacher: Array
    labels: Array | None
    rows: NDArray[np.intp]
    taught: Mapping[str, Array] | None = None
    whole: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, index: NDArray[np.intp]) -> list[Batch]:
        """The rows at `index`: together, or whole calls one by one."""
        rows = np.sort(self.rows[index])
        return [self._taken(row) for row in rows] if self.whole else [self._taken(rows)]

    def _taken(self, rows: "NDArray[np.intp] | np.intp") -> Batch:
        device = devices.best()

        def taken(array: Array) -> Tensor:
            picked = array[rows]
            # A call's array is the user's own, and may be read-only.
            return torch.from_numpy(np.array(picked) if self.whole else picked).to(device)

        inputs = {name: taken(array) for name, array in self.inputs.items()}
        taught = inputs if self.taught is None else {name: taken(array) for name, array in self.taught.items()}
        return Batch(inputs, taught, taken(self.teacher), None if self.labels is None else taken(self.labels))


@dataclass(frozen=True, eq=False)
class Finetuned:
    """The outcome.

    Attributes:
        quantized: by weight name.
        values: trained initializers other than the weights, by name.
        describe: what was minimised.
        before: validation loss of the original.
        start: validation loss after product quantization alone.
        best: validation loss of what is returned; never above `start`.
        schedule: batch size and steps, as planned.
        epochs: the history.
    """

    quantized: dict[str, Quantized]
    values: dict[str, NDArray[np.float32]]
    describe: str
    before: float
    start: float
    best: float
    schedule: Schedule
    epochs: tuple[Epoch, ...]


def finetune(  # noqa: PLR0913 -- what a caller may leave out, by keyword
    problem: Problem,
    quantized: Mapping[str, Quantized],
    data: tuple[Samples, Samples],
    settings: TrainingConfig,
    *,
    seed: int,
    share: float = 1.0,
    progress: Progress | None = None,
    piece: Piece | None = None,
) -> Finetuned:
    """Train a network with quantized layers; on a GPU where torch has one, and there the network stays.

    Args:
        problem: the network and its layers.
        quantized: where to start, by weight name.
        data: samples to train on, and samples to choose the best epoch by.
        settings: see `TrainingConfig`.
        seed: of the order and the mixing of the samples.
        share: of the steps that the settings give.
        progress: is told the steps that are done and their number.
        piece: where the state is saved from time to time, to go on from it, and the outcome.

    Returns:
        The state after the epoch with the lowest validation loss; that before training if none was lower.

    Raises:
        TrainingError: the loss became NaN or infinite.
        ConfigError, DataError: labels and loss do not fit.
    """
    train, validation = data
    piece = piece or Piece()
    objective = problem.objective or objectives.choose(settings, *_for_all(train))
    problem.network.to(devices.best())
    student = Student(problem.network, problem.layers, quantized, problem.vectors)
    trainer = _Trainer(problem, student, objective, settings, seed)
    schedule = trainer.plan(train, validation, share)
    course = trainer.course
    if (kept := courses.resume(piece, trainer.live())) is not None:
        student.kept = kept
    else:
        course.before = trainer.validate(validation, original=True)
        course.start = course.best = trainer.validate(validation)
        student.keep()
    for epoch in () if course.finished else trainer.epochs(train, validation, progress, piece):
        course.epochs.append(epoch)
        if epoch.validation < course.best:
            student.keep()
            course.best, course.stale = epoch.validation, 0
        elif epoch.phase == TUNED:
            # The first phase is no place to stop: while alpha grows and codes move its loss goes up and down.
            course.stale += 1
        if course.stale >= settings.patience:
            break
    if not course.finished:
        course.finished = True
        courses.save(piece, trainer.live(), student.kept)
    epochs = tuple(course.epochs)
    mixed = trainer.compares_mixtures(validation.batches(np.arange(1))[0])
    describe = objective.describe + (", of samples mixed in pairs" if mixed else "")
    return Finetuned(*student.kept, describe, course.before, course.start, course.best, schedule, epochs)


def _for_all(samples: Samples) -> tuple[Array, Array | None]:
    """What the original gives, and the labels, for all samples; of whole calls as rows of one array."""
    if not samples.whole:
        return samples.teacher, samples.labels
    labels = None if samples.labels is None else objectives.rows_of_calls(samples.labels, samples.teacher)
    return objectives.rows_of_calls(samples.teacher, samples.teacher), labels


def _diverged(loss: float, teacher: Tensor, output: str, settings: TrainingConfig) -> TrainingError:
    """Why a loss is no number: the original's own outputs may be none, or too large to be squared."""
    if not bool(teacher.isfinite().all()):
        return TrainingError(
            f"The original model's value '{output}' holds NaN or infinite numbers on the training data, so that there "
            "is nothing to learn from it. Leave out the samples that cause them."
        )
    largest = float(teacher.double().abs().max())
    if largest > LARGEST_TAUGHT:
        return TrainingError(
            f"The original model's value '{output}' reaches {largest:.1e} on the training data, and float32 does not "
            f"hold its square: at most {LARGEST_TAUGHT:.0e} can be learned. Compress without training (--epochs 0), or "
            "scale the weights that it is computed by."
        )
    return TrainingError(
        f"The training loss became {loss}: the weights ran away. Lower --learning-rate ({settings.learning_rate:g}) or "
        f"--alpha ({settings.final_alpha:g})."
    )


class _Trainer:
    """The loop: batches, schedules, two optimizers."""

    def __init__(
        self, problem: Problem, student: Student, objective: Objective, settings: TrainingConfig, seed: int
    ) -> None:
        self.problem, self.student, self.objective, self.settings = problem, student, objective, settings
        self.random = np.random.default_rng(seed)
        self.stored = torch.optim.AdamW(student.stored(), weight_decay=0.0)
        groups = [
            {"params": [latent], "share": self._latent_rate(student.distances[name])}
            for name, latent in student.latent.items()
        ]
        self.latent = torch.optim.AdamW(groups, weight_decay=0.0)
        self.features = problem.network.outputs_of({layer.node for layer in problem.layers})
        self.originals = {
            name: torch.from_numpy(array).to(problem.network.parameter(name))
            for name, array in problem.originals.items()
        }
        self.course = Course()
        self.schedule = Schedule(1, 0, 1, 0)
        self.mixing = UNLABELLED_MIXING if objective.supervised is None else 1.0  # share of the batches

    def live(self) -> Live:
        """All that changes from step to step."""
        tensors = [*self.student.stored(), *self.student.latent.values()]
        return Live(self.course, self.student.quantized, tensors, (self.stored, self.latent), self.random)

    def plan(self, train: Samples, validation: Samples, share: float) -> Schedule:
        """Batch size and steps (`onnxpq.training.schedule.plan`); nothing is changed by it."""

        def work(batches: Sequence[Batch]) -> None:
            other = _Trainer(self.problem, self.student, self.objective, self.settings, 0)
            other.mixing = 1.0  # which takes longest
            for batch in batches:
                loss, _ = other.loss(batch, REGULARIZED, self.settings.features)
                if loss.requires_grad:
                    loss.backward()  # type: ignore[no-untyped-call]
            self.student.nearest(0)

        sizes = len(train), len(validation)
        self.schedule = schedules.plan(
            self.settings,
            sizes,
            self.problem.fixed_batch,
            lambda size: schedules.count(partial(work, train.batches(np.arange(size) % len(train)))),
            share,
        )
        self.forget_gradients()
        memory.give_back()
        return self.schedule

    def forget_gradients(self) -> None:
        """Free what the last step left."""
        self.stored.zero_grad()
        self.latent.zero_grad()

    def epochs(self, train: Samples, validation: Samples, progress: Progress | None, piece: Piece) -> Iterator[Epoch]:
        """Train, a round of the schedule at a time, from where the course is."""
        schedule, course = self.schedule, self.course
        total, round_ = schedule.steps, schedule.round
        for start in range(course.step - course.step % round_, total, round_):
            phase = REGULARIZED if start < schedule.regularized else TUNED
            if course.order is None:
                if start == schedule.regularized:
                    # Where the first phase found nothing better than product quantization alone, that is what is tuned.
                    self.student.restore()
                course.order = self._order(len(train), min(round_, total - start))
                course.losses = 0.0
            for step, index in enumerate(course.order[course.step - start :], start=course.step):
                if piece.due():
                    courses.save(piece, self.live(), self.student.kept)
                self._set_rates(step, total)
                course.losses += self._step(step, train.batches(index), phase)
                course.step = step + 1
                if progress is not None:
                    progress(course.step, total)
            alpha, steps = self._alpha_at(course.step - 1), len(course.order)
            course.order = None
            yield Epoch(phase, course.losses / steps, self.validate(validation), alpha)

    def _order(self, samples: int, steps: int) -> NDArray[np.intp]:
        """Samples of each step, [steps, batch]: the whole set again and again, in another order each time."""
        size = steps * self.schedule.batch
        passes = [self.random.permutation(samples) for _ in range(-(-size // samples))]
        return np.concatenate(passes)[:size].reshape(steps, self.schedule.batch)

    def _alpha_at(self, step: int) -> float:
        """alpha(t): geometric growth to its final value, then none."""
        if step >= self.schedule.regularized:
            return 0.0
        done = step / max(1, self.schedule.regularized - 1)
        return float(self.settings.final_alpha * self.settings.alpha_growth ** (done - 1))

    def _set_rates(self, step: int, total: int) -> None:
        """Linear warm-up, then a cosine to zero."""
        factor = min(1.0, (step + 1) / max(1.0, WARM_UP * total)) * 0.5 * (1 + math.cos(math.pi * step / total))
        peak = self.settings.learning_rate * factor
        for optimizer in (self.stored, self.latent):
            for group in optimizer.param_groups:
                group["lr"] = peak * group.get("share", 1.0)

    def _latent_rate(self, distance: float) -> float:
        """Learning rate of a layer's float weights, in units of that of what is stored.

        Args:
            distance: relative squared error of the layer's weight when it was quantized.
        """
        # Where the weights are far off, codes have a long way to go; where they are near, moves are noise, if all that
        # is wanted is what the original gives. Labels may want more than it gives: then float weights learn as well
        # as those of an uncompressed network do at this rate (`benchmarks/paper/tuning.py`, `RATES`).
        rate = self.settings.latent_rate * distance
        is_free = self.objective.supervised is not None and rate > 0
        return max(rate, LABELLED_RATE) if is_free else rate

    def _step(self, step: int, batches: Sequence[Batch], phase: str) -> float:
        """One update; the loss of the output alone."""
        alpha, share = self._alpha_at(step), 1 - step / self.schedule.steps
        # Before anything is computed: gradients take as much memory as the weights.
        self.forget_gradients()
        if phase == REGULARIZED:
            self.student.reassign(step)
        mean, is_reached = 0.0, False
        for batch in batches:
            loss, task = self.loss(batch, phase, share * self.settings.features)
            value = float(task)
            if not math.isfinite(value):
                raise _diverged(value, batch.teacher, self.problem.output, self.settings)
            mean += value / len(batches)
            if loss.requires_grad:  # else the batch took the branch of an If that has none of the layers
                (loss / len(batches)).backward()  # type: ignore[no-untyped-call]
                is_reached = True
        if not is_reached and alpha == 0:
            return mean
        if alpha > 0:
            # A layer at a time: together they would take as much memory as the weights again.
            for term in self.student.terms(self.settings.regularizer):
                (alpha * term).backward()  # type: ignore[no-untyped-call]
        self.stored.step()
        if phase == REGULARIZED:
            self.latent.step()
        return mean

    def loss(self, batch: Batch, phase: str, features: float) -> tuple[Tensor, Tensor]:
        """The cost of a batch without the term, and the part of it that looks at the output.

        Args:
            batch: samples.
            phase: of the training.
            features: weight of the error of the layers' outputs.
        """
        kept = self.features if features > 0 else ()
        mixture = self._mixture(batch, self.random)
        original = self._original(mixture, kept) if mixture.is_mixed or kept else {}
        teacher = original.get(self.problem.output, batch.teacher)
        found = self.problem.run(mixture.batch.inputs, self.student.weights(phase), kept)
        loss = mixture.loss(self.objective, found[self.problem.output], teacher)
        value = loss.detach()
        for name in kept:
            loss = loss + features / len(kept) * objectives.relative_error(found[name], original[name])
        return loss, value

    def _can_mix(self, batch: Batch) -> bool:
        if self.problem.whole:
            return False
        return self.settings.mixup > 0 and all(value.is_floating_point() for value in batch.inputs.values())

    def compares_mixtures(self, batch: Batch) -> bool:
        """Whether states are compared by mixtures of such samples: see `validate`."""
        return self.objective.supervised is not None and batch.labels is not None and self._can_mix(batch)

    def _mixture(self, batch: Batch, random: np.random.Generator) -> "_Mixture":
        """Samples mixed in pairs where that is asked for and their inputs are numbers, else as they are.

        Of several batches, as many as `mixing` says.
        """
        if not self._can_mix(batch) or (self.mixing < 1 and random.random() >= self.mixing):
            return _Mixture(batch)
        share = float(random.beta(self.settings.mixup, self.settings.mixup))
        other = torch.from_numpy(random.permutation(len(batch.teacher)))
        inputs, taught = (_mixed(values, share, other) for values in (batch.inputs, batch.taught))
        return _Mixture(batch._replace(inputs=inputs, taught=taught), share, other)

    @torch.no_grad()
    def _original(self, mixture: "_Mixture", kept: Collection[str] = ()) -> dict[str, Tensor]:
        """What the original makes of samples, with the values `kept`."""
        return self.problem.run(mixture.batch.taught, self.originals, kept)

    @torch.no_grad()
    def validate(self, samples: Samples, *, original: bool = False) -> float:
        """Mean loss of the quantized network, or of the original.

        Where labels count it is that of mixtures, the same ones each time: a network that was trained on these very
        samples has them by heart, so that on them as they are no other one is as good, and nothing that training finds
        would be kept (`docs/evaluation.md`).
        """
        weights = self.originals if original else self.student.weights(TUNED)
        size = self.problem.fixed_batch or VALIDATION_BATCHES * self.schedule.batch
        total = 0.0
        for start in range(0, len(samples), size):
            index = np.arange(start, min(start + size, len(samples)))
            count = len(index)
            if self.problem.fixed_batch is not None:
                index = np.pad(index, (0, size - count), mode="edge")
            for batch in samples.batches(index):
                mixes = self.compares_mixtures(batch)
                mixture = self._mixture(batch, np.random.default_rng(start)) if mixes else _Mixture(batch)
                teacher = self._original(mixture)[self.problem.output] if mixture.is_mixed else batch.teacher
                inputs = mixture.batch.taught if original else mixture.batch.inputs
                scores = self.problem.run(inputs, weights)[self.problem.output]
                if samples.whole:
                    total += float(mixture.loss(self.objective, scores, teacher))
                else:
                    total += count * float(mixture.loss(self.objective, scores, teacher, count))
        return total / len(samples)


@dataclass(frozen=True, eq=False)
class _Mixture:
    """Samples, of which each may be mixed with another one (mixup).

    Attributes:
        batch: the samples, with mixed inputs.
        share: of each sample's own.
        other: the samples that they are mixed with; None where they are as they were.
    """

    batch: Batch
    share: float = 1.0
    other: Tensor | None = None

    @property
    def is_mixed(self) -> bool:
        return self.other is not None

    def loss(self, objective: Objective, scores: Tensor, teacher: Tensor, count: int | None = None) -> Tensor:
        """Of the first `count` samples; labels count in proportion."""
        labels = self.batch.labels
        loss = objective(scores[:count], teacher[:count], None if labels is None else labels[:count])
        if self.other is None or labels is None:
            return loss
        others = objective(scores[:count], teacher[:count], labels[self.other][:count])
        return self.share * loss + (1 - self.share) * others


def _mixed(values: Inputs, share: float, other: Tensor) -> Inputs:
    return {name: share * value + (1 - share) * value[other] for name, value in values.items()}

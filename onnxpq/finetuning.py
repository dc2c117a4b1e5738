"""Fine-tuning: train the weights so that they quantize well, then tune what is stored.

The cost is ``task + alpha(t) * sum over layers of R(W)``, alpha growing geometrically. Two phases share one schedule of
the learning rate:

1. *regularized*. The float weights are trained under the term R. The forward pass uses their quantized form and the
   gradient passes straight through to them (Bengio, Léonard, Courville 2013), so codes move while the network learns to
   live with them. Codebooks and scales learn too.
2. *tuned*. Codes stay; codebooks, scales and biases are trained.

Weights are handled as ``W = s * u`` with s a scale per row and u of unit size, so that one learning rate fits weights
and codewords of every layer. The network's own parameters never change: they are the teacher, which also labels
mixtures of samples (mixup, Zhang et al. 2018), so that training never runs out of new ones. What was measured of each
choice: benchmarks/README.md.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxpq import course as courses
from onnxpq import device as devices
from onnxpq import objectives
from onnxpq.config import TrainingConfig
from onnxpq.course import Course, Kept, Live
from onnxpq.errors import TrainingError
from onnxpq.layers import Layer
from onnxpq.network import Network
from onnxpq.objectives import Objective
from onnxpq.pq import codec
from onnxpq.pq.matrix import from_matrix, to_matrix
from onnxpq.pq.quantized import Quantized
from onnxpq.regularizers import BINARY_TERMS, binary_term, codebook_term
from onnxpq.report import Epoch
from onnxpq.workspace import Piece

Array: TypeAlias = NDArray[np.generic]
Progress: TypeAlias = Callable[[int, int], None]
Batch: TypeAlias = tuple[dict[str, Tensor], Tensor, Tensor | None]

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises to its peak."""

VALIDATION_BATCHES = 4
"""Validation runs so many training batches at a time: it keeps no values for a gradient."""

COMPARED = 32
"""Codewords that a sub-vector is compared with per step, on average. With more of them only some rows are re-assigned
in a step, all in turn: codes that are a few steps old train as well, and comparing all took half of the time."""

REGULARIZED, TUNED = "regularized", "tuned"


@dataclass(frozen=True, eq=False)
class Problem:
    """What is trained.

    Attributes:
        network: the imported model, which is also the teacher.
        layers: the layers to train; several may share a weight.
        output: the network's output that the loss looks at.
        fixed_batch: the number of samples that the network takes at a time; None for any.
        objective: the loss; None for what the settings and the labels ask for.
    """

    network: Network
    layers: Sequence[Layer]
    output: str
    fixed_batch: int | None = None
    objective: Objective | None = None


@dataclass(frozen=True, eq=False)
class Samples:
    """Some rows of a data set: what the network is given, what the original makes of it, and labels if there are any.

    The arrays hold the whole data set and may be memory-mapped; only batches are copied.
    """

    inputs: Mapping[str, Array]
    teacher: Array
    labels: Array | None
    rows: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, index: NDArray[np.intp]) -> Batch:
        """Inputs, teacher's output and labels of the rows at `index`, where torch computes."""
        rows, device = np.sort(self.rows[index]), devices.best()
        inputs = {name: torch.from_numpy(array[rows]).to(device) for name, array in self.inputs.items()}
        labels = None if self.labels is None else torch.from_numpy(self.labels[rows]).to(device)
        return inputs, torch.from_numpy(self.teacher[rows]).to(device), labels


@dataclass(frozen=True, eq=False)
class Finetuned:
    """The outcome.

    Attributes:
        quantized: by weight name.
        values: trained initializers other than the weights (biases), by name.
        describe: what was minimised.
        before: validation loss of the original.
        start: validation loss after product quantization alone.
        best: validation loss of what is returned; never above `start`.
        epochs: the history.
    """

    quantized: dict[str, Quantized]
    values: dict[str, NDArray[np.float32]]
    describe: str
    before: float
    start: float
    best: float
    epochs: tuple[Epoch, ...]


def finetune(
    problem: Problem,
    quantized: Mapping[str, Quantized],
    data: tuple[Samples, Samples],
    settings: TrainingConfig,
    *,
    seed: int,
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
    objective = problem.objective or objectives.choose(settings, train.teacher, train.labels)
    problem.network.to(devices.best())
    student = _Student(problem, quantized)
    trainer = _Trainer(problem, student, objective, settings, seed)
    course = trainer.course
    if (kept := courses.resume(piece, trainer.live())) is not None:
        student.kept = kept
    else:
        course.before = trainer.validate(validation, weights={})
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
    return Finetuned(*student.kept, objective.describe, course.before, course.start, course.best, epochs)


class _Student:
    """The trained tensors of all layers, and the initializers that they stand for."""

    def __init__(self, problem: Problem, quantized: Mapping[str, Quantized]) -> None:
        self.layers = {layer.weight: layer for layer in problem.layers}
        self.quantized = dict(quantized)
        self.log_scales: dict[str, Tensor] = {}
        self.latent: dict[str, Tensor] = {}
        self.shapes: dict[str, torch.Size] = {}
        names = dict(problem.network.named_initializers())
        biases = {layer.bias for layer in problem.layers if layer.bias is not None} & names.keys() - self.layers.keys()
        self.kept: Kept = ({}, {})
        self.biases = {name: names[name].detach().clone().requires_grad_() for name in sorted(biases)}
        for name, part in self.quantized.items():
            layer, weight = self.layers[name], names[name].detach()
            self.shapes[name] = weight.shape
            matrix = to_matrix(weight, layer.in_features, is_in_out=layer.weight_is_in_out)
            scales = part.scales.to(weight.device)
            codes = part.codes.to(weight.device, copy=True)  # they change in place
            self.log_scales[name] = scales.log().requires_grad_()
            self.latent[name] = (matrix / scales.unsqueeze(1)).contiguous().requires_grad_()
            codebooks = part.codebooks.to(weight.device, copy=True).requires_grad_()
            self.quantized[name] = Quantized(part.layout, codebooks, codes, scales)

    def stored(self) -> list[Tensor]:
        """What the file will hold: codebooks, scales, biases."""
        return [*(q.codebooks for q in self.quantized.values()), *self.log_scales.values(), *self.biases.values()]

    def units(self, name: str) -> Tensor:
        """The quantized matrix [out, in] with rows of unit size."""
        part = self.quantized[name]
        return codec.decode(part.codebooks, part.codes, torch.ones_like(part.scales), part.layout)

    def weights(self, phase: str) -> dict[str, Tensor]:
        """The network's initializers in their quantized form; regularized, gradients pass to the latent weights."""
        tensors: dict[str, Tensor] = dict(self.biases)
        for name in self.quantized:
            unit = self.units(name)
            if phase == REGULARIZED:
                latent = self.latent[name]
                unit = unit + (latent - latent.detach())
            matrix = unit * self.log_scales[name].exp().unsqueeze(1)
            tensors[name] = from_matrix(matrix, self.shapes[name], is_in_out=self.layers[name].weight_is_in_out)
        return tensors

    @torch.no_grad()
    def reassign(self, step: int) -> None:
        """Give sub-vectors of the latent weights their nearest codewords: those of every n-th row, from `step` on."""
        for name, part in self.quantized.items():
            layout = part.layout
            turns = max(1, min(layout.codewords // COMPARED, layout.out_features))
            rows = slice(step % turns, None, turns)
            latent, codes = self.latent[name][rows], part.codes[rows]
            codes.copy_(codec.assign(latent, part.codebooks, replace(layout, out_features=len(codes))))

    def term(self, regularizer: str) -> Tensor:
        """The regularization term, summed over the layers."""
        total = torch.zeros(())
        for name, latent in self.latent.items():
            if regularizer in BINARY_TERMS:
                total = total + binary_term(regularizer, latent)
            else:
                total = total + codebook_term(latent, self.units(name).detach())
        return total

    @torch.no_grad()
    def keep(self) -> None:
        """Keep a copy, on the CPU, of the present state of all that the file will hold."""
        quantized = {}
        for name, part in self.quantized.items():
            codebooks = part.codebooks.detach().to("cpu", copy=True)
            codes, scales = part.codes.to("cpu", copy=True), self.log_scales[name].detach().exp().cpu()
            quantized[name] = Quantized(part.layout, codebooks, codes, scales)
        self.kept = quantized, {name: value.detach().cpu().numpy().copy() for name, value in self.biases.items()}

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to the state that was kept last."""
        quantized, biases = self.kept
        for name, part in quantized.items():
            self.quantized[name].codebooks.copy_(part.codebooks)
            self.quantized[name].codes = part.codes.to(self.quantized[name].codes.device, copy=True)
            self.log_scales[name].copy_(part.scales.log())
        for name, value in biases.items():
            self.biases[name].copy_(torch.from_numpy(value))


class _Trainer:
    """The loop: batches, schedules, two optimizers."""

    def __init__(
        self, problem: Problem, student: _Student, objective: Objective, settings: TrainingConfig, seed: int
    ) -> None:
        self.problem, self.student, self.objective, self.settings = problem, student, objective, settings
        self.random = np.random.default_rng(seed)
        self.stored = torch.optim.AdamW(student.stored(), weight_decay=0.0)
        self.latent = torch.optim.AdamW(student.latent.values(), weight_decay=0.0)
        self.alpha = settings.final_alpha
        self.course = Course()

    def live(self) -> Live:
        """All that changes from step to step."""
        tensors = [*self.student.stored(), *self.student.latent.values()]
        return Live(self.course, self.student.quantized, tensors, (self.stored, self.latent), self.random)

    def epochs(self, train: Samples, validation: Samples, progress: Progress | None, piece: Piece) -> Iterator[Epoch]:
        """Train, an epoch at a time, from where the course is."""
        size = self.problem.fixed_batch or min(self.settings.batch_size, len(train))
        # The samples left over differ from epoch to epoch.
        steps = max(1, len(train) // size)
        count = self.settings.epochs_for(steps)
        total, regularized = steps * count, steps * round(count * self.settings.regularized)
        course = self.course
        for start in range(course.step - course.step % steps, total, steps):
            phase = REGULARIZED if start < regularized else TUNED
            if course.order is None:
                if start == regularized:
                    # Where the first phase found nothing better than product quantization alone, that is what is tuned.
                    self.student.restore()
                rows = np.resize(self.random.permutation(len(train)), steps * size)
                course.order, course.losses = rows.reshape(steps, size), 0.0
            alpha = 0.0
            for step, index in enumerate(course.order[course.step - start :], start=course.step):
                if piece.due():
                    courses.save(piece, self.live(), self.student.kept)
                self._set_rates(step, total)
                alpha = self._alpha_at(step / max(1, regularized - 1)) if phase == REGULARIZED else 0.0
                course.losses += self._step(step, train.batch(index), phase, alpha)
                course.step = step + 1
                if progress is not None:
                    progress(course.step, total)
            course.order = None
            yield Epoch(phase, course.losses / steps, self.validate(validation), alpha)

    def _alpha_at(self, done: float) -> float:
        """alpha(t): geometric growth to its final value."""
        return float(self.alpha * self.settings.alpha_growth ** (done - 1))

    def _set_rates(self, step: int, total: int) -> None:
        """Linear warm-up, then a cosine to zero."""
        factor = min(1.0, (step + 1) / max(1.0, WARM_UP * total)) * 0.5 * (1 + math.cos(math.pi * step / total))
        peak = self.settings.learning_rate * factor
        for optimizer, rate in ((self.stored, peak), (self.latent, peak * self.settings.latent_rate)):
            for group in optimizer.param_groups:
                group["lr"] = rate

    def _step(self, step: int, batch: Batch, phase: str, alpha: float) -> float:
        """One update; the loss without the term."""
        inputs, teacher, labels = batch
        other, share = None, 1.0
        if self.settings.mixup > 0 and all(value.is_floating_point() for value in inputs.values()):
            share = float(self.random.beta(self.settings.mixup, self.settings.mixup))
            other = torch.from_numpy(self.random.permutation(len(teacher)))
            inputs, teacher = self._mixed(inputs, other, share)
        if phase == REGULARIZED:
            self.student.reassign(step)
        scores = self.problem.network(inputs, weights=self.student.weights(phase))[self.problem.output]
        loss = self.objective(scores, teacher, labels)
        if other is not None and labels is not None:
            loss = share * loss + (1 - share) * self.objective(scores, teacher, labels[other])
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"The training loss became {value}: the weights ran away. Lower --learning-rate "
                f"({self.settings.learning_rate:g}) or --alpha ({self.alpha:g})."
            )
        if alpha > 0:
            loss = loss + alpha * self.student.term(self.settings.regularizer)
        self.stored.zero_grad()
        self.latent.zero_grad()
        if not loss.requires_grad:  # the batch took the branch of an If that has none of the layers
            return value
        loss.backward()  # type: ignore[no-untyped-call]
        self.stored.step()
        if phase == REGULARIZED:
            self.latent.step()
        return value

    @torch.no_grad()
    def _mixed(self, inputs: Mapping[str, Tensor], other: Tensor, share: float) -> tuple[dict[str, Tensor], Tensor]:
        """Mixtures of the samples in pairs, and what the original model makes of them."""
        mixed = {name: share * value + (1 - share) * value[other] for name, value in inputs.items()}
        return mixed, self.problem.network(mixed)[self.problem.output]

    @torch.no_grad()
    def validate(self, samples: Samples, *, weights: Mapping[str, Tensor] | None = None) -> float:
        """Mean loss of the quantized network (of the original for ``weights={}``)."""
        chosen = self.student.weights(TUNED) if weights is None else weights
        size = self.problem.fixed_batch or VALIDATION_BATCHES * self.settings.batch_size
        total = 0.0
        for start in range(0, len(samples), size):
            index = np.arange(start, min(start + size, len(samples)))
            count = len(index)
            if self.problem.fixed_batch is not None:
                index = np.pad(index, (0, size - count), mode="edge")
            inputs, teacher, labels = samples.batch(index)
            scores = self.problem.network(inputs, weights=chosen)[self.problem.output][:count]
            total += count * float(self.objective(scores, teacher[:count], None if labels is None else labels[:count]))
        return total / len(samples)

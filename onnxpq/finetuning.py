"""Fine-tuning: train the weights so that they quantize well, then tune what is stored.

The cost is ``task + alpha(t) * sum over layers of R(W)``, alpha growing geometrically. Two phases, one learning-rate schedule:

1. *regularized*. The float weights are trained under the term R. The forward pass uses their quantized form and the
   gradient passes straight through to them (Bengio, Léonard, Courville 2013), so that codes move while the
   network learns to live with them; codebooks and scales learn too.
2. *tuned*. Codes stay; codebooks, scales and biases are trained.

Weights are handled as ``W = s * u`` with s a scale per row and u of unit size, so one learning rate fits the weights and the codewords
of every layer. The network's own parameters are never changed: they are the teacher.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxpq import objectives
from onnxpq.config import TrainingConfig
from onnxpq.errors import TrainingError
from onnxpq.layers import Layer
from onnxpq.network import Network
from onnxpq.objectives import Objective
from onnxpq.pq import codec, kmeans
from onnxpq.pq.quantized import Quantized
from onnxpq.regularizers import BINARY_TERMS, binary_term, codebook_term
from onnxpq.report import Epoch

Array: TypeAlias = NDArray[np.generic]
Progress: TypeAlias = Callable[[int, int], None]

WARM_UP = 0.05
"""Share of the steps in which the learning rate rises to its peak."""

VALIDATION_BATCH = 1024


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

    def batch(self, index: NDArray[np.intp]) -> tuple[dict[str, Tensor], Tensor, Tensor | None]:
        """Inputs, teacher's output and labels of the rows at `index`."""
        rows = np.sort(self.rows[index])
        inputs = {name: torch.from_numpy(array[rows]) for name, array in self.inputs.items()}
        return inputs, torch.from_numpy(self.teacher[rows]), None if self.labels is None else torch.from_numpy(self.labels[rows])


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


class _Student:
    """The trained tensors of all layers, and the initializers that they stand for."""

    def __init__(self, network: Network, layers: Sequence[Layer], quantized: Mapping[str, Quantized]) -> None:
        self.layers = {layer.weight: layer for layer in layers}
        self.quantized = dict(quantized)
        self.log_scales: dict[str, Tensor] = {}
        self.latent: dict[str, Tensor] = {}
        names = dict(network.named_initializers())
        biases = {layer.bias for layer in layers if layer.bias is not None} & names.keys() - self.layers.keys()
        self.biases = {name: names[name].detach().clone().requires_grad_() for name in sorted(biases)}
        for name, start in self.quantized.items():
            weight = names[name].detach()
            matrix = weight.T if self.layers[name].weight_is_in_out else weight
            self.log_scales[name] = start.scales.log().requires_grad_()
            self.latent[name] = (matrix / start.scales.unsqueeze(1)).contiguous().requires_grad_()
            self.quantized[name] = Quantized(
                start.layout, start.codebooks.clone().requires_grad_(), start.codes, start.scales
            )

    def stored(self) -> list[Tensor]:
        """What the file will hold: codebooks, scales, biases."""
        return [*(q.codebooks for q in self.quantized.values()), *self.log_scales.values(), *self.biases.values()]

    def weights(self, mode: str) -> dict[str, Tensor]:
        """Initializers of the quantized network, [out, in] turned to how the file has them."""
        tensors: dict[str, Tensor] = dict(self.biases)
        for name in self.quantized:
            if mode == "float":
                unit = self.latent[name]
            else:
                unit = self.units(name)
            if mode == "straight-through":
                latent = self.latent[name]
                unit = unit + (latent - latent.detach())
            matrix = unit * self.log_scales[name].exp().unsqueeze(1)
            tensors[name] = matrix.T if self.layers[name].weight_is_in_out else matrix
        return tensors

    def units(self, name: str) -> Tensor:
        """The quantized matrix with unscaled rows."""
        part = self.quantized[name]
        return codec.decode(part.codebooks, part.codes, torch.ones_like(part.scales), part.layout)

    @torch.no_grad()
    def reassign(self) -> None:
        """Give each sub-vector of the latent weights its nearest codeword."""
        for name, part in self.quantized.items():
            part.codes = codec.assign(self.latent[name], part.codebooks, torch.ones_like(part.scales), part.layout)

    @torch.no_grad()
    def refit(self) -> None:
        """Move each codeword to the mean of the latent sub-vectors that it stands for (a Lloyd step)."""
        for name, part in self.quantized.items():
            points = codec.split(self.latent[name], part.layout)
            weights = codec.point_weights(self.log_scales[name].exp().square(), part.layout)
            index = codec.to_index(part.codes, part.layout)
            part.codebooks.copy_(kmeans.update(points, weights, index, part.codebooks))

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
    def snapshot(self) -> tuple[dict[str, Quantized], dict[str, NDArray[np.float32]]]:
        """A copy of the present state."""
        quantized = {
            name: Quantized(
                part.layout, part.codebooks.detach().clone(), part.codes.clone(), self.log_scales[name].detach().exp()
            )
            for name, part in self.quantized.items()
        }
        return quantized, {name: value.detach().numpy().copy() for name, value in self.biases.items()}


def finetune(
    network: Network,
    layers: Sequence[Layer],
    quantized: Mapping[str, Quantized],
    data: tuple[Samples, Samples],
    settings: TrainingConfig,
    *,
    output: str,
    seed: int,
    fixed_batch: int | None = None,
    progress: Progress | None = None,
) -> Finetuned:
    """Train a network with quantized layers.

    Args:
        network: the imported model, which is also the teacher.
        layers: the layers to train; several may share a weight.
        quantized: where to start, by weight name.
        data: samples to train on, and samples to choose the best epoch by.
        settings: see `TrainingConfig`.
        output: the network's output that the loss looks at.
        seed: of the order of the samples.
        fixed_batch: the number of samples that the network takes at a time, None for any.
        progress: is told the steps that are done and their number.

    Raises:
        TrainingError: the loss became NaN or infinite.
        ConfigError, DataError: labels and loss do not fit.
    """
    train, validation = data
    objective = objectives.choose(settings, train.teacher, train.labels)
    if validation.labels is not None:
        objectives.choose(settings, validation.teacher, validation.labels)
    student = _Student(network, layers, quantized)
    trainer = _Trainer(network, student, objective, settings, output, fixed_batch)
    start = trainer.validate(validation)
    best, kept, stale = start, student.snapshot(), 0
    history: list[Epoch] = []
    for epoch in trainer.epochs(train, validation, seed, progress):
        history.append(epoch)
        if epoch.validation < best:
            best, kept, stale = epoch.validation, student.snapshot(), 0
        else:
            stale += 1
        # The first phase is no place to stop: while alpha grows and codes move its loss goes up and down.
        if stale >= settings.patience and epoch.phase == "tuned":
            break
    before = trainer.validate(validation, weights={})
    return Finetuned(kept[0], kept[1], objective.describe, before, start, best, tuple(history))


class _Trainer:
    """The loop: batches, schedules, two optimizers."""

    def __init__(
        self, network: Network, student: _Student, objective: Objective, settings: TrainingConfig, output: str, fixed_batch: int | None
    ) -> None:
        self.fixed_batch = fixed_batch
        self.network, self.student, self.objective, self.settings = network, student, objective, settings
        self.output = output
        self.mode = "straight-through" if settings.straight_through else "float"
        self.stored = torch.optim.AdamW(student.stored(), lr=settings.learning_rate, weight_decay=0.0)
        self.latent = torch.optim.AdamW(
            student.latent.values(), lr=settings.learning_rate * settings.latent_rate, weight_decay=0.0
        )

    def epochs(
        self, train: Samples, validation: Samples, seed: int, progress: Progress | None
    ) -> Iterator[Epoch]:
        """Train, an epoch at a time."""
        order = np.random.default_rng(seed)
        size = self.fixed_batch or min(self.settings.batch_size, len(train))
        # The samples left over differ from epoch to epoch.
        steps = max(1, len(train) // size)
        epochs = self.settings.epochs_for(steps)
        total = steps * epochs
        regularized = steps * round(epochs * self.settings.regularized)
        for start in range(0, total, steps):
            first = start < regularized
            losses, alpha = 0.0, 0.0
            rows = order.permutation(len(train))
            for number in range(steps):
                step = start + number
                self._set_rates(step, total)
                alpha = self._alpha(step / max(1, regularized - 1)) if first else 0.0
                index = np.resize(rows, max(size, len(rows)))[number * size : (number + 1) * size]
                losses += self._step(train.batch(index), alpha=alpha, first=first, order=order)
                if progress is not None:
                    progress(step + 1, total)
            yield Epoch("regularized" if first else "tuned", losses / steps, self.validate(validation), alpha)

    def _alpha(self, done: float) -> float:
        """alpha(t): geometric growth to its final value."""
        return self.settings.alpha * self.settings.alpha_growth ** (done - 1)

    def _set_rates(self, step: int, total: int) -> None:
        done = step / total
        factor = min(1.0, (step + 1) / max(1.0, WARM_UP * total)) * 0.5 * (1 + math.cos(math.pi * done))
        for optimizer, peak in ((self.stored, 1.0), (self.latent, self.settings.latent_rate)):
            for group in optimizer.param_groups:
                group["lr"] = self.settings.learning_rate * peak * factor

    def _step(
        self,
        batch: tuple[dict[str, Tensor], Tensor, Tensor | None],
        *,
        alpha: float,
        first: bool,
        order: np.random.Generator,
    ) -> float:
        inputs, teacher, labels = batch
        if self.settings.mixup > 0:
            inputs, teacher = self._mix(inputs, order)
            labels = None
        if first:
            self.student.reassign()
            if self.mode == "float": self.student.refit()
        outputs = self.network(inputs, weights=self.student.weights(self.mode if first else "quantized"))
        loss = self.objective(outputs[self.output], teacher, labels)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"The training loss became {value}. The weights are not finite any more: lower --learning-rate "
                f"({self.settings.learning_rate:g}) or --alpha ({self.settings.alpha:g})."
            )
        if first and alpha > 0 and self.settings.regularizer != "none":
            loss = loss + alpha * self.student.term(self.settings.regularizer)
        self.stored.zero_grad()
        self.latent.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.stored.step()
        if first:
            self.latent.step()
        return value

    @torch.no_grad()
    def _mix(self, inputs: Mapping[str, Tensor], order: np.random.Generator) -> tuple[dict[str, Tensor], Tensor]:
        share = float(order.beta(self.settings.mixup, self.settings.mixup))
        other = torch.from_numpy(order.permutation(len(next(iter(inputs.values())))))
        mixed = {name: share * value + (1 - share) * value[other] for name, value in inputs.items()}
        return mixed, self.network(mixed)[self.output]

    @torch.no_grad()
    def validate(self, samples: Samples, *, weights: Mapping[str, Tensor] | None = None) -> float:
        """Mean loss of the quantized network (of the original for ``weights={}``)."""
        chosen = self.student.weights("quantized") if weights is None else weights
        total = 0.0
        size = self.fixed_batch or VALIDATION_BATCH
        for start in range(0, len(samples), size):
            index = np.arange(start, min(start + size, len(samples)))
            count = len(index)
            if self.fixed_batch is not None:
                index = np.pad(index, (0, size - count), mode="edge")
            inputs, teacher, labels = samples.batch(index)
            scores = self.network(inputs, weights=chosen)[self.output][:count]
            total += count * float(self.objective(scores, teacher[:count], None if labels is None else labels[:count]))
        return total / len(samples)

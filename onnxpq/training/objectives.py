"""What fine-tuning minimises, apart from the regularization term: labels, the original model's outputs, or both."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from onnxpq.config import TrainingConfig
from onnxpq.errors import ConfigError, DataError
from onnxpq.verification import IGNORED, are_probabilities, check_classes, check_numbers, is_one_hot, is_scores

_SAMPLE = 4096
"""Rows of the original's output that tell its kind and its variance."""

_SMALLEST = 1e-12
"""Probabilities are raised to this before their logarithm is taken."""


@dataclass(frozen=True)
class Objective:
    """A loss for one output of the network.

    Attributes:
        describe: what is minimised, in words.
        supervised: (output, labels) -> scalar; None without labels.
        distilled: (output, the original's output) -> scalar.
        share: of `distilled` where there are labels.
        has_classes: whether labels are numbers of classes, one for each row of scores.
    """

    describe: str
    supervised: Callable[[Tensor, Tensor], Tensor] | None
    distilled: Callable[[Tensor, Tensor], Tensor]
    share: float
    has_classes: bool = False

    def __call__(self, output: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """The loss of a batch; without labels it is distillation alone. What is labelled `IGNORED` does not count."""
        if self.supervised is None or labels is None:
            return self.distilled(output, teacher)
        if self.has_classes and bool((shown := labels.long() != IGNORED).logical_not().any()):
            if not bool(shown.any()):
                return output.sum() * 0
            output, teacher, labels = output[shown], teacher[shown], labels[shown]
        if self.share == 0:
            return self.supervised(output, labels)
        return self.share * self.distilled(output, teacher) + (1 - self.share) * self.supervised(output, labels)


def choose(settings: TrainingConfig, teacher: NDArray[np.generic], labels: NDArray[np.generic] | None) -> Objective:
    """The objective that the settings, the original's outputs and the labels ask for.

    Class scores (there are integer labels, or the outputs are probabilities) are distilled by the Kullback-Leibler
    divergence of softened distributions (Hinton, Vinyals, Dean 2015), numbers by their squared error relative to the
    variance. Without labels nothing tells whether several columns are scores or numbers: the sum of both is taken,
    which the original's own output minimises in either case.

    Args:
        settings: loss, share of distillation, temperature.
        teacher: the original's output for the training samples, [N, ...].
        labels: [N, ...] or None.

    Raises:
        ConfigError: the loss asked for needs labels that are not there, or scores that the output does not hold.
        DataError: labels of another shape than the output needs, or out of range.
    """
    loss = _resolve(settings.loss, labels)
    probabilities = are_probabilities(teacher[:_SAMPLE])
    logits: Callable[[Tensor], Tensor] = _log if probabilities else _same
    if loss == "cross-entropy" and labels is not None:
        _check_scores(labels, teacher)
        divergence = _divergence(settings.temperature, logits)
        name = _describe("cross-entropy", settings)
        return Objective(name, _cross_entropy(logits), divergence, settings.distillation, has_classes=True)
    divergence, squared = _divergence(settings.temperature, logits), _squared(_variance(teacher))
    if loss == "mse" and labels is not None:
        check_numbers(labels, teacher)
        distilled = divergence if probabilities else squared
        return Objective(_describe("squared error", settings), squared, distilled, settings.distillation)
    if probabilities:
        return Objective("distillation from the original model", None, divergence, 1.0)
    distilled = _sum(squared, divergence) if is_scores(teacher) else squared
    return Objective("distillation from the original model", None, distilled, 1.0)


def relative_squared_error(teacher: NDArray[np.generic]) -> Objective:
    """The squared error of a layer's outputs, relative to their variance.

    Args:
        teacher: the original layer's outputs, [rows, ...].
    """
    describe = "relative squared error of the layer's outputs"
    return Objective(describe, None, _squared(_variance(teacher)), 1.0)


def rows_of_calls(values: NDArray[np.generic], outputs: NDArray[np.generic]) -> NDArray[np.generic]:
    """Values of whole calls as rows of one array: [rows, C], or [rows] of labels and where C differs.

    Args:
        values: of each call.
        outputs: what the original gives in them. Labels of another form have a row for each of its rows.
    """
    widths = {output.shape[-1] for output in outputs if is_scores(output)}
    width = next(iter(widths)) if len(widths) == 1 and all(map(is_scores, outputs)) else None
    is_wide = width is not None and all(
        value.shape == output.shape for value, output in zip(values, outputs, strict=True)
    )
    return np.concatenate([value.reshape((-1, width) if is_wide else -1) for value in values])


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """Mean squared error of a batch of values [N, ..., features], relative to their features' mean variance in it."""
    rows = wanted.reshape(-1, wanted.shape[-1])
    spread = (rows - rows.mean(0)).square().mean()
    return (found - wanted).square().mean() / spread.clamp_min(_SMALLEST)


def _resolve(loss: str, labels: NDArray[np.generic] | None) -> str:
    if loss == "auto":
        if labels is None:
            return "distillation"
        return "cross-entropy" if np.issubdtype(labels.dtype, np.integer) else "mse"
    if loss != "distillation" and labels is None:
        raise ConfigError(
            f"Loss '{loss}' needs labels, and the data has none. Name their key with --labels, or leave --loss."
        )
    return loss


def _describe(loss: str, settings: TrainingConfig) -> str:
    share = settings.distillation
    return loss if share == 0 else f"{1 - share:g} {loss} + {share:g} distillation from the original model"


def _check_scores(labels: NDArray[np.generic], scores: NDArray[np.generic]) -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        what = "numbers of classes are expected: give labels.argmax(-1)" if is_one_hot(labels) else "use --loss mse"
        raise DataError(
            f"Cross-entropy needs integer class labels; found {labels.dtype}{list(labels.shape)}"
            f"{', which are one-hot' if is_one_hot(labels) else ''}: {what}."
        )
    if not is_scores(scores):
        raise ConfigError(
            f"Cross-entropy needs an output of class scores [N, ..., C]; found shape "
            f"{[len(labels), *scores.shape[1:]]}. Name another output with --output-name, or use --loss mse."
        )
    check_classes(labels, scores)


def _same(scores: Tensor) -> Tensor:
    return scores


def _log(scores: Tensor) -> Tensor:
    return scores.clamp_min(_SMALLEST).log()


def _cross_entropy(logits: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(output: Tensor, labels: Tensor) -> Tensor:
        scores = logits(output)
        return functional.cross_entropy(scores.reshape(-1, scores.shape[-1]), labels.reshape(-1).long())

    return loss


def _divergence(temperature: float, logits: Callable[[Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(output: Tensor, teacher: Tensor) -> Tensor:
        ours = functional.log_softmax(logits(output).flatten(0, -2) / temperature, -1)
        theirs = functional.log_softmax(logits(teacher).flatten(0, -2) / temperature, -1)
        # T^2 keeps the size of the gradient when the temperature changes (Hinton et al. 2015, section 2).
        return temperature**2 * functional.kl_div(ours, theirs, reduction="batchmean", log_target=True)

    return loss


def _sum(*losses: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(output: Tensor, teacher: Tensor) -> Tensor:
        return torch.stack([part(output, teacher) for part in losses]).sum()

    return loss


def _variance(teacher: NDArray[np.generic]) -> float:
    """Mean over the output's entries of their variance over the samples."""
    some = teacher[:_SAMPLE].astype(np.float64)
    # Outputs may be empty in all samples.
    return max(float(some.var(axis=0).mean()), 1e-12) if some.size else 1e-12


def _squared(variance: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output - target.reshape(output.shape).to(output.dtype)).square().mean() / variance

    return loss

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
from onnxpq.metrics import is_scores

PROBABILITY_TOLERANCE = 1e-3
"""Rows of scores that sum to 1 within this, none being negative, are probabilities."""

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
    """

    describe: str
    supervised: Callable[[Tensor, Tensor], Tensor] | None
    distilled: Callable[[Tensor, Tensor], Tensor]
    share: float

    def __call__(self, output: Tensor, teacher: Tensor, labels: Tensor | None) -> Tensor:
        """The loss of a batch; without labels it is distillation alone."""
        if self.supervised is None or labels is None:
            return self.distilled(output, teacher)
        if self.share == 0:
            return self.supervised(output, labels)
        return self.share * self.distilled(output, teacher) + (1 - self.share) * self.supervised(output, labels)


def choose(settings: TrainingConfig, teacher: NDArray[np.generic], labels: NDArray[np.generic] | None) -> Objective:
    """The objective that the settings, the original's outputs and the labels ask for.

    Class scores (there are integer labels, or the outputs are probabilities) are distilled by the Kullback-Leibler
    divergence of softened distributions (Hinton, Vinyals, Dean 2015); any other output by its squared error relative to its variance.

    Args:
        settings: loss, share of distillation, temperature.
        teacher: the original's output for the training samples, [N, ...].
        labels: [N, ...] or None.

    Raises:
        ConfigError: the loss asked for needs labels that are not there, or scores that the output does not hold.
        DataError: labels of another shape than the output needs, or out of range.
    """
    loss = _resolve(settings.loss, labels)
    probabilities = _are_probabilities(teacher)
    logits: Callable[[Tensor], Tensor] = _log if probabilities else _same
    if loss == "cross-entropy":
        assert labels is not None  # _resolve has refused it
        _check_classes(labels, teacher)
        divergence = _divergence(settings.temperature, logits)
        return Objective(_describe("cross-entropy", settings), _cross_entropy(logits), divergence, settings.distillation)
    variance = max(float(np.var(teacher[:4096], axis=0, dtype=np.float64).mean()), 1e-12)
    distilled = _divergence(settings.temperature, logits) if probabilities else _squared(variance)
    if loss == "mse":
        assert labels is not None  # _resolve has refused it
        _check_numbers(labels, teacher)
        return Objective(_describe("squared error", settings), _squared(variance), distilled, settings.distillation)
    return Objective("distillation from the original model", None, distilled, 1.0)


def _resolve(loss: str, labels: NDArray[np.generic] | None) -> str:
    if loss == "auto":
        if labels is None:
            return "distillation"
        return "cross-entropy" if np.issubdtype(labels.dtype, np.integer) else "mse"
    if loss != "distillation" and labels is None:
        raise ConfigError(f"Loss '{loss}' needs labels, and the data has none. Name their key with --labels, or leave --loss.")
    return loss


def _describe(loss: str, settings: TrainingConfig) -> str:
    share = settings.distillation
    return loss if share == 0 else f"{1 - share:g} {loss} + {share:g} distillation from the original model"


def _are_probabilities(scores: NDArray[np.generic]) -> bool:
    if not is_scores(scores):
        return False
    sample = scores[:4096].astype(np.float64)
    return bool(sample.min() >= 0 and np.abs(sample.sum(-1) - 1).max() <= PROBABILITY_TOLERANCE)


def _check_classes(labels: NDArray[np.generic], scores: NDArray[np.generic]) -> None:
    if not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"Cross-entropy needs integer class labels; found {labels.dtype}. Use --loss mse for numbers.")
    if not is_scores(scores):
        raise ConfigError(
            f"Cross-entropy needs an output of class scores [N, ..., C]; found shape {list(scores.shape)}. Name another "
            "output with --output, or use --loss mse."
        )
    if labels.shape != scores.shape[:-1]:
        raise DataError(
            f"Labels of shape {list(labels.shape)} do not fit scores of shape {list(scores.shape)}: "
            f"{list(scores.shape[:-1])} is expected."
        )
    low, high, classes = int(labels.min()), int(labels.max()), scores.shape[-1]
    if low < 0 or high >= classes:
        wrong = int(np.argmax((labels < 0) | (labels >= classes)))
        raise DataError(
            f"Labels are out of range: found {low} to {high} (the first wrong one is number {wrong}); the output has {classes} "
            f"classes, so 0 to {classes - 1} is expected."
        )


def _check_numbers(labels: NDArray[np.generic], output: NDArray[np.generic]) -> None:
    if labels.size != output.size or len(labels) != len(output):
        raise DataError(
            f"Labels of shape {list(labels.shape)} do not fit the output of shape {list(output.shape)}: as many numbers "
            "are expected."
        )


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


def _squared(variance: float) -> Callable[[Tensor, Tensor], Tensor]:
    def loss(output: Tensor, target: Tensor) -> Tensor:
        return (output - target.reshape(output.shape).to(output.dtype)).square().mean() / variance

    return loss


def to_tensor(labels: NDArray[np.generic] | None) -> Tensor | None:
    """Labels as a tensor, None staying None."""
    return None if labels is None else torch.from_numpy(np.ascontiguousarray(labels))

"""Losses, which some exporters leave in the graph."""

import torch
from torch import Tensor

from onnxpq.network.ops.registry import register


@register("NegativeLogLikelihoodLoss", 12, 13, 22)
def nll_loss(
    x: Tensor,
    target: Tensor,
    weight: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Minus the entries x [N, C, ...] that the classes `target` [N, ...] choose, weighted by class."""
    # torch's own has no gradient for the weights.
    classes = target.to(torch.int64)
    counts = torch.ones_like(classes, dtype=torch.bool) if ignore_index is None else classes != ignore_index
    safe = torch.where(counts, classes, torch.zeros_like(classes))
    factor = counts.to(x.dtype) if weight is None else weight[safe] * counts
    loss = -x.gather(1, safe.unsqueeze(1)).squeeze(1) * factor
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / factor.sum()


@register("SoftmaxCrossEntropyLoss", 12, 13)
def softmax_cross_entropy_loss(
    scores: Tensor,
    labels: Tensor,
    weights: Tensor | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[Tensor, Tensor]:
    """The loss of the classes' log-probabilities, and these: log_softmax of scores [N, C, ...] over C."""
    log_prob = torch.log_softmax(scores, 1)
    return nll_loss(log_prob, labels, weights, ignore_index=ignore_index, reduction=reduction), log_prob

"""Normalizations, as they are computed at inference."""
# ruff: noqa: PLR0913 - parameters are ONNX's attributes: their number is given

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops.registry import register


@register("BatchNormalization", 7, 9)
def batch_norm_before_14(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    n_outputs: int = 1,
) -> Tensor:
    """BatchNormalization before opset 14, which told training from inference by the number of outputs."""
    if spatial != 1:
        raise UnsupportedOperatorError("BatchNormalization with spatial=0 is not supported.")
    training_mode = int(n_outputs > 1)
    return batch_norm(x, scale, bias, mean, var, epsilon=epsilon, momentum=momentum, training_mode=training_mode)


@register("BatchNormalization", 14, 15)
def batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,  # noqa: ARG001 - of training mode
    training_mode: int = 0,
) -> Tensor:
    """Normalize each channel by the stored mean and variance."""
    if training_mode:
        raise UnsupportedOperatorError(
            "BatchNormalization in training mode is not supported; export the model for inference."
        )
    # torch's own has no gradient for the statistics.
    factor = scale * torch.rsqrt(var + epsilon)
    return _per_channel(x, factor, bias - mean * factor)


@register("InstanceNormalization", 6, 22)
def instance_norm(x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    """Normalize each channel of each sample over its spatial dimensions."""
    y = _standardize(x, tuple(range(2, x.ndim)), epsilon)
    return _per_channel(y, scale, bias)


@register("LayerNormalization", 17)
def layer_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,  # noqa: ARG001 - the network computes in float32 anyway
    n_outputs: int = 1,
) -> Tensor | tuple[Tensor, Tensor, Tensor]:
    """Normalize over all axes from `axis` on. Also gives the mean and one over the standard deviation, if asked."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    mean = x.mean(axes, keepdim=True)
    inverse = torch.rsqrt((x - mean).square().mean(axes, keepdim=True) + epsilon)
    y = (x - mean) * inverse * scale
    y = y if bias is None else y + bias
    return y if n_outputs == 1 else (y, mean, inverse)


@register("RMSNormalization", 23)
def rms_norm(
    x: Tensor,
    scale: Tensor,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,  # noqa: ARG001 - the network computes in float32 anyway
) -> Tensor:
    """Divide by the root mean square over all axes from `axis` on."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * scale


@register("GroupNormalization", 18)
def group_norm_scaled_by_group(
    x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5, num_groups: int
) -> Tensor:
    """GroupNormalization-18: scale and bias have one entry per group."""
    size = x.shape[1] // num_groups
    return group_norm(
        x, scale.repeat_interleave(size), bias.repeat_interleave(size), epsilon=epsilon, num_groups=num_groups
    )


@register("GroupNormalization", 21)
def group_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    epsilon: float = 1e-5,
    num_groups: int,
    stash_type: int = 1,  # noqa: ARG001 - the network computes in float32 anyway
) -> Tensor:
    """Normalize groups of channels of each sample; scale and bias have one entry per channel."""
    return functional.group_norm(x, num_groups, scale, bias, epsilon)


@register("LRN", 1, 13)
def local_response_norm(x: Tensor, *, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0, size: int) -> Tensor:
    """Divide by a power of the mean square over `size` neighbouring channels."""
    before = (size - 1) // 2
    squares = functional.pad(x.square().movedim(1, -1), (before, size - 1 - before))
    mean = squares.unfold(-1, size, 1).sum(-1).movedim(-1, 1) / size
    return x / (bias + alpha * mean) ** beta


@register("LpNormalization", 1, 22)
def lp_norm(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Divide by the p-norm along one axis; where that is zero the result is zero."""
    norm = torch.linalg.vector_norm(x, ord=p, dim=axis, keepdim=True)
    return torch.where(norm == 0, torch.zeros_like(x), x / torch.where(norm == 0, torch.ones_like(norm), norm))


@register("MeanVarianceNormalization", 9, 13)
def mean_variance_norm(x: Tensor, *, axes: Sequence[int] = (0, 2, 3)) -> Tensor:
    """Subtract the mean and divide by the standard deviation over the given axes."""
    # 1e-9 is in ONNX's own definition of the function, added to the standard deviation.
    centred = x - x.mean(tuple(axes), keepdim=True)
    return centred / (centred.square().mean(tuple(axes), keepdim=True).sqrt() + 1e-9)


def _standardize(x: Tensor, axes: tuple[int, ...], epsilon: float) -> Tensor:
    centred = x - x.mean(axes, keepdim=True)
    return centred * torch.rsqrt(centred.square().mean(axes, keepdim=True) + epsilon)


def _per_channel(y: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    shape = (-1, *[1] * (y.ndim - 2))
    return y * scale.reshape(shape) + bias.reshape(shape)

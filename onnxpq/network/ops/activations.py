"""Activation functions and the softmax family."""

import math

import torch
from torch import Tensor
from torch.nn import functional

from onnxpq.network.ops.registry import register

_SELU_ALPHA = 1.67326319217681884765625
_SELU_GAMMA = 1.05070102214813232421875


@register("Relu", 6, 13, 14)
def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return torch.relu(x)


@register("Sigmoid", 6, 13)
def sigmoid(x: Tensor) -> Tensor:
    """1 / (1 + exp(-x))."""
    return torch.sigmoid(x)


@register("Tanh", 6, 13)
def tanh(x: Tensor) -> Tensor:
    """Hyperbolic tangent."""
    return torch.tanh(x)


@register("LeakyRelu", 6, 16)
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    """X where positive, else alpha * x."""
    return functional.leaky_relu(x, alpha)


@register("PRelu", 7, 9, 16)
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """X where not negative, else slope * x, the slope broadcast."""
    return torch.where(x >= 0, x, slope * x)


@register("ThresholdedRelu", 10, 22)
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X where above alpha, else 0."""
    return torch.where(x > alpha, x, torch.zeros_like(x))


@register("Elu", 6, 22)
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X where positive, else alpha * (exp(x) - 1)."""
    return functional.elu(x, alpha)


@register("Celu", 12, 28)
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """max(x, 0) + min(0, alpha * (exp(x / alpha) - 1))."""
    return functional.celu(x, alpha)


@register("Selu", 6, 22)
def selu(x: Tensor, *, alpha: float = _SELU_ALPHA, gamma: float = _SELU_GAMMA) -> Tensor:
    """Gamma * elu(x, alpha)."""
    return gamma * functional.elu(x, alpha)


@register("Gelu", 20)
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    """X times the normal distribution's cumulative function, or its tanh approximation."""
    return functional.gelu(x, approximate=approximate)


@register("HardSigmoid", 6, 22)
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    """Alpha * x + beta, kept within [0, 1]."""
    return torch.clamp(alpha * x + beta, 0, 1)


@register("HardSwish", 14, 22)
def hard_swish(x: Tensor) -> Tensor:
    """X times the hard sigmoid with slope 1/6."""
    return x * torch.clamp(x / 6 + 0.5, 0, 1)


@register("Swish", 24)
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    """X * sigmoid(alpha * x)."""
    return x * torch.sigmoid(alpha * x)


@register("SwiGLU", 28)
def swiglu(a: Tensor, b: Tensor, *, alpha: float = 1.0) -> Tensor:
    """Swish of the gate a, times b."""
    return swish(a, alpha=alpha) * b


@register("Mish", 18, 22)
def mish(x: Tensor) -> Tensor:
    """X * tanh(softplus(x))."""
    return functional.mish(x)


@register("Softplus", 1, 22)
def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), without overflow."""
    return torch.logaddexp(x, torch.zeros_like(x))


@register("Softsign", 1, 22)
def softsign(x: Tensor) -> Tensor:
    """X / (1 + |x|)."""
    return functional.softsign(x)


@register("Shrink", 9)
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    """X + bias below -lambd, x - bias above lambd, 0 between."""
    zero = torch.zeros_like(x)
    return torch.where(x < -lambd, (x + bias).to(x.dtype), torch.where(x > lambd, (x - bias).to(x.dtype), zero))


@register("Softmax", 13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Softmax along one axis."""
    return torch.softmax(x, axis)


@register("LogSoftmax", 13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """Logarithm of the softmax along one axis."""
    return torch.log_softmax(x, axis)


@register("Hardmax", 13)
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    """One at the first largest element along one axis, else zero."""
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1)


@register("Softmax", 1, 11)
def softmax_of_matrix(x: Tensor, *, axis: int = 1) -> Tensor:
    """Softmax before opset 13: over all axes from `axis` on at once."""
    return softmax(_as_matrix(x, axis)).reshape(x.shape)


@register("LogSoftmax", 1, 11)
def log_softmax_of_matrix(x: Tensor, *, axis: int = 1) -> Tensor:
    """LogSoftmax before opset 13: over all axes from `axis` on at once."""
    return log_softmax(_as_matrix(x, axis)).reshape(x.shape)


@register("Hardmax", 1, 11)
def hardmax_of_matrix(x: Tensor, *, axis: int = 1) -> Tensor:
    """Hardmax before opset 13: over all axes from `axis` on at once."""
    return hardmax(_as_matrix(x, axis)).reshape(x.shape)


def _as_matrix(x: Tensor, axis: int) -> Tensor:
    axis = axis % max(x.ndim, 1)
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))

"""Operators that onnxruntime has in ai.onnx and ONNX has not at the model's operator set (`onnxpq.graph.private`)."""
# ruff: noqa: ARG001 - parameters are the operators' inputs and attributes: names and number are given

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from onnxpq.network.ops.activations import thresholded_relu
from onnxpq.network.ops.normalization import layer_norm
from onnxpq.network.ops.registry import ONNXRUNTIME, register

register("LayerNormalization", 1, domain=ONNXRUNTIME)(layer_norm)
register("ThresholdedRelu", 1, domain=ONNXRUNTIME)(thresholded_relu)


@register("SimplifiedLayerNormalization", 1, domain=ONNXRUNTIME)
def simplified_layer_norm(
    x: Tensor, scale: Tensor, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1, n_outputs: int = 1
) -> Tensor | tuple[Tensor, Tensor]:
    """Divide by the root mean square over all axes from `axis` on; gives one over that too, if asked."""
    axes = tuple(range(axis % x.ndim, x.ndim))
    inverse = torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon)
    y = x * inverse * scale
    return y if n_outputs == 1 else (y, inverse)


@register("Affine", 1, domain=ONNXRUNTIME)
def affine(x: Tensor, *, alpha: float = 1.0, beta: float = 0.0) -> Tensor:
    """Alpha * x + beta."""
    return alpha * x + beta


@register("ImageScaler", 1, domain=ONNXRUNTIME)
def image_scaler(x: Tensor, *, bias: Sequence[float] = (), scale: float = 1.0) -> Tensor:
    """Scale * x, plus a bias per channel."""
    return scale * x + torch.as_tensor(bias, dtype=x.dtype, device=x.device).reshape(-1, 1, 1)


@register("ParametricSoftplus", 1, domain=ONNXRUNTIME)
def parametric_softplus(x: Tensor, *, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """Alpha * log(exp(beta * x) + 1)."""
    return alpha * functional.softplus(beta * x)


@register("ScaledTanh", 1, domain=ONNXRUNTIME)
def scaled_tanh(x: Tensor, *, alpha: float = 1.0, beta: float = 1.0) -> Tensor:
    """Alpha * tanh(beta * x)."""
    return alpha * torch.tanh(beta * x)

"""What onnxruntime's optimizer fuses, in its domain com.microsoft: activations, products, normalizations, attention."""
# ruff: noqa: ARG001, N803, PLR0913, PLR0917 - parameters are the operators' inputs and attributes: names and number are given

from collections.abc import Sequence
from typing import cast

import onnx
import torch
from torch import Tensor
from torch.nn import functional

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops.attention import attend, merge_heads, split_heads, window_mask
from onnxpq.network.ops.registry import register, resolve

_MS = "com.microsoft"


@register("Gelu", 1, domain=_MS)
def gelu(x: Tensor) -> Tensor:
    """X times the normal distribution's cumulative function."""
    return functional.gelu(x)


@register("BiasGelu", 1, domain=_MS)
def bias_gelu(a: Tensor, b: Tensor) -> Tensor:
    """Gelu of a + b."""
    return functional.gelu(a + b)


@register("FastGelu", 1, domain=_MS)
def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Gelu of x + bias by its tanh approximation."""
    return functional.gelu(x if bias is None else x + bias, approximate="tanh")


@register("QuickGelu", 1, domain=_MS)
def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    """X * sigmoid(alpha * x)."""
    return x * torch.sigmoid(alpha * x)


@register("FusedMatMul", 1, domain=_MS)
def fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,
    transB: int = 0,
    transBatchA: int = 0,
    transBatchB: int = 0,
) -> Tensor:
    """Alpha * a' @ b', each with its last two axes transposed where asked for."""
    if transBatchA or transBatchB:
        raise UnsupportedOperatorError("FusedMatMul with transposed batch axes is not supported.")
    y = torch.matmul(a.mT if transA and a.ndim > 1 else a, b.mT if transB and b.ndim > 1 else b)
    return y if alpha == 1.0 else alpha * y


@register("FusedGemm", 1, domain=_MS)
def fused_gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    activation: str = "",
    activation_alpha: float | None = None,
    activation_beta: float | None = None,
    activation_gamma: float | None = None,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Tensor:
    """Gemm and one of ai.onnx's activations, which is given what parameters there are."""
    y = alpha * ((a.mT if transA else a) @ (b.mT if transB else b))
    y = y if c is None else y + beta * c
    parameters = {"alpha": activation_alpha, "beta": activation_beta, "gamma": activation_gamma}
    given = {name: value for name, value in parameters.items() if value is not None}
    return cast(Tensor, resolve("", activation, onnx.defs.onnx_opset_version(), "FusedGemm")(y, **given))


@register("SkipLayerNormalization", 1, domain=_MS)
def skip_layer_norm(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """LayerNormalization over the last axis of x + skip + bias; with mean, 1 / deviation, and that sum."""
    total = x + skip if bias is None else x + skip + bias
    mean = total.mean(-1, keepdim=True)
    inverse = torch.rsqrt((total - mean).square().mean(-1, keepdim=True) + epsilon)
    y = (total - mean) * inverse * gamma
    return y if beta is None else y + beta, mean, inverse, total


@register("SkipSimplifiedLayerNormalization", 1, domain=_MS)
def skip_rms_norm(
    x: Tensor, skip: Tensor, gamma: Tensor, bias: Tensor | None = None, *, epsilon: float = 1e-12
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """RMSNormalization over the last axis of x + skip + bias; the mean that is not taken counts as zero."""
    total = x + skip if bias is None else x + skip + bias
    inverse = torch.rsqrt(total.square().mean(-1, keepdim=True) + epsilon)
    return total * inverse * gamma, torch.zeros_like(inverse), inverse, total


@register("EmbedLayerNormalization", 1, domain=_MS)
def embed_layer_norm(
    input_ids: Tensor,
    segment_ids: Tensor | None,
    word_embedding: Tensor,
    position_embedding: Tensor,
    segment_embedding: Tensor | None,
    gamma: Tensor,
    beta: Tensor,
    mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
    mask_index_type: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """LayerNormalization of the sum of word, position and segment embeddings; the length of each mask; and the sum."""
    places = torch.arange(input_ids.shape[1], device=input_ids.device) if position_ids is None else position_ids
    total = word_embedding[input_ids.to(torch.int64)] + position_embedding[places.to(torch.int64)]
    if segment_ids is not None and segment_embedding is not None:
        total = total + segment_embedding[segment_ids.to(torch.int64)]
    y = functional.layer_norm(total, (total.shape[-1],), gamma, beta, epsilon)
    lengths = torch.zeros(len(input_ids), dtype=torch.int32) if mask is None else mask.sum(1).to(torch.int32)
    return y, lengths, total


@register("Attention", 1, domain=_MS)
def attention(
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None = None,
    mask_index: Tensor | None = None,
    past: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_sequence_length: Tensor | None = None,
    *,
    do_rotary: int | None = None,
    mask_filter_value: float | None = None,
    num_heads: int,
    past_present_share_buffer: int | None = None,
    qkv_hidden_sizes: Sequence[int] | None = None,
    rotary_embedding_dim: int | None = None,
    scale: float | None = None,
    unidirectional: int = 0,
) -> Tensor:
    """Self-attention of x [N, Q, in] with the three projections in one matrix [in, 3 * out]."""
    if past is not None or do_rotary:
        raise UnsupportedOperatorError("com.microsoft::Attention with a past or rotary embedding is not supported.")
    projected = torch.matmul(x, weights) if bias is None else torch.matmul(x, weights) + bias
    sizes = list(qkv_hidden_sizes) if qkv_hidden_sizes else [weights.shape[1] // 3] * 3
    query, key, value = (split_heads(part, num_heads) for part in torch.split_with_sizes(projected, sizes, -1))
    mask = _summed(_padding_bias(mask_index, key.shape[2], mask_filter_value), attention_bias)
    y, _ = attend(query, key, value, mask=mask, allowed=_causal(query, key, unidirectional), scale=scale or None)
    return merge_heads(y)


@register("MultiHeadAttention", 1, domain=_MS)
def multi_head_attention(
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    bias: Tensor | None = None,
    key_padding_mask: Tensor | None = None,
    attention_bias: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    past_sequence_length: Tensor | None = None,
    cache_indirection: Tensor | None = None,
    *,
    mask_filter_value: float | None = None,
    num_heads: int,
    scale: float | None = None,
    unidirectional: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of projected query [N, Q, A * E], key and value; with the keys and values [N, A, S, E]."""
    if key is None or value is None or key.ndim != 3 or past_sequence_length is not None:
        raise UnsupportedOperatorError("com.microsoft::MultiHeadAttention on packed inputs is not supported.")
    if bias is not None:
        of_query, of_key, of_value = torch.split_with_sizes(bias, [query.shape[-1], key.shape[-1], value.shape[-1]])
        query, key, value = query + of_query, key + of_key, value + of_value
    q, k, v = (split_heads(part, num_heads) for part in (query, key, value))
    if past_key is not None and past_value is not None:
        k, v = torch.cat([past_key, k], 2), torch.cat([past_value, v], 2)
    mask = _summed(_padding_bias(key_padding_mask, k.shape[2], mask_filter_value), attention_bias)
    y, _ = attend(q, k, v, mask=mask, allowed=_causal(q, k, unidirectional), scale=scale or None)
    return merge_heads(y), k, v


def _padding_bias(mask: Tensor | None, keys: int, filter_value: float | None) -> Tensor | None:
    """A large negative number where a key is padding, as in onnxruntime: mask [N] of lengths, [N, S] or [N, Q, S]."""
    if mask is None:
        return None
    if mask.ndim == 1:
        mask = torch.arange(keys, device=mask.device) < mask.unsqueeze(1)
    shape = {2: (len(mask), 1, 1, keys), 3: (len(mask), 1, -1, keys)}.get(mask.ndim)
    if shape is None:
        raise UnsupportedOperatorError(f"An attention mask of shape {list(mask.shape)} is not supported.")
    return (mask.reshape(shape) == 0).to(torch.float32) * (filter_value or -10000.0)


def _summed(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    return first + second if first is not None and second is not None else first if second is None else second


def _causal(query: Tensor, key: Tensor, unidirectional: int) -> Tensor | None:
    if not unidirectional:
        return None
    offset = torch.tensor([key.shape[2] - query.shape[2]], device=query.device)
    return window_mask(query.shape[2], key.shape[2], offset, -1, 0)

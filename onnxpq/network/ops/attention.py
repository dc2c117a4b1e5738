"""Attention and what goes with it.

Letters: N batch, A heads of queries, B heads of keys and values (B divides A), Q queries, S keys, E size of a head.
"""
# ruff: noqa: ARG001, N803, PLR0913 - parameters are ONNX's inputs and attributes: names and number are given

import math

import torch
from torch import Tensor

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops.registry import register


@register("Attention", 23, 24, 25)
def attention(
    Q: Tensor,
    K: Tensor,
    V: Tensor,
    attn_mask: Tensor | None = None,
    past_key: Tensor | None = None,
    past_value: Tensor | None = None,
    nonpad_kv_seqlen: Tensor | None = None,
    *,
    is_causal: int = 0,
    kv_num_heads: int | None = None,
    left_window_size: int = -1,
    q_num_heads: int | None = None,
    qk_matmul_output_mode: int = 0,
    right_window_size: int = -1,
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_precision: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """softmax(scale * Q K' + masks) V for each head; inputs [N, heads, length, E] or [N, length, heads * E].

    Returns:
        The result in the form of Q; keys and values with the past before them [N, B, S, E]; and the scores
        [N, A, Q, S], after as many steps as `qk_matmul_output_mode` says.
    """
    query, key, value = split_heads(Q, q_num_heads), split_heads(K, kv_num_heads), split_heads(V, kv_num_heads)
    offset = torch.zeros(1, dtype=torch.int64, device=query.device)
    if past_key is not None and past_value is not None:
        key, value = torch.cat([past_key, key], 2), torch.cat([past_value, value], 2)
        offset = offset + past_key.shape[2]
    elif nonpad_kv_seqlen is not None:
        offset = nonpad_kv_seqlen.to(torch.int64) - query.shape[2]
    windows = (left_window_size, 0 if is_causal else right_window_size)
    if is_causal and right_window_size >= 0:
        windows = (left_window_size, min(0, right_window_size))
    allowed = window_mask(query.shape[2], key.shape[2], offset, *windows)
    if nonpad_kv_seqlen is not None:
        keys = torch.arange(key.shape[2], device=key.device)
        allowed = allowed & (keys < nonpad_kv_seqlen.reshape(-1, 1, 1, 1))
    result, scores = attend(query, key, value, mask=attn_mask, allowed=allowed, scale=scale, softcap=softcap)
    result = result if Q.ndim == 4 else merge_heads(result)
    return result, key, value, scores[qk_matmul_output_mode]


def split_heads(x: Tensor, heads: int | None) -> Tensor:
    """[N, length, heads * E] -> [N, heads, length, E]; a tensor of four dimensions has that form already."""
    if x.ndim == 4:
        return x
    if not heads:
        raise UnsupportedOperatorError(f"Attention on shape {list(x.shape)} needs the number of heads.")
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """[N, heads, length, E] -> [N, length, heads * E]."""
    return x.transpose(1, 2).flatten(2)


def window_mask(queries: int, keys: int, offset: Tensor, left: int, right: int) -> Tensor:
    """[1 or N, 1, Q, S]: which keys lie at most so many places left and right of a query; -1 is no limit.

    Args:
        queries: number of queries Q.
        keys: number of keys S.
        offset: number of the keys that come before the first query, [1 or N].
        left: places to the left.
        right: places to the right, 0 for causal attention.
    """
    here = torch.arange(queries, device=offset.device).unsqueeze(1) + offset.reshape(-1, 1, 1, 1)
    there = torch.arange(keys, device=offset.device)
    allowed = torch.ones(len(offset), 1, queries, keys, dtype=torch.bool, device=offset.device)
    if right >= 0:
        allowed = allowed & (there <= here + right)
    return allowed & (there >= here - left) if left >= 0 else allowed


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    mask: Tensor | None,
    allowed: Tensor | None,
    scale: float | None,
    softcap: float = 0.0,
) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Scaled dot-product attention.

    Args:
        query: [N, A, Q, E].
        key: [N, B, S, E].
        value: [N, B, S, E].
        mask: added to the scores, or boolean; broadcast to [N, A, Q, S], shorter ones are filled up with "not allowed".
        allowed: which keys take part; broadcast to [N, A, Q, S].
        scale: factor of the scores, by default 1 / sqrt(E).
        softcap: where not zero, the scores s become softcap * tanh(s / softcap).

    Returns:
        The result [N, A, Q, E], zero for a query without keys; and the scores: bare, capped, masked, after the softmax.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    root = math.sqrt(1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    bare = torch.matmul(query * root, (key * root).mT)
    capped = softcap * torch.tanh(bare / softcap) if softcap else bare
    masked = capped if mask is None else capped + _additive(mask, key.shape[2], capped)
    masked = masked if allowed is None else masked.masked_fill(~allowed, -math.inf)
    empty = (masked == -math.inf).all(-1, keepdim=True)
    weights = torch.softmax(masked.masked_fill(empty, 0.0), -1).masked_fill(empty, 0.0)
    return torch.matmul(weights, value), (bare, capped, masked, weights)


def _additive(mask: Tensor, keys: int, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=like.dtype).masked_fill(~mask, -math.inf)
    missing = keys - mask.shape[-1]
    return torch.nn.functional.pad(mask, (0, missing), value=-math.inf) if missing > 0 else mask


@register("RotaryEmbedding", 23)
def rotary_embedding(
    x: Tensor,
    cos_cache: Tensor,
    sin_cache: Tensor,
    position_ids: Tensor | None = None,
    *,
    interleaved: int = 0,
    num_heads: int | None = None,
    rotary_embedding_dim: int = 0,
) -> Tensor:
    """Rotate pairs of features by angles that depend on the position; x [N, A, Q, E] or [N, Q, A * E].

    The caches hold the angles' cosines and sines: [positions, E / 2], or [N, Q, E / 2] where there are no position ids.
    """
    heads = split_heads(x, num_heads)
    cos, sin = (
        (cache if position_ids is None else cache[position_ids]).unsqueeze(1) for cache in (cos_cache, sin_cache)
    )
    y = rotate(heads, cos, sin, rotary_embedding_dim or heads.shape[-1], interleaved=bool(interleaved))
    return y if x.ndim == 4 else merge_heads(y)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, size: int, *, interleaved: bool) -> Tensor:
    """Rotate the first `size` features of x [N, A, Q, E]; pairs are neighbours, or lie half of `size` apart."""
    turned, rest = x[..., :size], x[..., size:]
    first, second = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    cos, sin = cos[..., : size // 2], sin[..., : size // 2]
    parts = (cos * first - sin * second, sin * first + cos * second)
    return torch.cat([torch.stack(parts, -1).flatten(-2) if interleaved else torch.cat(parts, -1), rest], -1)


@register("LinearAttention", 27)
def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    past_state: Tensor | None = None,
    decay: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    chunk_size: int = 64,
    kv_num_heads: int,
    q_num_heads: int,
    scale: float = 0.0,
    update_rule: str = "gated_delta",
) -> tuple[Tensor, Tensor]:
    """A state S [N, B, E, F] that every step decays and adds to; the result of a step is scale * q' S.

    A step adds k v', or, where `beta` is given, beta * k (v - S' k)'. The rule is known by which inputs there are.

    Args:
        query: [N, Q, A * E].
        key: [N, Q, B * E].
        value: [N, Q, B * F].
        past_state: [N, B, E, F], zero by default.
        decay: logarithm of the factor of S, [N, Q, B] or [N, Q, B * E].
        beta: rate, [N, Q, B] or [N, Q, 1].
        chunk_size: of implementations in chunks; without effect here.
        kv_num_heads: B.
        q_num_heads: A.
        scale: by default 1 / sqrt(E).
        update_rule: linear, gated, delta or gated_delta.

    Returns:
        The results [N, Q, A * F], and the last state.
    """
    expected = {"linear": (0, 0), "gated": (1, 0), "delta": (0, 1), "gated_delta": (1, 1)}.get(update_rule)
    if expected != (decay is not None, beta is not None):
        raise UnsupportedOperatorError(f"LinearAttention by the rule '{update_rule}' with other inputs than it takes.")
    q, k, v = split_heads(query, q_num_heads), split_heads(key, kv_num_heads), split_heads(value, kv_num_heads)
    state = k.new_zeros(*k.shape[:2], k.shape[-1], v.shape[-1]) if past_state is None else past_state
    factors = None if decay is None else split_heads(decay, kv_num_heads).exp()
    rates = None if beta is None else split_heads(beta, beta.shape[-1])
    results = []
    for t in range(q.shape[2]):
        state = state if factors is None else state * factors[:, :, t].unsqueeze(-1)
        added = v[:, :, t]
        if rates is not None:
            added = rates[:, :, t] * (added - torch.einsum("nbef,nbe->nbf", state, k[:, :, t]))
        state = state + torch.einsum("nbe,nbf->nbef", k[:, :, t], added)
        shared = state.repeat_interleave(q_num_heads // kv_num_heads, 1)
        results.append(torch.einsum("nae,naef->naf", q[:, :, t], shared))
    factor = scale or 1 / math.sqrt(q.shape[-1])
    return factor * merge_heads(torch.stack(results, 2)), state

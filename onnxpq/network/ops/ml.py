"""What skl2onnx puts around a trained network: scalers before it, labels after it (domain ai.onnx.ml)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnxpq.errors import UnsupportedOperatorError
from onnxpq.network.ops.registry import register

_ML = "ai.onnx.ml"


@register("ArrayFeatureExtractor", 1, domain=_ML)
def array_feature_extractor(x: Any, y: Tensor) -> Any:
    """Elements `y` of the last axis of `x`, which may hold strings; the result of a 1-D `x` has a leading axis of 1."""
    indices = y.reshape(-1)
    if isinstance(x, np.ndarray):
        picked = x[..., indices.cpu().numpy()]
        return picked.reshape(1, -1) if x.ndim == 1 else picked
    picked = x.index_select(-1, indices.to(torch.int64))
    return picked.reshape(1, -1) if x.ndim == 1 else picked


@register("ZipMap", 1, domain=_ML)
def zip_map(
    x: Tensor,
    *,
    classlabels_int64s: Sequence[int] | None = None,
    classlabels_strings: Sequence[str] | None = None,
) -> Tensor:
    """The scores [N, C], columns in ascending order of their labels.

    ONNX makes of each row a map from label to score. A map is no tensor; wherever onnxpq meets such an output it is the
    matrix of scores (`onnxpq.runtime.sessions.run` gives the same).
    """
    labels: Sequence[Any] = classlabels_int64s or classlabels_strings or ()
    order = sorted(range(len(labels)), key=labels.__getitem__)
    return x if order == list(range(len(labels))) else x[..., order]


@register("Scaler", 1, domain=_ML)
def scaler(x: Tensor, *, offset: Sequence[float] | None = None, scale: Sequence[float] | None = None) -> Tensor:
    """(x - offset) * scale, one number per column or one for all."""
    y = x.to(torch.float32)
    y = y if offset is None else y - torch.tensor(offset, dtype=y.dtype, device=y.device)
    return y if scale is None else y * torch.tensor(scale, dtype=y.dtype, device=y.device)


@register("Normalizer", 1, domain=_ML)
def normalizer(x: Tensor, *, norm: str = "MAX") -> Tensor:
    """Divide each row by its largest element, its sum of absolute values or its length; rows of zeros stay."""
    y = x.to(torch.float32)
    if norm == "MAX":
        size = y.amax(-1, keepdim=True)
    elif norm in ("L1", "L2"):
        size = torch.linalg.vector_norm(y, ord=int(norm[1]), dim=-1, keepdim=True)
    else:
        raise UnsupportedOperatorError(f"Normalizer with norm '{norm}'; MAX, L1 and L2 are supported.")
    return torch.where(size == 0, y, y / torch.where(size == 0, torch.ones_like(size), size))


@register("Binarizer", 1, domain=_ML)
def binarizer(x: Tensor, *, threshold: float = 0.0) -> Tensor:
    """One where above the threshold, else zero."""
    return (x > threshold).to(x.dtype)

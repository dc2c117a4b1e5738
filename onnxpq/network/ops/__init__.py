"""ONNX operators in torch, a file per family. `onnxpq.network.ops.registry` says how to add one."""

from onnxpq.network.ops import (
    activations,
    attention,
    bitwise,
    contrib,
    control,
    conv,
    losses,
    math,
    ml,
    normalization,
    private,
    quantized,
    recurrent,
    reduction,
    regions,
    resize,
    scatter,
    sequences,
    shape,
    signal,
)
from onnxpq.network.ops.registry import register_op, resolve

FAMILIES = (
    activations,
    attention,
    bitwise,
    contrib,
    control,
    conv,
    losses,
    math,
    ml,
    normalization,
    private,
    quantized,
    recurrent,
    reduction,
    regions,
    resize,
    scatter,
    sequences,
    shape,
    signal,
)
"""Importing a family registers its operators; a test compares this list with the folder."""

__all__ = ["FAMILIES", "register_op", "resolve"]

"""ONNX operators in torch, a file per family. `onnxpq.ops.registry` says how to add one."""

from onnxpq.ops import activations, control, conv, math, ml, normalization, reduction, shape
from onnxpq.ops.registry import register_op, resolve

FAMILIES = (activations, control, conv, math, ml, normalization, reduction, shape)
"""Importing a family registers its operators; a test compares this list with the folder."""

__all__ = ["FAMILIES", "register_op", "resolve"]

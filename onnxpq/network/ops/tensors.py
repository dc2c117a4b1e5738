"""Between ONNX's tensors and torch's."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from onnxpq.errors import UnsupportedOperatorError

_TORCH_DTYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.BOOL: torch.bool,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
    ir.DataType.UINT64: torch.uint64,
}


def torch_dtype(code: int) -> torch.dtype:
    """The torch type of an ONNX element type.

    Args:
        code: number of the type in ``TensorProto.DataType``.

    Raises:
        UnsupportedOperatorError: if torch has no such type (string, complex) or onnxpq does not compute in it
            (8-bit and smaller floats, 4-bit and smaller integers).
    """
    dtype = ir.DataType(code)
    if dtype not in _TORCH_DTYPES:
        raise UnsupportedOperatorError(f"Element type {dtype.name} is not supported.")
    return _TORCH_DTYPES[dtype]


def from_ir(tensor: ir.TensorProtocol) -> Any:
    """A torch tensor with a copy of an ONNX tensor's values; a numpy array of str where they are strings.

    Raises:
        UnsupportedOperatorError: see `torch_dtype`.
    """
    if tensor.dtype == ir.DataType.STRING:
        flat = [s.decode("utf-8") if isinstance(s, bytes) else str(s) for s in tensor.numpy().ravel()]
        return np.array(flat, dtype=object).reshape(tensor.numpy().shape)
    dtype = torch_dtype(tensor.dtype)
    array = tensor.numpy()
    if dtype is torch.bfloat16:
        return torch.from_numpy(array.astype(np.float32)).to(dtype)
    return torch.from_numpy(np.array(array, order="C"))


def ints(values: Tensor | Sequence[int] | int | None) -> list[int]:
    """The numbers of an integer tensor (or attribute) as a list; an absent one is the empty list."""
    if values is None:
        return []
    if isinstance(values, int):
        return [values]
    if isinstance(values, Tensor):
        return [int(v) for v in values.reshape(-1).tolist()]
    return [int(v) for v in values]


def is_float(value: Any) -> bool:
    """True for a tensor of a floating-point type."""
    return isinstance(value, Tensor) and value.is_floating_point()

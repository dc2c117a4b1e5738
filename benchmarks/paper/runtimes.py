"""Today's practice: the low-bit layers that onnxruntime has itself, made by its own quantizers."""

import logging
import tempfile
from pathlib import Path

import onnx

from benchmarks import nbits
from benchmarks.paper.tasks import Task

BLOCK = 128
"""Weights that share a scale in the 4-bit and 2-bit layers."""


def int8(task: Task) -> bytes:
    """Dynamic quantization: weights of 8 bits with a scale per output."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415 -- it loads slowly

    model, layers = nbits.as_matmul(task.path)
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "source.onnx", Path(folder) / "target.onnx"
        onnx.save(model, source)
        # It advises to pre-process, which would fold nothing here.
        logging.disable(logging.WARNING)
        try:
            quantize_dynamic(
                source,
                target,
                op_types_to_quantize=["MatMul"],
                nodes_to_quantize=[layer.node for layer in layers],
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.disable(logging.NOTSET)
        return target.read_bytes()


def few_bits(task: Task, bits: int) -> bytes:
    """MatMulNBits: weights of `bits` bits with a scale and a zero point for each `BLOCK`."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "target.onnx"
        nbits.quantize(task.path, target, bits=bits, block=BLOCK)
        return target.read_bytes()

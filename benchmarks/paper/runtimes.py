"""Today's practice: the low-bit layers that onnxruntime has itself, made by its own quantizers."""

import functools
import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

from benchmarks.paper.tasks import Task
from benchmarks.peers import nbits
from onnxpq import runtime

BLOCK = 128
"""Weights that share a scale in the 4-bit and 2-bit layers."""


@functools.cache
def saturates() -> bool:
    """Whether onnxruntime's kernels for this processor add products of bytes in 16 bits, which overflow.

    They do on x86 without VNNI; there its documentation advises weights of 7 bits.
    """
    depth = 64
    text = f"""<ir_version: 8, opset_import: ["" : 13]>
        product (uint8[1, {depth}] x, int8[{depth}, 16] w) => (int32[1, 16] y) {{ y = MatMulInteger(x, w) }}"""
    x, w = np.full((1, depth), 255, np.uint8), np.full((depth, 16), 127, np.int8)
    model = parser.parse_model(text)
    # A constant, as weights are: those have kernels of their own.
    model.graph.input.pop()
    model.graph.initializer.append(numpy_helper.from_array(w, "w"))
    (found,) = runtime.session(model.SerializeToString(), use_library=False).run(None, {"x": x})
    return bool((found != depth * 255 * 127).any())


def int8(task: Task) -> bytes:
    """Dynamic quantization: weights of 8 bits (7 where more would overflow) with a scale per output."""
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
                reduce_range=saturates(),
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

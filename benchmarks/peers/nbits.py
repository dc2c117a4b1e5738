"""onnxruntime's low-bit layers (`MatMulNBits`) in place of the layers that onnxpq would compress.

Only a MatMul with an initializer is taken by onnxruntime's quantizer, and Gemm or a weight in a Constant node is passed
over in silence: such layers are brought into that form first, so that both compress the same layers.
"""

import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnxruntime.quantization import matmul_nbits_quantizer as nbits

from onnxpq import rewriting
from onnxpq.graph import files, preparing
from onnxpq.graph.layers import Layer
from onnxpq.graph.normalising import normalise

INT8_ACTIVATIONS: Final = 4
"""`accuracy_level` of the fast kernels; with the default, 2 bits run 30 to 95 times slower."""

OPERATOR: Final = "MatMulNBits"

logging.getLogger(nbits.__name__).setLevel(logging.WARNING)  # it tells of each node


@dataclass(frozen=True)
class Quantized:
    """What was written: layers, and the bytes of their weights before and after (biases are not counted)."""

    layers: int
    bytes_before: int
    bytes_after: int


def quantize(source: Path, target: Path, *, bits: int, block: int, half_quadratic: bool = False) -> Quantized:
    """Write a model whose fully-connected layers are `MatMulNBits`.

    Args:
        source: the model's file.
        target: the file to write.
        bits: of a weight: 2, 4 or 8.
        block: weights of a row that share a scale and a zero point.
        half_quadratic: choose zero points, then float32 numbers, by half-quadratic optimization (HQQ, Badri and Shaji
            2023); else by the smallest and largest weight. Of onnxruntime's other ways, k-quant and GPTQ, none
            writes 2 bits.

    Raises:
        ValueError: a layer has another form than ``X W + b``, or was not quantized.
    """
    model, layers = as_matmul(source)
    nodes = {layer.node for layer in layers}
    others = [node.name for node in model.graph.node if node.op_type == "MatMul" and node.name not in nodes]
    config = (
        nbits.HQQWeightOnlyQuantConfig(block_size=block, bits=bits)
        if half_quadratic
        else nbits.DefaultWeightOnlyQuantConfig(
            block_size=block, is_symmetric=False, bits=bits, accuracy_level=INT8_ACTIVATIONS
        )
    )
    quantizer = nbits.MatMulNBitsQuantizer(
        model,
        bits=bits,
        block_size=block,
        is_symmetric=False,
        accuracy_level=INT8_ACTIVATIONS,
        nodes_to_exclude=others,
        algo_config=config,
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nor is it written to
        quantizer.process()
    quantized = quantizer.model.model
    sizes = {tensor.name: numpy_helper.to_array(tensor).nbytes for tensor in quantized.graph.initializer}
    found = [node for node in quantized.graph.node if node.op_type == OPERATOR]
    if len(found) != len(layers):
        raise ValueError(f"{source}: {len(found)} of {len(layers)} layers became {OPERATOR}.")
    quantizer.model.save_model_to_file(str(target), use_external_data_format=False)
    stored = {name for node in found for name in node.input[1:] if name}
    weights = {layer.weight: 4 * layer.in_features * layer.out_features for layer in layers}
    return Quantized(len(layers), sum(weights.values()), sum(sizes[name] for name in stored))


def as_matmul(source: Path) -> tuple[onnx.ModelProto, list[Layer]]:
    """A model with each layer that onnxpq would compress as MatMul and Add, and those layers.

    Raises:
        ValueError: a layer has another form than ``X W + b``.
    """
    prepared = preparing.prepare(files.load(source))
    layers, _ = rewriting.find(prepared)
    model = onnx.load_from_string(files.to_bytes(normalise(prepared)))
    _gemm_to_matmul(model, {layer.node for layer in layers})
    return model, list(layers)


def _gemm_to_matmul(model: onnx.ModelProto, names: set[str]) -> None:
    """Gemm of the given names -> MatMul, and Add where there is a bias; in place."""
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.op_type != "Gemm" or node.name not in names:
            nodes.append(node)
            continue
        given = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
        if given.get("transA", 0) or given.get("alpha", 1.0) != 1.0 or given.get("beta", 1.0) != 1.0:
            raise ValueError(f"Gemm '{node.name}' has {given}: only X W + b can be written as MatMul and Add.")
        x, weight, *bias = node.input
        if given.get("transB", 0):
            matrix = numpy_helper.to_array(initializers[weight])
            initializers[weight].CopyFrom(numpy_helper.from_array(np.ascontiguousarray(matrix.T), weight))
        product = f"{node.output[0]}/product" if bias else node.output[0]
        nodes.append(helper.make_node("MatMul", [x, weight], [product], name=node.name))
        if bias:
            nodes.append(helper.make_node("Add", [product, bias[0]], [node.output[0]], name=f"{node.name}/bias"))
    del model.graph.node[:], model.graph.value_info[:]  # which may tell the shapes of weights before
    model.graph.node.extend(nodes)

"""Today's practice: the low-bit layers that onnxruntime has itself, made by its own quantizers."""

import logging
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.paper.tasks import Task

BLOCK = 128
"""Weights that share a scale in the 4-bit and 2-bit layers."""

ACCURACY_LEVEL = 4
"""Activations of 8 bits: the fast path of MatMulNBits."""


def as_matmul(task: Task) -> onnx.ModelProto:
    """The model with each layer to compress as MatMul and Add, the form that onnxruntime's quantizers take."""
    model = task.proto()
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    layers = {layer.weight: layer for layer in task.layers}
    nodes = []
    for node in graph.node:
        if node.op_type != "Gemm" or node.input[1] not in layers:
            nodes.append(node)
            continue
        plain = {"alpha": 1.0, "beta": 1.0, "transA": 0}
        given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        if any(given.get(name, value) != value for name, value in plain.items()):
            raise SystemExit(f"Gemm '{node.name}' scales or transposes: the benchmark takes only plain layers.")
        weight = numpy_helper.to_array(constants[node.input[1]])
        columns = np.ascontiguousarray(weight.T if given.get("transB", 0) else weight)
        constants[node.input[1]].CopyFrom(numpy_helper.from_array(columns, node.input[1]))
        product = f"{node.output[0]}.product"
        nodes.append(helper.make_node("MatMul", list(node.input[:2]), [product], name=node.name))
        nodes.append(helper.make_node("Add", [product, node.input[2]], list(node.output), name=f"{node.name}.bias"))
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:], graph.value_info[:]
    graph.node.extend(kept)
    return model


def _products(model: onnx.ModelProto, task: Task) -> tuple[list[str], list[str]]:
    """Names of the MatMul nodes of the layers, and of all other nodes."""
    weights = {layer.weight for layer in task.layers}
    mine = [n.name for n in model.graph.node if n.op_type == "MatMul" and n.input[1] in weights]
    return mine, [node.name for node in model.graph.node if node.name not in mine]


def int8(task: Task) -> bytes:
    """Dynamic quantization: weights of 8 bits with a scale per output."""
    from onnxruntime.quantization import QuantType, quantize_dynamic  # noqa: PLC0415 -- it loads slowly

    model = as_matmul(task)
    mine, _ = _products(model, task)
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
                nodes_to_quantize=mine,
                per_channel=True,
                weight_type=QuantType.QInt8,
            )
        finally:
            logging.disable(logging.NOTSET)
        return target.read_bytes()


def few_bits(task: Task, bits: int) -> bytes:
    """MatMulNBits: weights of `bits` bits with a scale and a zero point for each `BLOCK`."""
    from onnxruntime.quantization.matmul_nbits_quantizer import (  # noqa: PLC0415 -- it loads slowly
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    model = as_matmul(task)
    _, others = _products(model, task)
    config = DefaultWeightOnlyQuantConfig(
        block_size=BLOCK, is_symmetric=False, accuracy_level=ACCURACY_LEVEL, bits=bits
    )
    logging.disable(logging.WARNING)
    try:
        quantizer = MatMulNBitsQuantizer(
            model,
            bits=bits,
            block_size=BLOCK,
            is_symmetric=False,
            accuracy_level=ACCURACY_LEVEL,
            nodes_to_exclude=others,
            algo_config=config,
        )
        quantizer.process()
    finally:
        logging.disable(logging.NOTSET)
    return quantizer.model.model.SerializeToString()

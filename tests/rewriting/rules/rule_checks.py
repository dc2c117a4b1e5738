"""One check for all rules: the rewritten model computes what the original computes with the decoded weights."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import numpy_helper

from onnxpq.graph import files
from onnxpq.graph.layers import Layer
from onnxpq.graph.normalising import normalise
from onnxpq.pq.reference import decode
from onnxpq.pq.tensor import PQTensor
from onnxpq.rewriting.listing import find
from onnxpq.rewriting.replacing import rewrite, update_initializers

FLOAT32_BUDGET = 1e-5
"""Largest difference, relative to the largest absolute output: the order of float32 sums of up to 100 terms."""


def initializer(name: str, *shape: int, seed: int = 0) -> onnx.TensorProto:
    values = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def parse(
    text: str, *initializers: onnx.TensorProto, opset: int = 17, ir_version: int = 8, domains: tuple[str, ...] = ()
) -> ir.Model:
    """A model from ONNX text: ``(float[N,4] x) => (float[N,3] y) {...}``."""
    imports = "".join(f', "{domain}" : 1' for domain in domains)
    proto = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}{imports}]>\nmain {text}')
    proto.graph.initializer.extend(initializers)
    return files.load(proto)


def quantized(layer: Layer, *, seed: int = 1, codewords: int = 5, length: int = 3) -> PQTensor:
    """A random PQTensor of the layer's sizes: rewriting does not care how well it fits."""
    rng = np.random.default_rng(seed)
    sub_vectors = -(-layer.in_features // length)
    return PQTensor(
        codebooks=rng.standard_normal((1, sub_vectors, codewords, length)).astype(np.float16),
        codes=rng.integers(0, codewords, (layer.out_features, 1, sub_vectors), dtype=np.uint8),
        scales=rng.uniform(0.5, 2.0, layer.out_features).astype(np.float32),
        in_features=layer.in_features,
    )


def run(model: ir.Model, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(files.to_bytes(model), options, providers=["CPUExecutionProvider"])
    return session.run(None, dict(inputs))


def with_decoded_weights(model: ir.Model, layers: list[Layer], tensors: Mapping[str, PQTensor]) -> ir.Model:
    normal = normalise(model)
    values = {}
    for layer in layers:
        tensor = tensors[layer.weight]
        weight = decode(tensor.codebooks, tensor.codes, tensor.scales, tensor.in_features).astype(np.float32)
        shape = normal.graph.initializers[layer.weight].const_value.shape.numpy()
        if layer.weight_is_in_out:
            weight = weight.reshape(*shape[:-2], shape[-1], shape[-2]).swapaxes(-1, -2)
        values[layer.weight] = weight.reshape(shape)
    # The user's own model where it holds these constants: normalising binds inputs that have a default.
    held = {value.name for graph in model.graphs() for value in graph.initializers.values()}
    return update_initializers(model if held.issuperset(values) else normal, values)


def largest_difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative to the largest absolute expected value."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max(initial=0.0) / max(np.abs(expected).max(initial=0.0), 1e-30))


def check_rewrite(
    model: ir.Model, inputs: Mapping[str, np.ndarray], *, conv1x1: bool = False, tables: bool = False
) -> tuple[list[Layer], ir.Model]:
    """Rewrites all layers, compares all outputs, and returns what was rewritten."""
    layers, _ = find(model, min_weights=0, conv1x1=conv1x1, tables=tables)
    assert layers
    tensors = {layer.weight: quantized(layer, seed=number) for number, layer in enumerate(layers)}
    rewritten = rewrite(model, layers, tensors)
    expected = run(with_decoded_weights(model, layers, tensors), inputs)
    for name, before, after in zip(
        (o.name for o in model.graph.outputs), expected, run(rewritten, inputs), strict=True
    ):
        difference = largest_difference(after, before)
        assert difference <= FLOAT32_BUDGET, f"{name}: {difference} > {FLOAT32_BUDGET}"
    return layers, rewritten


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


def reasons(model: ir.Model) -> dict[str, str]:
    layers, skipped = find(model, min_weights=0)
    assert not layers
    return {entry.node: entry.reason for entry in skipped}

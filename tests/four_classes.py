"""A small problem for fine-tuning whose answer is known: a network that must be told four classes apart."""

import numpy as np
import onnx_ir as ir
import torch

from onnxpq.config.settings import PQConfig
from onnxpq.graph.layers import Layer
from onnxpq.network import importing, matrices
from onnxpq.network.module import Network
from onnxpq.pq.quantized import Quantized
from onnxpq.quantization import allocation, encoding
from onnxpq.training.finetuning import Samples

SAMPLES, WIDTH, HIDDEN, CLASSES = 600, 16, 48, 4

LAYERS = [
    Layer("first", "Gemm", "w1", HIDDEN, WIDTH, False, "b1"),
    Layer("second", "MatMul", "w2", CLASSES, HIDDEN, True, None),
]
VECTORS = ["b1"]


def make_network() -> Network:
    random = np.random.default_rng(0)
    text = f"""<ir_version: 8, opset_import: ["" : 13]>
        net (float[N,{WIDTH}] x) => (float[N,{CLASSES}] scores) {{
            hidden = Gemm <transB = 1> (x, w1, b1)
            active = Relu (hidden)
            scores = MatMul (active, w2)
        }}"""
    model = ir.from_onnx_text(text)
    weights = {
        "w1": random.standard_normal((HIDDEN, WIDTH)) / 4,
        "b1": random.standard_normal(HIDDEN) / 4,
        "w2": random.standard_normal((HIDDEN, CLASSES)) / 4,
    }
    for name, array in weights.items():
        value = next(i for node in model.graph for i in node.inputs if i is not None and i.name == name)
        value.const_value = ir.tensor(array.astype(np.float32), name=name)
        model.graph.initializers[name] = value
    return importing.import_model(model)


def make_data(network: Network) -> tuple[Samples, Samples]:
    x = np.random.default_rng(1).standard_normal((SAMPLES, WIDTH)).astype(np.float32)
    with torch.no_grad():
        scores = network({"x": torch.from_numpy(x)})["scores"].numpy()
    rows = np.arange(SAMPLES)
    labels = scores.argmax(1)
    return Samples({"x": x}, scores, labels, rows[:500]), Samples({"x": x}, scores, labels, rows[500:])


def start(network: Network, seed: int = 0, settings: PQConfig | None = None) -> dict[str, Quantized]:
    settings = settings or PQConfig(sub_vector=4, codewords=8)
    parts = {}
    for layer in LAYERS:
        matrix = matrices.matrix_of(network.parameter(layer.weight).detach().numpy(), layer)
        parts[layer.weight] = encoding.quantize(matrix, allocation.layout_of(layer, settings), seed=seed)
    return parts

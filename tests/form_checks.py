"""What becomes of a form (`model_forms`), measured: bytes, errors in onnxruntime, gradients."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from model_forms import Form
from numpy.typing import NDArray

from onnxpq import rewriting, runtime
from onnxpq.config.settings import Config, PQConfig
from onnxpq.graph import files, preparing
from onnxpq.graph.layers import Layer
from onnxpq.graph.normalising import normalise
from onnxpq.network import importing, matrices
from onnxpq.pq.matrix import from_matrix
from onnxpq.pq.reference import decode
from onnxpq.pq.tensor import PQTensor
from onnxpq.quantization import allocation, encoding


@dataclass(frozen=True)
class Outcome:
    """What became of a form.

    Attributes:
        layers: nodes that were compressed.
        reasons: of the nodes that were not.
        bytes_before: of the file.
        bytes_after: of the compressed one; None where nothing was compressed.
        stock_error: relative L2 error of the worst output against the model with decoded weights, on stock operators.
        library_error: the same on the operator library; None without one.
        trainable: whether a gradient reaches every weight.
    """

    layers: tuple[str, ...]
    reasons: tuple[str, ...]
    bytes_before: int
    bytes_after: int | None = None
    stock_error: float | None = None
    library_error: float | None = None
    trainable: bool | None = None


def outcome(form: Form, pq: PQConfig, *, use_library: bool = True) -> Outcome:
    """Compress a form by plain product quantization and compare it with the PQ reference."""
    model = preparing.prepare(files.load(form.model()))
    before = len(form.model().SerializeToString())
    config = Config(pq=pq, **form.settings)
    layers, skipped = rewriting.find(model, conv1x1=config.conv1x1, tables=config.takes_tables, kinds=config.kinds)
    names, reasons = tuple(layer.node for layer in layers), tuple(entry.reason for entry in skipped)
    if not layers:
        return Outcome(names, reasons, before)
    normal = normalise(model if form.runs else preparing.widened(model))
    tensors = {layer.weight: quantized(normal, layer, config) for layer in layers}
    rewritten = rewriting.rewrite(model, layers, tensors)
    inputs = form.inputs()
    expected = runtime.run(runtime.session(reference(normal, layers, tensors), use_library=False), inputs)
    found = {
        library: runtime.run(runtime.session(rewritten, use_library=library), inputs)
        for library in ((False, True) if use_library and runtime.library_available() else (False,))
    }
    errors = {library: worst_error(values, expected) for library, values in found.items()}
    return Outcome(
        names,
        reasons,
        before,
        len(files.to_bytes(rewritten)),
        errors[False],
        errors.get(True),
        gradients_reach(normal, layers, inputs),
    )


def quantized(normal: ir.Model, layer: Layer, config: Config) -> PQTensor:
    array = normal.graph.initializers[layer.weight].const_value.numpy()
    layout = allocation.layout_of(layer, config.pq)
    return encoding.quantize(matrices.matrix_of(array, layer), layout, seed=0).freeze()


def reference(normal: ir.Model, layers: list[Layer], tensors: dict[str, PQTensor]) -> ir.Model:
    """The model with the weights that the codes stand for."""
    values = {}
    for layer in layers:
        t = tensors[layer.weight]
        matrix = torch.from_numpy(decode(t.codebooks, t.codes, t.scales, t.in_features))
        shape = normal.graph.initializers[layer.weight].const_value.shape.numpy()
        values[layer.weight] = from_matrix(matrix, shape, is_in_out=layer.weight_is_in_out).numpy()
    return rewriting.update_initializers(normal, values)


def gradients_reach(normal: ir.Model, layers: list[Layer], inputs: dict[str, NDArray[Any]]) -> bool:
    network = importing.import_model(normal)
    weights = network.trainable({layer.weight for layer in layers})
    # Both branches of an If in turn: the sign of x decides.
    for sign in (1, -1):
        outputs = network({name: torch.from_numpy(sign * array) for name, array in inputs.items()})
        outputs["y"].square().sum().backward()
    return all(weight.grad is not None and bool(weight.grad.abs().sum() > 0) for weight in weights.values())


def worst_error(found: dict[str, NDArray[Any]], expected: dict[str, NDArray[Any]]) -> float:
    """Largest relative L2 difference of an output; where nothing but zeros are expected, 0 for these or infinite."""
    errors = []
    for name, array in expected.items():
        assert found[name].shape == array.shape
        difference = float(np.linalg.norm(found[name].astype(np.float64) - array.astype(np.float64)))
        size = float(np.linalg.norm(array.astype(np.float64)))
        errors.append(difference / size if size else math.inf if difference else 0.0)
    return max(errors)

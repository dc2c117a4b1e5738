"""What each layout of each layer would cost: its bytes, and the error that it brings into the model's output.

Two measurements per layer. Its *curve* is the relative squared error of the layer's own outputs at each layout
(`onnxpq.quantization.curves`). Its *influence* is the relative squared error of the model's output
per unit of that, measured in onnxruntime with this layer alone quantized. Small errors of different layers
add up (they are nearly independent, so their squares do), so that the sum over the layers of influence times curve is
what an allocation costs. `python -m benchmarks allocation` measures how well that holds and what it gains.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxpq import runtime
from onnxpq.data import Dataset, batches
from onnxpq.graph import Layer, used_values
from onnxpq.network import partition
from onnxpq.pq import Layout, PQTensor, decode
from onnxpq.pq.matrix import from_matrix
from onnxpq.quantization.curves import TINY, Weight
from onnxpq.runtime import activations
from onnxpq.verification import flattened

Array: TypeAlias = NDArray[Any]

PROBED_SAMPLES: Final = 64
"""Samples that the influence is measured on."""

PROBES: Final = (0.001, 0.01, 0.1)
"""The influence is measured at the layouts whose errors are nearest to these: small enough for errors to add up. It
need not be the same for all. Where the output is a softmax that hardly leaves 0 and 1, small errors bring in a tenth or
a thirtieth of their part (digits); those of coarse codes are alike from row to row and bring in five times theirs
(`mnist_mlp`)."""

FAINTEST: Final = 0.01
"""An influence is taken to be at least this share of the largest of its weight: few samples may show none."""

_ROWS: Final = 4096
"""Rows of a weight that are decoded at a time."""

_FLOAT: Final = ir.TensorType(ir.DataType.FLOAT)
_NARROWED: Final = ".onnxpq_bfloat16"


@dataclass(frozen=True)
class Curve:
    """What is known of one weight.

    Attributes:
        weight: its name.
        layouts: what it may get, [n].
        sizes: bytes of each in the file.
        errors: relative squared error of the layer's outputs (without data: of the weight) with each.
        influences: relative squared error of the model's output per unit of the layer's error, at some errors, by
            growing error: pairs of an error and what it is there. 1 without data.
        gain: by what factor training is expected to lower what the layer brings into the output.
    """

    weight: str
    layouts: tuple[Layout, ...]
    sizes: tuple[int, ...]
    errors: tuple[float, ...]
    influences: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    gain: float = 1.0

    @property
    def costs(self) -> tuple[float, ...]:
        """What each layout brings into the model's output, without training.

        Between errors at which the influence is known it is a power of the error.
        """
        at, known = np.log(np.maximum(self.influences, TINY)).T
        known = np.maximum(known, known.max() + math.log(FAINTEST))
        influences = np.exp(np.interp(np.log(np.maximum(self.errors, TINY)), at, known))
        return tuple(float(cost) for cost in influences * self.errors)

    def scaled(self, factor: float) -> "Curve":
        """The same for a weight that brings in so many times as much."""
        return replace(self, influences=tuple((error, factor * influence) for error, influence in self.influences))

    @property
    def final_costs(self) -> tuple[float, ...]:
        """What it is expected to bring in after training."""
        return tuple(cost / self.gain for cost in self.costs)


class Influence:
    """The model's output as a function of its weights, on a few samples.

    What does not depend on the weights is computed once. The rest is one session that takes the weights as inputs, so
    that another weight needs no other session.
    """

    def __init__(
        self,
        model: ir.Model,
        layers: Sequence[Layer],
        output: str,
        samples: Dataset,
        *,
        libraries: runtime.Libraries = (),
    ) -> None:
        """Prepare the session and compute the output of the original.

        Args:
            model: normalised; not changed.
            layers: of it.
            output: the output to look at.
            samples: `PROBED_SAMPLES` or fewer; a fixed batch is filled up.
            libraries: custom-operator libraries that the model needs.

        Raises:
            ModelError, RuntimeLibraryError: onnxruntime refuses the model.
        """
        weights = {layer.weight for layer in layers}
        self._output = output
        self._weights = {name: _values(model, name) for name in sorted(weights)}
        given = [value.name or "" for value in model.graph.inputs]
        boundary = _boundary(model, weights)
        computed = [name for name in boundary if name not in given]
        open_session = partial(runtime.frugal, custom_ops_libraries=libraries)
        before = activations.extract(model, given, computed) if computed else None
        session = None if before is None else open_session(before)
        self._feeds: list[dict[str, Array]] = []
        fixed = None if samples.whole else activations.fixed_batch(model, samples.places)
        for part, _ in batches(samples, fixed or len(samples), exact=fixed is not None):
            values = part.feeds
            if before is not None and session is not None:
                names = [value.name or "" for value in before.graph.inputs]
                values |= runtime.run(session, {name: values[name] for name in names})
            self._feeds.append(values)
        start = list(dict.fromkeys([*given, *boundary, *self._weights]))
        after = activations.extract(_with_inputs(model, self._weights), start, [output])
        for value in after.graph.inputs:
            _complete_type(value, self._feeds[0] | self._weights)
        self._needed = [value.name or "" for value in after.graph.inputs]
        self._session = open_session(after)
        self._exact = self._run({})

    def error(self, layer: Layer, matrix: Tensor) -> float:
        """Relative squared error of the output with a weight replaced by a matrix [out, in]."""
        exact = self._weights[layer.weight]
        replaced = from_matrix(matrix, exact.shape, is_in_out=layer.weight_is_in_out)
        found = self._run({layer.weight: np.ascontiguousarray(replaced.numpy().astype(exact.dtype))})
        missed = sum(_missed(a, b) for a, b in zip(found, self._exact, strict=True))
        whole = sum(float(np.square(b).sum()) for b in self._exact)
        return missed / whole if whole > 0 else 0.0

    def quantized(self, layer: Layer, tensor: PQTensor) -> float:
        """The same with the weight as it is stored."""
        codebooks, rows = tensor.codebooks, np.empty((tensor.out_features, tensor.in_features), np.float32)
        for start in range(0, len(rows), _ROWS):  # the reference computes in float64
            some = slice(start, start + _ROWS)
            rows[some] = decode(codebooks, tensor.codes[some], tensor.scales[some], tensor.in_features)
        return self.error(layer, torch.from_numpy(rows))

    def _run(self, weights: Mapping[str, Array]) -> list[NDArray[np.float64]]:
        found = []
        for values in self._feeds:
            known = {**self._weights, **values, **weights}
            outputs = runtime.run(self._session, {name: known[name] for name in self._needed})
            found.append(_numbers(flattened(outputs[self._output])))
        return found


def _numbers(values: Array) -> NDArray[np.float64]:
    """The output as numbers; text as whether it is there."""
    return values.astype(np.float64) if values.dtype.kind in "biuf" else np.ones(values.shape)


def _missed(found: NDArray[np.float64], exact: NDArray[np.float64]) -> float:
    """Squared error; what has another shape is as far off as if nothing were there."""
    return float(np.square(found - exact if found.shape == exact.shape else exact).sum())


def influences(
    probe: Influence, layer: Layer, weight: Weight, layouts: Sequence[Layout], errors: Sequence[float]
) -> list[tuple[float, float]]:
    """The relative squared error of the model's output per unit of a layer's, at the layouts nearest to `PROBES`.

    Args:
        probe: of the model.
        layer: the layer.
        weight: its weight.
        layouts: to choose those from.
        errors: of the layouts.

    Returns:
        The error of each, and the influence there, by growing error.
    """
    logarithms = np.log(np.maximum(errors, TINY))
    chosen = {int(np.argmin(np.abs(logarithms - math.log(error)))) for error in PROBES}
    found = []
    for layout in (layouts[at] for at in chosen):
        missed, error = weight.missed(layout)
        found.append((error, probe.error(layer, weight.matrix + missed) / max(error, TINY)))
    return sorted(found)


def filled(curves: Sequence[Curve]) -> list[Curve]:
    """The curves, with a usual influence for weights that the output does not depend on: other outputs may."""
    known = [largest for entry in curves if (largest := _largest(entry)) > 0]
    usual = float(np.exp(np.mean(np.log(known)))) if known else 1.0
    return [entry if _largest(entry) > 0 else replace(entry, influences=((1.0, usual),)) for entry in curves]


def _largest(curve: Curve) -> float:
    return max(influence for _, influence in curve.influences)


def _values(model: ir.Model, weight: str) -> Array:
    tensor = model.graph.initializers[weight].const_value
    values = np.asarray(tensor.numpy()) if tensor is not None else np.zeros(0)
    return values.astype(np.float32) if tensor is not None and tensor.dtype == ir.DataType.BFLOAT16 else values


def _with_inputs(model: ir.Model, weights: Iterable[str]) -> ir.Model:
    """A copy of the model whose weights are inputs; other tensors are shared."""
    copy = model.clone()
    for name in weights:
        value = copy.graph.initializers.pop(name)
        value.const_value = None
        if value.dtype == ir.DataType.BFLOAT16:
            # numpy has no such type to feed.
            given, value.name = ir.Value(name=name, type=_FLOAT, shape=value.shape), f"{name}{_NARROWED}"
            cast = ir.Node("", "Cast", [given], [ir.AttrInt64("to", ir.DataType.BFLOAT16)], outputs=[value])
            copy.graph.insert_before(copy.graph[0], cast)
            value = given
        if value not in copy.graph.inputs:
            copy.graph.inputs.append(value)
    return copy


def _complete_type(value: ir.Value, arrays: Mapping[str, Array]) -> None:
    """Give an input the type that its values have, where the model does not say it."""
    array = arrays[value.name or ""]
    if value.type is None:
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
    if value.shape is None:
        value.shape = ir.Shape([None] * array.ndim)


def _boundary(model: ir.Model, weights: set[str]) -> list[str]:
    """The values that the nodes behind the weights take from those that do not depend on them."""
    dependent = partition.dependents(model.graph, [model.graph.initializers[name] for name in weights])
    found: dict[str, None] = {}
    for node in model.graph:
        if any(value in dependent for value in node.outputs):
            for value in used_values(node):
                if value not in dependent and not value.is_initializer():
                    found[value.name or ""] = None
    return list(found)

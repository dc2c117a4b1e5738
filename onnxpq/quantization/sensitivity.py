"""What each layout of each layer would cost: its bytes, and the error that it brings into the model's output.

Two measurements per layer. Its *curve* is the relative squared error of the layer's own outputs at each layout, by a
cheaper form of the quantizer on some of the rows. Its *influence* is the relative squared error of the model's output
per unit of that, measured in onnxruntime with this layer alone quantized. Small errors of different layers
add up (they are nearly independent, so their squares do), so that the sum over the layers of influence times curve is
what an allocation costs. `python -m benchmarks allocation` measures how well that holds and what it gains.
"""

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
from onnxpq.pq import InputStatistics, Layout, calibrated, codec
from onnxpq.pq.matrix import from_matrix
from onnxpq.runtime import activations
from onnxpq.verification import flattened

Array: TypeAlias = NDArray[Any]

ROWS: Final = 256
LEAST_ROWS: Final = 64
"""Rows of a weight that its curve is measured on, at random: most and least. In between are as many as give each
codeword `POINTS` sub-vectors."""

POINTS: Final = 64

MEASURED: Final = (1, 2, 3, 4, 6, 8, 12, 16, 24)
"""Lengths of sub-vectors that are measured."""

TINY: Final = 1e-12
"""Errors below this count as this."""

PROBED_SAMPLES: Final = 64
"""Samples that the influence is measured on."""

PROBE: Final = 0.1
"""The influence is measured at the layout whose relative squared error is nearest to this: large enough to stand out
against rounding, small enough for errors to add up."""

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
        influence: relative squared error of the model's output per unit of the layer's error; 1 without data.
        gain: by what factor training is expected to lower what the layer brings into the output.
    """

    weight: str
    layouts: tuple[Layout, ...]
    sizes: tuple[int, ...]
    errors: tuple[float, ...]
    influence: float
    gain: float = 1.0

    @property
    def costs(self) -> tuple[float, ...]:
        """What each layout brings into the model's output, without training."""
        return tuple(self.influence * error for error in self.errors)

    @property
    def final_costs(self) -> tuple[float, ...]:
        """What it is expected to bring in after training."""
        return tuple(cost / self.gain for cost in self.costs)


def curve(matrix: Tensor, family: Sequence[Layout], statistics: InputStatistics | None, *, seed: int) -> list[float]:
    """The same as `measure` for layouts that differ in the length of their sub-vectors.

    Those of the lengths in `MEASURED`, the shortest and the longest are measured; between them the logarithm of the
    error is taken to be linear in the length.

    Args:
        matrix: as for `measure`.
        family: by growing length.
        statistics: likewise.
        seed: likewise.
    """
    ends = (family[0], family[-1])
    measured = [layout for layout in family if layout.sub_vector in MEASURED or layout in ends]
    errors = np.maximum(measure(matrix, measured, statistics, seed=seed), TINY)
    lengths = [layout.sub_vector for layout in measured]
    found = np.exp(np.interp([layout.sub_vector for layout in family], lengths, np.log(errors)))
    return [float(error) for error in found]


def measure(matrix: Tensor, layouts: Sequence[Layout], statistics: InputStatistics | None, *, seed: int) -> list[float]:
    """The relative squared error of a layer at each of some layouts, on at most `ROWS` of its rows.

    Where rows are left out, codebooks are put together so that each still serves as many sub-vectors as it would.

    Args:
        matrix: the weight [out, in].
        layouts: to be measured.
        statistics: of the layer's inputs; None measures the error of the weight instead of the outputs'.
        seed: of the choice of rows and of k-means.
    """
    moment = None if statistics is None else torch.from_numpy(statistics.regularized())
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(matrix)))
    errors = []
    for layout in layouts:
        wanted = POINTS * layout.codewords // layout.per_group
        part = matrix[order[: min(ROWS, max(LEAST_ROWS, wanted))].sort().values]
        groups = max(1, layout.groups * len(part) // layout.out_features)
        own = replace(layout, out_features=len(part), groups=-(-layout.sub_vectors // -(-layout.sub_vectors // groups)))
        missed, whole = part - approximate(part, own, moment, seed=seed), _size(part, moment)
        errors.append(_size(missed, moment) / whole if whole > 0 else 0.0)
    return errors


def approximate(matrix: Tensor, layout: Layout, moment: Tensor | None, *, seed: int) -> Tensor:
    """A matrix [out, in] as a layout gives it back, by one pass of the quantizer.

    Args:
        matrix: the weight.
        layout: how it is cut.
        moment: H [in, in] of a layer's inputs, or None.
        seed: of k-means.
    """
    generator = torch.Generator().manual_seed(seed)
    if moment is None:
        return codec.decode(*codec.encode(matrix, layout, generator=generator), layout)
    return codec.decode(*calibrated.encode(matrix, layout, moment, generator=generator, rounds=0), layout)


def _size(matrix: Tensor, moment: Tensor | None) -> float:
    weighted = matrix if moment is None else matrix @ moment
    return float(torch.einsum("oi,oi->", matrix, weighted))


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


def influence(
    probe: Influence,
    layer: Layer,
    matrix: Tensor,
    measured: Curve,
    statistics: InputStatistics | None,
    importance: NDArray[np.float32] | None = None,
) -> float:
    """The relative squared error of the model's output per unit of a layer's, from one layout of its curve.

    Args:
        probe: of the model.
        layer: the layer.
        matrix: its weight [out, in].
        measured: its curve.
        statistics: of its inputs, as for the curve.
        importance: what the squared error of each row counts, [out], positive; by default all the same.
    """
    at = int(np.argmin(np.abs(np.log(np.maximum(measured.errors, TINY)) - np.log(PROBE))))
    moment = None if statistics is None else torch.from_numpy(statistics.regularized())
    layout = measured.layouts[at]
    if importance is None:
        replaced = approximate(matrix, layout, moment, seed=0)
    else:
        factors = codec.row_factors(importance)
        replaced = approximate(matrix * factors, layout, moment, seed=0) / factors
    error = _size(matrix - replaced, moment) / max(_size(matrix, moment), 1e-30)
    return probe.error(layer, replaced) / max(error, TINY)


def filled(curves: Sequence[Curve]) -> list[Curve]:
    """The curves, with a usual influence for weights that the output does not depend on: other outputs may."""
    known = [entry.influence for entry in curves if entry.influence > 0]
    usual = float(np.exp(np.mean(np.log(known)))) if known else 1.0
    return [entry if entry.influence > 0 else replace(entry, influence=usual) for entry in curves]


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

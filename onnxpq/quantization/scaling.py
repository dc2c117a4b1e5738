"""Inputs in different units, brought to one scale before a layer cuts them into sub-vectors.

Where one input is an age and the next an income, as where a scaler was folded into the first weights, a sub-vector's
codewords go to the inputs of the smallest units, whose weights are large, and what they miss of the others decides the
output. Nor can the tables of the operator, which are integers, tell the small from the large. A mean far from zero
does the same: what it adds to the output is large, always the same, and taken off again by the bias. So inputs get
the origin m and the unit t, ``W x + b = (W T) ((x - m) / T) + (W m + b)``: the same function, with a Sub and a Mul in
front (`onnxpq.rewriting.rescaling`). `python -m benchmarks units` measures what that brings.

With ``t = sqrt(deviation / size of the weights)`` inputs and weights differ equally much in what is left (as in
SmoothQuant, Xiao et al. 2023, where the exponent is 1/2 too). Without data large weights are taken to mean small
inputs. On layers whose inputs are of one unit none of that gains anything, so those stay as they are.
"""

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq.data import Dataset
from onnxpq.errors import ModelError
from onnxpq.graph import Layer, constant, subgraphs, used_values
from onnxpq.network import matrices
from onnxpq.pq import ColumnStatistics
from onnxpq.quantization import calibration
from onnxpq.rewriting import rescaling
from onnxpq.rewriting.rescaling import Group, Scale
from onnxpq.runtime import Libraries

Columns: TypeAlias = NDArray[np.floating]

ROWS: Final = 4096
"""Rows of a layer's inputs that are looked at."""

SPREAD: Final = 100.0
"""Inputs are scaled where one that counts has more than this times the power that the weights are made for."""

OFFSET: Final = 4.0
"""Inputs are centred where their means have more than this times the power of their deviations."""

UNEQUAL: Final = 8.0
"""Without data, inputs are scaled where one has weights larger than the median by this factor."""

COUNTS: Final = 0.1
"""Share of the mean power of an input that counts."""

LEAST: Final = 0.01
"""Share of the median that an input is taken to count at least: no sample may have shown what it can be."""

NEAR: Final = 0.25
"""Standard deviations that an origin may be off the mean, to take fewer bytes."""

LARGE_CONSTANT: Final = 4096
"""Values that no constant of so many elements and no layer comes before are taken to be the user's own."""


def scales(
    model: ir.Model,
    normal: ir.Model,
    layers: Sequence[Layer],
    data: Dataset | None,
    *,
    seed: int,
    libraries: Libraries = (),
) -> list[tuple[Group, Scale]]:
    """The layers whose inputs are to be scaled, and how.

    Args:
        model: prepared (`onnxpq.graph.preparing.prepare`); not changed.
        normal: the same normalised.
        layers: of it.
        data: samples, or None.
        seed: of the choice of samples.
        libraries: custom-operator libraries that the model needs.
    """
    sizes = {group: _sizes(normal, group) for group in rescaling.groups(model, layers)}
    if data is None:
        found = {group: by_weights(size) for group, size in sizes.items()}
    else:
        own = _own_values(normal, {layer.node for layer in layers})
        wanted = [
            group
            for group, size in sizes.items()
            if by_weights(size) is not None or all(place.input in own for place in group)
        ]
        seen = _seen(normal, wanted, data, seed=seed, libraries=libraries)
        found = {
            group: by_data(sizes[group], seen[group], centred=all(place.can_be_centred for place in group))
            if group in seen
            else by_weights(sizes[group])
            for group in wanted
        }
    return [(group, scale) for group, scale in found.items() if scale is not None]


def by_weights(size: Columns) -> Scale | None:
    """The scale that makes weights equally large, where they differ much.

    Args:
        size: [in], root mean square of each input's weights.
    """
    known = size[size > 0]
    if not len(known) or known.max() < UNEQUAL * np.median(known):
        return None
    units = np.median(known) / np.where(size > 0, size, np.median(known))
    return Scale.of(None, np.zeros(len(size)), units)


def by_data(size: Columns, seen: ColumnStatistics, *, centred: bool) -> Scale | None:
    """The scale for inputs that were looked at, where they differ much or are far from zero.

    Args:
        size: [in], root mean square of each input's weights.
        seen: of the inputs.
        centred: whether the layers can be.
    """
    deviation, mean = seen.deviation, seen.mean
    moves = centred and np.square(size * mean).sum() > OFFSET * np.square(size * deviation).sum()
    spread = deviation if moves else np.hypot(deviation, mean)
    power = np.square(size * spread)
    if not power.sum() > 0:
        return None
    expected = power.sum() / np.square(size).sum()
    scales_ = np.square(spread[power >= COUNTS * power.mean()]).max() > SPREAD * expected
    if not (moves or scales_):
        return None
    return Scale.of(mean if moves else None, NEAR * deviation, _units(size, spread) if scales_ else None)


def _units(size: Columns, spread: Columns) -> Columns:
    least = LEAST * np.median((size * spread)[size * spread > 0])
    with np.errstate(divide="ignore", invalid="ignore"):
        spread_, size_ = np.maximum(spread, least / size), np.maximum(size, least / spread)
        units = np.sqrt(spread_ / size_)
    return np.where(np.isfinite(units) & (units > 0), units, 1.0)


def _sizes(normal: ir.Model, group: Group) -> Columns:
    """Root mean square of the weights of each input, over all layers of a group."""
    layers = {place.layer.weight: place.layer for place in group}
    total = sum(matrices.weight(normal, layer).double().square().sum(0).numpy() for layer in layers.values())
    return np.sqrt(total / sum(layer.out_features for layer in layers.values()))


def _own_values(normal: ir.Model, layers: set[str]) -> set[str]:
    """The values that come straight from the inputs of the model, and what little is computed from them."""
    found = set(normal.graph.inputs)
    for node in normal.graph:
        used = used_values(node)
        varying = [value for value in used if constant(value) is None]
        large = any(_elements(value) >= LARGE_CONSTANT for value in used)
        if node.name not in layers and not large and varying and all(value in found for value in varying):
            found.update(node.outputs)
    return {value.name or "" for value in found}


def _elements(value: ir.Value) -> int:
    tensor = constant(value)
    return 0 if tensor is None else int(tensor.size)


def _seen(
    normal: ir.Model, groups: Sequence[Group], data: Dataset, *, seed: int, libraries: Libraries
) -> dict[Group, ColumnStatistics]:
    """What some samples show of the inputs of each group; those that a run does not give out are left out."""
    shown = [group for group in groups if all(subgraphs.can_expose(normal, place.input) for place in group)]
    found: dict[Group, ColumnStatistics] = {}
    for is_inner in (False, True):
        own = {
            group: ColumnStatistics(group[0].layer.in_features)
            for group in shown
            if is_inner == any(place.layer.place for place in group)
        }
        try:
            _look(normal, own, data, np.random.default_rng(seed), libraries)
        except ModelError:
            # A loop whose values change their shape from iteration to iteration cannot give them out.
            if not is_inner:
                raise
            continue
        found |= {group: seen for group, seen in own.items() if seen.rows and seen.is_finite}
    return found


def _look(
    normal: ir.Model,
    wanted: Mapping[Group, ColumnStatistics],
    data: Dataset,
    random: np.random.Generator,
    libraries: Libraries,
) -> None:
    """Count the inputs of groups in as many samples as have `ROWS` rows of each."""
    names = {place.input for group in wanted for place in group}
    if not names:
        return
    for values in calibration.sampled(subgraphs.expose(normal, sorted(names)), names, data, random, libraries):
        for group, seen in wanted.items():
            # Layers that share an input see it once.
            for name, axis in {place.input: place.axis for place in group}.items():
                if values[name].size:  # not so in a branch that was not taken
                    seen.add(np.moveaxis(values[name], axis, -1).reshape(-1, len(seen.mean)))
        if all(seen.rows >= ROWS for seen in wanted.values()):
            return

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

import math
from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq.data import Dataset
from onnxpq.errors import ModelError
from onnxpq.graph import Layer, constant, subgraphs, used_values
from onnxpq.network import matrices
from onnxpq.pq import ColumnStatistics, codec
from onnxpq.quantization import calibration
from onnxpq.rewriting import rescaling
from onnxpq.rewriting.rescaling import Group, Scale
from onnxpq.runtime import Libraries
from onnxpq.support import memory

Columns: TypeAlias = NDArray[np.floating]

ROWS: Final = 4096
"""Rows of a layer's inputs that are looked at."""

LEAST_ROWS: Final = 32
"""Of fewer the mean is that of the samples, and not of the inputs."""

SPREAD: Final = 16.0
"""Inputs are scaled where one that counts has so many times the power that the weights are made for, and weights of so
much less."""

OFFSET: Final = 1.0
"""Inputs are centred where their means have more than this times the power of their deviations."""

FEW: Final = 0.45
"""Without data, inputs are scaled where the power of the weights is that of so small a share of them at most."""

COUNTS: Final = 0.1
"""Share of the mean power of an input that counts."""

LEAST: Final = 0.01
"""Share of the median that an input is taken to count at least: no sample may have shown what it can be."""

NEAR: Final = 0.25
"""Standard deviations that an origin may be off the mean, to take fewer bytes."""

TINY: Final = 1e-300

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
    memory.give_back()
    seen: Mapping[Group, ColumnStatistics] = {}
    if data is not None:
        own = _own_values(normal, {layer.node for layer in layers})
        doubtful = [
            group for group, size in sizes.items() if _share(size) < FEW or all(place.input in own for place in group)
        ]
        seen = _seen(normal, doubtful, data, seed=seed, libraries=libraries)
    found = {
        group: by_data(size, seen[group], group) if group in seen else by_weights(size, group)
        for group, size in sizes.items()
    }
    return [(group, scale) for group, scale in found.items() if scale is not None]


def by_weights(size: Columns, group: Group) -> Scale | None:
    """The scale that makes weights equally large, where those of a few inputs are nearly all.

    Args:
        size: [in], root mean square of each input's weights.
        group: the layers that have them.
    """
    share = _share(size)
    if share >= FEW:
        return None
    middle = np.median(size[size > 0])
    scale = Scale.by(middle / np.where(size > 0, size, middle), group[0].dtype)
    return scale if _pays(scale, 1 / share, group) else None


def _share(size: Columns) -> float:
    """Of how many inputs the weights would be, if all of those counted the same: the exponential of the entropy."""
    power = np.square(size[size > 0])
    shares = power / power.sum()
    return float(np.exp(-(shares * np.log(shares)).sum())) / len(size) if len(power) else 1.0


def by_data(size: Columns, seen: ColumnStatistics, group: Group) -> Scale | None:
    """The scale for inputs that were looked at, where they differ much or are far from zero.

    Args:
        size: [in], root mean square of each input's weights.
        seen: of the inputs.
        group: the layers that take them.
    """
    deviation, mean = seen.deviation, seen.mean
    if not (size * np.hypot(deviation, mean)).any():
        return None
    offset = np.square(size * mean).sum() / max(np.square(size * deviation).sum(), TINY)
    centred = Scale.at(mean, np.where(size > 0, NEAR * _at_least(deviation, size), np.inf))
    can_be_centred = seen.rows >= LEAST_ROWS and all(place.can_be_centred for place in group)
    is_centred = can_be_centred and offset > OFFSET and _pays(centred, 1 + offset, group)
    spread = deviation if is_centred else np.hypot(deviation, mean)
    differs = _difference(size, spread)
    scaled = Scale.by(_units(size, spread), group[0].dtype)
    # The error falls by half as many bits as if the input that is worst off were all (measured).
    is_scaled = differs > SPREAD and _pays(scaled, math.sqrt(differs), group)
    if not (is_centred or is_scaled):
        return None
    return Scale(centred.origin if is_centred else None, scaled.factors if is_scaled else None)


def _difference(size: Columns, spread: Columns) -> float:
    """By what factor an input that counts has more power, and its weights less, than where the weights' power lies.

    One of both is no other unit: what is often seen has more power than what is rare, and an input that the output
    hardly depends on has smaller weights.
    """
    power = np.square(size * spread)
    if not power.any():
        return 0.0
    squares = np.square(size)
    made_for, larger = power.sum() / squares.sum(), np.square(squares).sum() / squares.sum()
    counts = power >= COUNTS * power.mean()
    return float(np.minimum(np.square(spread[counts]) / made_for, larger / squares[counts]).max())


def _pays(scale: Scale, gain: float, group: Group) -> bool:
    """Whether a scale takes fewer bytes than the same gain would by more bits a weight: one for each factor of 4.

    Args:
        scale: the scale.
        gain: by what factor it lowers the error's power.
        group: the layers that it is for.
    """
    return rescaling.nbytes(group, scale) < group[0].layer.in_features * _out(group) * 0.5 * math.log2(gain) / 8


def _units(size: Columns, spread: Columns) -> Columns:
    """The unit of each input, so that what is left of inputs and weights differs as much."""
    larger = _at_least(spread, size)
    with np.errstate(divide="ignore", invalid="ignore"):
        units = np.sqrt(larger / _at_least(size, larger))
    return np.where(np.isfinite(units) & (units > 0), units, 1.0)


def _at_least(one: Columns, other: Columns) -> Columns:
    """The first factor of what an input counts, or what makes it count `LEAST` where the second factor can."""
    power = one * other
    least = LEAST * np.median(power[power > 0]) if power.any() else 0.0
    return np.maximum(one, np.divide(least, other, out=np.zeros(len(one)), where=other > 0))


def _sizes(normal: ir.Model, group: Group) -> Columns:
    """Root mean square of the weights of each input, over all layers of a group."""
    layers = {place.layer.weight: place.layer for place in group}
    total = np.zeros(group[0].layer.in_features)
    for layer in layers.values():
        for (rows,) in codec.parts(matrices.weight(normal, layer)):
            total += rows.double().square().sum(0).numpy()
    return np.sqrt(total / _out(group))


def _out(group: Group) -> int:
    """Outputs of all weights of a group."""
    return sum({place.layer.weight: place.layer.out_features for place in group}.values())


def _own_values(normal: ir.Model, layers: set[str]) -> set[str]:
    """The values that come straight from the inputs of the model, also in part, and what little is computed of them."""
    found = set(normal.graph.inputs)
    for node in normal.graph:
        used = used_values(node)
        own = [value in found for value in used if constant(value) is None]
        is_large = any(_elements(value) >= LARGE_CONSTANT for value in used)
        is_own = any(own) if node.op_type == "Concat" else bool(own) and all(own)
        if is_own and not is_large and node.name not in layers:
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

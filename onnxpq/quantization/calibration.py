"""Second moments of what goes into the layers, in streaming passes of onnxruntime over some of the data.

A pass computes the inputs of several layers for a batch of samples, adds them to `InputStatistics` and forgets them, so
memory holds one batch and the moments of one pass, however large model and data are.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq import runtime
from onnxpq.data import Alignment, Dataset
from onnxpq.errors import DataError, ModelError
from onnxpq.graph import Layer, is_standard, subgraphs, tables
from onnxpq.network import dependents
from onnxpq.pq import InputStatistics
from onnxpq.runtime import activations, alignment
from onnxpq.support import memory

Array: TypeAlias = NDArray[Any]

MAX_ROWS: Final = 2**15
"""Rows of a layer's inputs that are looked at; `python -m benchmarks quantizer --rows` tells what fewer cost."""

MAX_LOOKUPS: Final = 2**20
"""Rows of a table that are counted."""

BATCH: Final = 32
"""Samples per run, where the model leaves that open: a few, as all that a run computes is in memory at once."""

LEAST_ROWS: Final = 256
"""Of a large model so many samples go into a run that they have this many rows: its weights are not kept in the order
that is fast for few (`runtime.session`, prepack)."""

VALUE_BYTES: Final = 2**28
"""Inputs of layers that one run computes: fewer samples go into a run where these have more of them."""

LEAST_BATCHES: Final = 16
"""The rows come from this many batches at least, so that a value of many rows per sample is not that of few samples."""

MOMENT_BYTES: Final = 2**29
"""Moments that one pass collects; a model whose layers have more takes several passes."""

KEPT_BYTES: Final = 2**28
"""Moments that are kept for another call, which then need not run the model again."""


class Factor(NamedTuple):
    """What a weight is multiplied with.

    Attributes:
        name: of the value.
        is_columns: whether its columns are the rows that the layer gets, as where the weight is the left factor.
    """

    name: str
    is_columns: bool = False


Factors: TypeAlias = tuple[Factor, ...]

Found: TypeAlias = dict[Factors, InputStatistics]
"""Statistics by the values that they are of."""

_FOR_THE_WEIGHT: Final = "it was quantized for the smallest error of the weight, not of the layers' outputs."

UNSEEN: Final = (
    "The inputs of the layers with weight '{weight}' were not looked at, as they are not the other factor of a MatMul "
    "or Gemm that a run of the whole model can give out: " + _FOR_THE_WEIGHT
)

UNREACHED: Final = (
    "No sample of the data reaches the layers with weight '{weight}', which lie in a branch or loop that is not run: "
    + _FOR_THE_WEIGHT
)

_FILTERS: Final = frozenset({"Compress", "NonMaxSuppression", "NonZero", "Unique"})
"""What decides by the values how many rows are left."""

_VIEWS: Final = frozenset({"Identity", "Transpose", "Cast"})
_FUSED: Final = frozenset({("com.microsoft", "FusedMatMul"), ("com.microsoft", "FusedGemm")})


class Moments:
    """Statistics that are kept for another call, as far as there is room."""

    def __init__(self) -> None:
        self._kept: Found = {}

    def find(self, needed: Mapping[Factors, int], look: Callable[[Mapping[Factors, int]], Found]) -> Found:
        """What a pass finds, which is looked for only where no earlier call left all of it."""
        if needed.keys() <= self._kept.keys():
            return {names: self._kept[names] for names in needed}
        found = look(needed)
        if sum(moment.nbytes for moment in (self._kept | found).values()) <= KEPT_BYTES:
            self._kept |= found
        return found

    def rename(self, old: str, new: str) -> None:
        """What is known of the value `old` is that of `new` now, which has the same entries."""
        moment = self._kept.pop((Factor(old),), None)
        if moment is not None:
            self._kept[Factor(new),] = moment

    def reordered(self, orders: Mapping[str, NDArray[np.intp]]) -> "Moments":
        """The same for a model in which some values are in other orders, by name."""
        other = Moments()
        for names, moment in self._kept.items():
            order = orders.get(names[0].name) if len(names) == 1 else None
            other._kept[names] = moment if order is None else moment.reordered(order)
        return other

    def clear(self) -> None:
        """Let all go."""
        self._kept.clear()


def collect(
    model: ir.Model,
    layers: Sequence[Layer],
    data: Dataset,
    *,
    seed: int,
    libraries: runtime.Libraries = (),
    skip: Collection[str] = (),
    kept: Moments | None = None,
) -> Iterator[tuple[str, InputStatistics | str]]:
    """Statistics of the inputs of each layer's weight.

    Args:
        model: the normalised model (`onnxpq.graph.normalising.normalise`); not changed.
        layers: its layers. For those that share a weight the rows of all their inputs count. Weights that are only
            looked up have no statistics and are passed over.
        data: the samples; of them at random as many as give `MAX_ROWS` rows.
        seed: of the choice of samples and rows.
        libraries: custom-operator libraries that the model needs.
        skip: weights that need no statistics. What is found for the others is the same with or without them.
        kept: what earlier calls with the same model, data, seed and libraries found.

    Yields:
        Each weight's name with its statistics, or with a whole sentence why its inputs cannot be collected.

    Raises:
        DataError: an input of a layer holds NaN or infinity; or the data lack an input of the model.
    """
    only_looked_up = tables(layers)
    multiplied = [layer for layer in layers if layer.weight not in only_looked_up]
    features = {layer.weight: layer.in_features for layer in multiplied}
    sources = {weight: _inputs(model, weight) for weight in features}
    exposed = subgraphs.expose(model, [factor.name for factors in sources.values() for factor in factors])
    inner = {layer.weight: layer.in_features for layer in multiplied if layer.place}
    outer = {weight: size for weight, size in features.items() if weight not in inner}
    look = partial(_one_pass, exposed, data, seed, libraries)
    for weights in (*_passes(outer, sources), *_passes(inner, sources)):
        if all(weight in skip for weight in weights):
            continue
        try:
            # Always the whole pass: what onnxruntime computes may depend, in the last digits, on what else it computes.
            needed = {sources[weight]: features[weight] for weight in weights}
            found = look(needed) if kept is None else kept.find(needed, look)
        except ModelError:
            # A loop whose values change their shape from iteration to iteration cannot give them out.
            if inner.keys().isdisjoint(weights):
                raise
            continue
        left = Counter(sources[weight] for weight in weights)
        for weight in weights:
            names = sources.pop(weight)
            left[names] -= 1
            # What nobody needs any more is let go: else the moments of two passes would be in memory at once.
            statistics = found[names] if left[names] else found.pop(names)
            if weight not in skip:
                yield weight, statistics if statistics.rows else UNREACHED.format(weight=weight)
            del statistics
    for weight in sources:
        if weight not in skip:
            yield weight, UNSEEN.format(weight=weight)


def unreached(
    model: ir.Model, layers: Sequence[Layer], data: Dataset, *, seed: int, libraries: runtime.Libraries = ()
) -> set[str]:
    """The weights that no sample is multiplied with.

    Their layers lie in a branch that is not taken or a loop that is not run, or all rows are filtered out before them.

    Args:
        model: the normalised model.
        layers: its layers. Tables that are only looked up, and layers whose inputs a run does not give out, are not
            found.
        data: the samples, in batches of which one is mostly enough.
        seed: of their order.
        libraries: custom-operator libraries that the model needs.
    """
    filtered = dependents(
        model.graph, [value for node in model.graph if node.op_type in _FILTERS for value in node.outputs]
    )
    looked_up = tables(layers)
    factors = {layer.weight: _inputs(model, layer.weight) for layer in layers if layer.weight not in looked_up}
    sources = {weight: [factor.name for factor in found] for weight, found in factors.items()}
    in_graph = {layer.weight for layer in layers if not layer.place}
    behind = {value.name for value in filtered}
    left = {
        weight: names
        for weight, names in sources.items()
        if names and (weight not in in_graph or behind.issuperset(names))
    }
    if not left:
        return set()
    exposed = subgraphs.expose(model, [name for names in left.values() for name in names])
    wanted = {name for names in left.values() for name in names}
    try:
        for values in sampled(exposed, wanted, data, np.random.default_rng(seed), libraries):
            left = {weight: names for weight, names in left.items() if not any(values[name].size for name in names)}
            if not left:
                break
    except ModelError:
        # A loop whose values change their shape from iteration to iteration cannot give them out, so it is run.
        return set()
    return set(left)


def lookups(
    model: ir.Model, layers: Sequence[Layer], data: Dataset, *, seed: int, libraries: runtime.Libraries = ()
) -> dict[str, NDArray[np.int64]]:
    """How often the samples look each row of a table up: [out] for each weight that is only looked up, by name.

    Args:
        model: the normalised model.
        layers: its layers. A table that a subgraph looks up is left out: a run of the model does not tell which rows.
        data: the samples; of them at random as many as look up `MAX_LOOKUPS` rows of each table.
        seed: of the choice of samples.
        libraries: custom-operator libraries that the model needs.
    """
    only_looked_up = tables(layers)
    sizes = {layer.weight: layer.out_features for layer in layers if layer.weight in only_looked_up}
    sources = {weight: _row_numbers(model, weight) for weight in sizes}
    found = {weight: np.zeros(sizes[weight], np.int64) for weight, names in sources.items() if names}
    wanted = {name for weight in found for name in sources[weight]}
    if not found:
        return {}
    for values in sampled(model, wanted, data, np.random.default_rng(seed), libraries):
        for weight, size in sizes.items():
            for name in sources[weight]:
                rows = values[name].reshape(-1).astype(np.int64)
                found[weight] += np.bincount(np.where(rows < 0, rows + size, rows), minlength=size)
        if all(counts.sum() >= MAX_LOOKUPS for counts in found.values()):
            break
    return found


def _row_numbers(model: ir.Model, weight: str) -> tuple[str, ...]:
    """The values that say which rows are looked up, empty where any of them is not to be had from a run."""
    found: list[str] = []
    values = [model.graph.initializers[weight]]
    for value in values:
        for node, _ in value.uses():
            rows = node.inputs[1] if node.op_type == "Gather" else None
            if node.op_type in _VIEWS and node.domain == "":
                values.extend(node.outputs)
            elif rows is None or node.graph is not model.graph or rows.is_initializer():
                return ()
            else:
                found.append(rows.name or "")
    return tuple(dict.fromkeys(found))


def _inputs(model: ir.Model, weight: str) -> Factors:
    """What a weight is multiplied with, empty where any of it cannot be told."""
    found: dict[Factor, None] = {}
    values = [model.graph.initializers[weight]]
    for value in values:
        for node, index in value.uses():
            if node.op_type in _VIEWS and node.domain == "":
                values.extend(node.outputs)
            elif node.op_type == "Gather" and index == 0:
                # Rows that are looked up are multiplied with nothing.
                continue
            else:
                factor = _factor(node, index)
                if factor is None or not (node.graph is model.graph or subgraphs.can_expose(model, factor.name)):
                    return ()
                found[factor] = None
    return tuple(found)


def _factor(node: ir.Node, index: int) -> Factor | None:
    """The other factor of a product; None where the node is none."""
    is_product = is_standard(node, "MatMul", "Gemm") or (node.domain, node.op_type) in _FUSED
    if not is_product or index not in (0, 1):
        return None
    if node.attributes.get_int("transBatchA", 0) or node.attributes.get_int("transBatchB", 0):
        return None
    other = node.inputs[1 - index]
    is_transposed = bool(node.attributes.get_int("transB" if index == 0 else "transA", 0))
    # The rows of a layer are those of the left factor, and the columns of the right one.
    return None if other is None else Factor(other.name or "", is_columns=is_transposed != (index == 0))


def _passes(features: Mapping[str, int], sources: Mapping[str, Factors]) -> Iterator[list[str]]:
    """The weights in runs whose moments have room in `MOMENT_BYTES`; those with the same inputs share them."""
    run: list[str] = []
    seen: dict[Factors, int] = {}
    # Weights of the same inputs follow one another.
    for weight in sorted(features, key=lambda name: list(sources.values()).index(sources[name])):
        names, size = sources[weight], 8 * features[weight] ** 2
        if not names:
            continue
        if run and names not in seen and sum(seen.values()) + size > MOMENT_BYTES:
            yield run
            run, seen = [], {}
        run.append(weight)
        seen[names] = size
    if run:
        yield run


def _one_pass(
    model: ir.Model,
    data: Dataset,
    seed: int,
    libraries: runtime.Libraries,
    features: Mapping[Factors, int],
) -> Found:
    """Statistics of values with so many features."""
    found = {factors: InputStatistics(size) for factors, size in features.items()}
    wanted = {factor.name for factors in features for factor in factors}
    random = np.random.default_rng(seed)
    for values in sampled(model, wanted, data, random, libraries):
        for (factors, size), statistics in zip(features.items(), found.values(), strict=True):
            for factor in factors:
                rows = _rows(values[factor.name], factor, size)
                room = min(len(rows), MAX_ROWS * len(factors) - statistics.rows, MAX_ROWS // LEAST_BATCHES)
                chosen = rows if room == len(rows) else rows[np.sort(random.choice(len(rows), room, replace=False))]
                statistics.add(np.asarray(chosen, np.float32), factor.name)
        if all(statistics.rows >= MAX_ROWS * len(factors) for factors, statistics in found.items()):
            break
    # The layers are quantized next, and the next pass has a session of its own.
    memory.give_back()
    return found


def sampled(
    model: ir.Model, wanted: set[str], data: Dataset, random: np.random.Generator, libraries: runtime.Libraries
) -> Iterator[dict[str, Array]]:
    """Values of the graph by name, for samples in random order, batch by batch."""
    given = [value.name or "" for value in model.graph.inputs]
    computed = sorted(wanted - set(given))
    part = activations.extract(model, given, computed) if computed else None
    session = None if part is None else runtime.frugal(part, custom_ops_libraries=libraries)
    needed = [value.name or "" for value in part.graph.inputs] if part is not None else []
    fixed = None if data.whole else activations.fixed_batch(model, data.places)
    order = random.permutation(len(data))

    def compute(feeds: Mapping[str, Array]) -> dict[str, Array]:
        values = dict(feeds)
        return values if session is None else values | runtime.run(session, {name: values[name] for name in needed})

    is_large = part is not None and runtime.is_large(part)
    if data.whole or fixed is not None:
        size = fixed or 1
    else:
        one = compute(data.take(order[:1]).feeds)
        size = _batch_size([value for name, value in one.items() if name in wanted], is_large)
    is_filled_up = fixed is not None and len(order) % size > 0
    aligned = alignment.measure(compute, data, fixed)[0] if is_filled_up else Alignment()
    for start in range(0, len(order), size):
        index = order[start : start + size]
        padded = np.pad(index, (0, size - len(index)), mode="edge") if fixed else index
        values = compute(data.take(padded).feeds)
        yield {name: aligned.counted(name, values[name], len(padded), len(index)) for name in wanted}


def _batch_size(one: Iterable[Array], is_large: bool) -> int:
    """Samples per run, from the values of one of them."""
    values = list(one)
    rows = max((math.prod(value.shape[:-1]) for value in values if value.size), default=1)
    most = max(BATCH, LEAST_ROWS // rows) if is_large else BATCH
    return max(1, min(most, VALUE_BYTES // max(1, sum(value.nbytes for value in values))))


def _rows(value: Array, factor: Factor, size: int) -> Array:
    """A layer's input [..., in] as [rows, in]; none where a subgraph that has it was not run."""
    if value.dtype.kind != "f":
        raise DataError(
            f"Value '{factor.name}', a layer's input, holds {value.dtype}; expected floating-point numbers."
        )
    if factor.is_columns and value.ndim > 1:
        value = value.swapaxes(-1, -2)
    return value.reshape(-1, value.shape[-1]) if value.size else np.empty((0, size), value.dtype)

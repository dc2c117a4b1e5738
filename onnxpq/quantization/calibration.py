"""Second moments of what goes into the layers, in streaming passes of onnxruntime over some of the data.

A pass computes the inputs of several layers for a batch of samples, adds them to `InputStatistics` and forgets them, so
memory holds one batch and the moments of one pass, however large model and data are.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq import runtime
from onnxpq.data import Dataset
from onnxpq.errors import DataError, ModelError
from onnxpq.graph import Layer, subgraphs, tables
from onnxpq.pq import InputStatistics
from onnxpq.runtime import activations
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

Found: TypeAlias = dict[tuple[str, ...], InputStatistics]
"""Statistics by the names of the values that they are of."""

_FOR_THE_WEIGHT: Final = "it was quantized for the smallest error of the weight, not of the layers' outputs."

UNSEEN: Final = (
    "The inputs of the layers with weight '{weight}' were not looked at, as they are not the left factor of a MatMul "
    "or Gemm that a run of the whole model can give out: " + _FOR_THE_WEIGHT
)

UNREACHED: Final = (
    "No sample of the data reaches the layers with weight '{weight}', which lie in a branch or loop that is not run: "
    + _FOR_THE_WEIGHT
)

_VIEWS: Final = frozenset({"Identity", "Transpose", "Cast"})
_PRODUCTS: Final = frozenset({"MatMul", "Gemm"})


class Moments:
    """Statistics that are kept for another call, as far as there is room."""

    def __init__(self) -> None:
        self._kept: Found = {}

    def find(
        self, needed: Mapping[tuple[str, ...], int], look: Callable[[Mapping[tuple[str, ...], int]], Found]
    ) -> Found:
        """What a pass finds, which is looked for only where no earlier call left all of it."""
        if needed.keys() <= self._kept.keys():
            return {names: self._kept[names] for names in needed}
        found = look(needed)
        if sum(moment.nbytes for moment in (self._kept | found).values()) <= KEPT_BYTES:
            self._kept |= found
        return found

    def rename(self, old: str, new: str) -> None:
        """What is known of the value `old` is that of `new` now, which has the same entries."""
        moment = self._kept.pop((old,), None)
        if moment is not None:
            self._kept[new,] = moment

    def reordered(self, orders: Mapping[str, NDArray[np.intp]]) -> "Moments":
        """The same for a model in which some values are in other orders, by name."""
        other = Moments()
        for names, moment in self._kept.items():
            order = orders.get(names[0]) if len(names) == 1 else None
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
    exposed = subgraphs.expose(model, [name for names in sources.values() for name in names])
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


def _inputs(model: ir.Model, weight: str) -> tuple[str, ...]:
    """The values that a weight is multiplied with, empty where any of them cannot be told."""
    found: dict[str, None] = {}
    values = [model.graph.initializers[weight]]
    for value in values:
        for node, index in value.uses():
            factor = node.inputs[0]
            if node.op_type in _VIEWS and node.domain == "":
                values.extend(node.outputs)
            elif node.op_type == "Gather" and index == 0:
                # Rows that are looked up are multiplied with nothing.
                continue
            elif (
                node.op_type not in _PRODUCTS
                or index != 1
                or factor is None
                or node.attributes.get_int("transA", False)
                or not (node.graph is model.graph or subgraphs.can_expose(model, factor.name or ""))
            ):
                return ()
            else:
                found[factor.name or ""] = None
    return tuple(found)


def _passes(features: Mapping[str, int], sources: Mapping[str, tuple[str, ...]]) -> Iterator[list[str]]:
    """The weights in runs whose moments have room in `MOMENT_BYTES`; those with the same inputs share them."""
    run: list[str] = []
    seen: dict[tuple[str, ...], int] = {}
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
    features: Mapping[tuple[str, ...], int],
) -> Found:
    """Statistics of values with so many features."""
    found = {names: InputStatistics(size) for names, size in features.items()}
    wanted = {name for names in features for name in names}
    random = np.random.default_rng(seed)
    for values in sampled(model, wanted, data, random, libraries):
        for (names, size), statistics in zip(features.items(), found.values(), strict=True):
            for name in names:
                rows = _rows(values[name], name, size)
                room = min(len(rows), MAX_ROWS * len(names) - statistics.rows, MAX_ROWS // LEAST_BATCHES)
                chosen = rows if room == len(rows) else rows[np.sort(random.choice(len(rows), room, replace=False))]
                statistics.add(np.asarray(chosen, np.float32), name)
        if all(statistics.rows >= MAX_ROWS * len(names) for names, statistics in found.items()):
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
    fixed = activations.fixed_batch(model)
    order = random.permutation(len(data))

    def compute(index: NDArray[np.intp]) -> dict[str, Array]:
        values = dict(data.take(index).inputs)
        return values if session is None else values | runtime.run(session, {name: values[name] for name in needed})

    is_large = part is not None and runtime.is_large(part)
    size = fixed or _batch_size([value for name, value in compute(order[:1]).items() if name in wanted], is_large)
    for start in range(0, len(order), size):
        index = order[start : start + size]
        values = compute(np.pad(index, (0, size - len(index)), mode="edge") if fixed else index)
        # What fills up a fixed batch does not count, where a value tells its samples apart.
        yield {
            name: values[name][: len(index)] if values[name].shape[:1] == (fixed,) else values[name] for name in wanted
        }


def _batch_size(one: Iterable[Array], is_large: bool) -> int:
    """Samples per run, from the values of one of them."""
    values = list(one)
    rows = max((math.prod(value.shape[:-1]) for value in values if value.size), default=1)
    most = max(BATCH, LEAST_ROWS // rows) if is_large else BATCH
    return max(1, min(most, VALUE_BYTES // max(1, sum(value.nbytes for value in values))))


def _rows(value: Array, name: str, size: int) -> Array:
    """A layer's input [..., in] as [rows, in]; none where a subgraph that has it was not run."""
    if value.dtype.kind != "f":
        raise DataError(f"Value '{name}', a layer's input, holds {value.dtype}; expected floating-point numbers.")
    return value.reshape(-1, value.shape[-1]) if value.size else np.empty((0, size), value.dtype)

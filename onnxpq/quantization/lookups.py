"""What an error costs in a table whose rows are looked up, such as an embedding.

A row that is looked up often counts for more than one that no sample shows, and not every direction of a row counts
alike. Both are read off the gradients of the model's output. An error e that a row has adds ``J e`` to the output of a
sample, with J the derivative by the row, however often the sample looks it up. For a random direction r of the output
``g = J^T r`` is one backward pass, for all samples of a batch and all rows of all tables, and ``E[g g^T] = J^T J``
(Hutchinson 1990). Summed up over rows and samples that is the second moment H by which `onnxpq.pq.calibrated`
quantizes, which for a layer is that of its inputs; a row's own trace is what it counts. Where no gradient can be had,
rows count by how often they are looked up, and all directions alike. `python -m benchmarks lookups` measures both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeAlias

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from onnxpq.data import Dataset, Place, batches
from onnxpq.errors import OnnxpqError
from onnxpq.graph import Layer, tables
from onnxpq.network import CHECKED_SAMPLES, Part, partition, routing
from onnxpq.pq import InputStatistics
from onnxpq.pq.matrix import to_matrix
from onnxpq.quantization import calibration
from onnxpq.runtime import Libraries, activations
from onnxpq.support import device as devices
from onnxpq.training import Work
from onnxpq.workspace import Piece, checkpoints

Progress: TypeAlias = Callable[[int, int], None]

MOST_SAMPLES: Final = 2048
LEAST_SAMPLES: Final = 64
"""Samples whose gradients are taken: most and, where the work is more than `SECONDS`, least."""

SECONDS: Final = 60.0
"""Work for the gradients, on the reference machine of `onnxpq.training.schedule`."""

BATCH: Final = 8
"""Samples per backward pass, where the model leaves that open."""

MOST_IMPORTANT: Final = 500.0
LEAST_IMPORTANT: Final = 0.5
"""What the squared error of a row counts, where 1 is the mean: none more than the first, those that the data never show
the second. They are worth something, as other texts have them, and what fills texts up is looked up most."""


@dataclass(frozen=True, eq=False)
class Lookups:
    """How a table is used.

    Attributes:
        importance: what the squared error of each row counts, [out] float32; None where nothing is known of that.
        statistics: second moment of the output's gradients by its rows; None where no gradient can be had.
        remark: why not, as a whole sentence.
    """

    importance: NDArray[np.float32] | None = None
    statistics: InputStatistics | None = None
    remark: str | None = None


def observe(
    model: ir.Model,
    layers: Sequence[Layer],
    output: str,
    data: Dataset,
    *,
    seed: int,
    libraries: Libraries = (),
    progress: Progress | None = None,
) -> dict[str, Lookups]:
    """How the samples use each weight that is only looked up, by name.

    Args:
        model: normalised; not changed.
        layers: of it. A table is left out where neither a gradient nor a run of the model tells which rows are used,
            as in a subgraph.
        output: the output whose error counts.
        data: samples; some of them, at random.
        seed: of their choice, and of the directions.
        libraries: custom-operator libraries that the model needs.
        progress: is told the samples whose gradients are taken and the most that there may be.

    Raises:
        DataError: the data lack an input of the model.
    """
    looked_up = tables(layers)
    chosen = [layer for layer in layers if layer.weight in looked_up]
    if not chosen:
        return {}
    try:
        found, reasons = _by_gradients(model, chosen, output, data, seed, libraries, progress)
    except OnnxpqError as error:
        # Whatever it is that training would refuse: those who do not train can do without it.
        found, reasons = {}, dict.fromkeys(looked_up, str(error))
    left = [layer for layer in chosen if layer.weight not in found]
    for weight, counts in calibration.lookups(model, left, data, seed=seed, libraries=libraries).items():
        found[weight] = Lookups(importance_of(counts), remark=_remark(weight, reasons[weight]))
    return found


def importance_of(uses: NDArray[np.integer] | NDArray[np.floating]) -> NDArray[np.float32]:
    """What the squared error of each row counts, [out], by how much use is made of it."""
    mean = float(uses.mean())
    relative = uses / mean if mean > 0 else np.zeros(len(uses))
    return np.minimum(relative + LEAST_IMPORTANT, MOST_IMPORTANT).astype(np.float32)


def save(piece: Piece, found: Mapping[str, Lookups]) -> None:
    """Keep what `observe` gave."""
    state = {}
    for weight, use in found.items():
        importance = None if use.importance is None else torch.from_numpy(use.importance)
        seen = None if use.statistics is None else (use.statistics.rows, torch.from_numpy(use.statistics.total()))
        state[weight] = (importance, seen, use.remark)
    checkpoints.save(piece, state)


def load(piece: Piece) -> dict[str, Lookups] | None:
    """What `save` kept; None where there is nothing or it is damaged."""
    state = checkpoints.load(piece)
    if state is None:
        return None
    found = {}
    for weight, (importance, seen, remark) in state.items():
        statistics = None if seen is None else InputStatistics.of_total(seen[0], seen[1].numpy())
        found[weight] = Lookups(None if importance is None else importance.numpy(), statistics, remark)
    return found


def _remark(weight: str, reason: str) -> str:
    return (
        f"What errors of the table '{weight}' cost was judged by how often its rows are looked up, not by the output's "
        f"gradients: {reason.removesuffix('.')}."
    )


def _by_gradients(
    model: ir.Model,
    layers: Sequence[Layer],
    output: str,
    data: Dataset,
    seed: int,
    libraries: Libraries,
    progress: Progress | None,
) -> tuple[dict[str, Lookups], Mapping[str, str]]:
    """The tables that a gradient of the output reaches, and why it does not reach the others."""
    plan = routing.plan(model, layers, output, data.some(CHECKED_SAMPLES, seed), libraries)
    if plan.part is None:
        return {}, plan.layer_wise
    order = np.random.default_rng(seed).permutation(len(data))
    capture = partial(activations.capture, cache_dir=None, libraries=libraries, places=plan.part.places)
    given = partition.boundary_values(plan.part.cut, data.take(order[:MOST_SAMPLES]), capture)
    found, reasons = {}, dict(plan.layer_wise)
    for weight, (statistics, power) in _moments(plan.part, output, given, seed, progress).items():
        if np.isfinite(power).all() and power.any():
            found[weight] = Lookups(importance_of(power), statistics)
        else:
            reasons[weight] = "they are zero, infinite or NaN"
    return found, reasons


def _moments(
    part: Part, output: str, data: Dataset, seed: int, progress: Progress | None = None
) -> dict[str, tuple[InputStatistics, NDArray[np.float64]]]:
    """For each table of a part the second moment of the gradients by its rows, and their squares summed by row."""
    network = part.network.to(devices.best())
    own = {layer.weight: layer for layer in part.layers}
    rows = network.trainable(dict.fromkeys(own))
    found = {name: (InputStatistics(own[name].in_features), np.zeros(own[name].out_features)) for name in rows}
    random = torch.Generator().manual_seed(seed)
    spent, samples = 0.0, 0
    for batch, count in batches(data, part.fixed_batch or BATCH, exact=part.fixed_batch is not None):
        inputs = {name: torch.from_numpy(np.array(array)).to(devices.best()) for name, array in batch.feeds.items()}
        with Work() as work:
            whole = network(inputs)[output]
            # All of a whole call counts.
            result = whole[None] if part.whole else part.places.get(output, Place()).to_front(whole)
            # Without a gradient the batch took the branch of an If that has none of the tables.
            gradients = _gradients(result, count, rows, random) if result.requires_grad else {}
        for name, gradient in gradients.items():
            # The constant may be stored with the rows along its second axis, and turned by a node.
            turned = own[name].weight_is_in_out
            _add(*found[name], to_matrix(gradient, own[name].in_features, is_in_out=turned))
        spent, samples = spent + work.seconds, samples + count
        if progress is not None:
            progress(samples, len(data))
        if samples >= LEAST_SAMPLES and spent >= SECONDS:
            break
    network.trainable([])
    return found


def _gradients(result: Tensor, count: int, rows: Mapping[str, Tensor], random: torch.Generator) -> dict[str, Tensor]:
    """Those of the first `count` samples of an output in a random direction, where there are any."""
    direction = torch.randn(result.shape, generator=random).to(result)
    if result.ndim > 0:
        direction[count:] = 0.0
    found = torch.autograd.grad((result * direction).sum(), list(rows.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(rows, found, strict=True) if gradient is not None}


def _add(statistics: InputStatistics, power: NDArray[np.float64], gradient: Tensor) -> None:
    """Count the gradients [out, in] of a batch."""
    squares = gradient.square().sum(1)
    used = squares > 0
    power += squares.cpu().numpy()
    if bool(torch.isfinite(squares).all()):
        statistics.add(gradient[used].cpu().numpy(), "the gradients of a table")

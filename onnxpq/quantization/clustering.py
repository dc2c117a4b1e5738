"""All layers of a model, quantized as their layouts say."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

import onnx_ir as ir

from onnxpq.data import Dataset
from onnxpq.graph import Layer, tables
from onnxpq.network import matrices
from onnxpq.pq import InputStatistics, Layout, PQTensor, codec
from onnxpq.pq.quantized import Quantized
from onnxpq.quantization import bodies, calibration, encoding
from onnxpq.quantization.subject import Subject
from onnxpq.report import LayerReport
from onnxpq.support import fingerprint, memory
from onnxpq.workspace import Piece, Run, checkpoints

SPANS: Final = (
    "The rows of the weight '{weight}' differ in size by more than float32 can hold in common units: it was quantized "
    "for the smallest error of the weight, not of the layers' outputs."
)


def cluster(run: Run, subject: Subject, layouts: Mapping[str, Layout]) -> dict[str, Quantized]:
    """Quantize each weight, for the smallest error of its layers' outputs where there are data to measure it by.

    Args:
        run: takes notes, time and progress; keeps what is done.
        subject: what is compressed.
        layouts: how each weight is cut, by its name.
    """
    normal, layers, train = subject.forms.normal, subject.layers, subject.train
    of_weight = {layer.weight: layer for layer in layers}
    seed, tick = run.config.seed, run.ticker("clustering")
    magnitude = bodies.magnitude(run.config.pq.body, has_data=train is not None)
    found: Iterable[tuple[str, InputStatistics | str | None]] = ((weight, None) for weight in of_weight)
    pieces = {
        weight: _piece(run, normal, layer, layouts[weight], train, magnitude) for weight, layer in of_weight.items()
    }
    with run.stage("clustering"):
        loaded = {weight: checkpoints.load_quantized(piece) for weight, piece in pieces.items()}
        quantized = {weight: part for weight, part in loaded.items() if part is not None}
        if train is not None:
            found = itertools.chain(
                ((weight, subject.use_of(weight).statistics) for weight in sorted(tables(layers))),
                calibration.collect(
                    normal,
                    layers,
                    train,
                    seed=seed,
                    libraries=run.libraries,
                    skip=quantized.keys(),
                    kept=subject.moments,
                ),
            )
        for weight, statistics in found:
            if isinstance(statistics, str):
                run.notes.append(statistics)
            if weight not in quantized:
                matrix = matrices.weight(normal, of_weight[weight])
                known = None if isinstance(statistics, str) else statistics
                if known is not None and codec.spans_float32(matrix):
                    run.notes.append(SPANS.format(weight=weight))
                    known = None
                quantized[weight] = encoding.quantize(
                    matrix,
                    layouts[weight],
                    seed=seed,
                    statistics=known,
                    importance=subject.use_of(weight).importance,
                    magnitude=magnitude,
                )
                checkpoints.save_quantized(pieces[weight], quantized[weight])
                memory.give_back()
            if tick is not None:
                tick(len(quantized), len(of_weight))
    if not run.config.target.is_set:
        # Only on the way to a target is it asked for again.
        subject.moments.clear()
    return quantized


def _piece(run: Run, normal: ir.Model, layer: Layer, layout: Layout, train: Dataset | None, magnitude: int) -> Piece:
    """Where a quantized layer is kept: it depends on its weight, how that is cut, and the data, if there are any."""

    def depends() -> Iterator[bytes]:
        yield f"{layout} {layer.weight_is_in_out} {run.config.seed} {train is not None} {magnitude}".encode()
        yield from fingerprint.array_parts(layer.weight, matrices.weight(normal, layer).numpy())

    return run.layers.piece("layer", depends())


def reports(
    normal: ir.Model,
    layers: Sequence[Layer],
    layouts: Mapping[str, Layout],
    tensors: Mapping[str, PQTensor],
    quantized: Mapping[str, Quantized],
    ways: Mapping[str, str],
) -> tuple[LayerReport, ...]:
    """What became of each layer.

    Args:
        normal: the normalised model that the layers are of.
        layers: those that are compressed.
        layouts: how each weight was cut, by its name.
        tensors: what each weight is now.
        quantized: the same while it was worked on.
        ways: how each was trained.
    """
    found: list[LayerReport] = []
    for layer in layers:
        exact = matrices.weight(normal, layer).numpy()
        own = encoding.report(layer, layouts[layer.weight], exact, tensors[layer.weight], earlier=found)
        input_error = None if layer.is_table else quantized[layer.weight].input_error
        found.append(replace(own, training=ways.get(layer.weight, ""), input_error=input_error))
    return tuple(found)

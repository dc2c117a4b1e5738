"""The stages in order; each is a function that can be used alone."""

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq import (
    activations,
    allocation,
    calibration,
    finetuning,
    importing,
    modelio,
    objectives,
    partition,
    quantization,
    rewriting,
    runtime,
    sampling,
)
from onnxpq import verification as verifying
from onnxpq.config import Config
from onnxpq.data import Dataset, InputSpec, Source, first, fixed_batch, input_specs, split_rows
from onnxpq.errors import ModelError, NothingToCompressError
from onnxpq.finetuning import Finetuned, Problem, Samples
from onnxpq.layers import Layer, Skipped
from onnxpq.metrics import choose_output
from onnxpq.pq.layout import Layout
from onnxpq.pq.quantized import Quantized
from onnxpq.pq.statistics import InputStatistics
from onnxpq.pq.tensor import PQTensor
from onnxpq.report import LayerReport, Report, SkippedReport, Training, Verification
from onnxpq.sampling import Evidence

Progress: TypeAlias = Callable[[str, int, int], None]
"""Is told the stage ("caching", "clustering", "training", "verification"), what is done, and of how much."""

CHECKED_SAMPLES = 8
"""Samples on which torch is compared with onnxruntime, value by value."""


@dataclass(frozen=True, eq=False)
class Result:
    """A compressed model and what is known of it.

    Attributes:
        model: the compressed model.
        report: sizes, errors, accuracy, latency, skipped layers.
    """

    model: ir.Model
    report: Report

    def save(self, path: str | PathLike[str]) -> None:
        """Write the model; the file appears whole or not at all.

        Raises:
            OutputError: it cannot be written there.
        """
        modelio.save(self.model, path)


@dataclass
class _Run:
    """What all stages of one run share."""

    config: Config
    progress: Progress | None
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def ticker(self, stage: str) -> Callable[[int, int], None] | None:
        return None if self.progress is None else partial(self.progress, stage)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def compress(
    model: modelio.Source,
    data: Source | None = None,
    *,
    test: Source | None = None,
    labels: str | None = None,
    config: Config | None = None,
    cache_dir: str | PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Result:
    """Compress the fully-connected layers of a model and prove the result in onnxruntime.

    Args:
        model: a path, bytes, an `onnx.ModelProto` or an `onnx_ir.Model`; it is not changed.
        data: samples to train on: path of an `.npz` file, a mapping {input name: array [N, ...]} or an iterable of such
            mappings. Without any it is plain product quantization, verified on random inputs only.
        test: samples to verify on, in the same forms. Without any, a part of `data` is set aside for it.
        labels: key of the labels in `data` and `test`; without one the original model is the teacher.
        config: all settings.
        cache_dir: folder that keeps what onnxruntime computed for `data`, so that a second run need not; by default a
            temporary one.
        progress: is told how far each stage is.

    Returns:
        The compressed model, and the report.

    Raises:
        OnnxpqError: see `onnxpq.errors`; each message says what to do.
    """
    run = _Run(config or Config(), progress)
    original = modelio.load(model)
    normal = importing.normalise(original)
    inputs = input_specs(original)
    layers, skipped = find_layers(original, run.config)
    layouts = {layer.weight: allocation.layout_of(layer, run.config.pq) for layer in layers}
    train, evidence, notes = sampling.prepare(inputs, data, test=test, labels=labels, config=run.config)
    run.notes.extend(notes)
    few = first(evidence.dataset, fixed_batch(inputs), CHECKED_SAMPLES)
    outputs = runtime.run(runtime.session(original, use_library=False), few)
    output = choose_output(outputs, run.config.output)
    _check_labels(run.config, outputs[output], train, evidence)

    quantized = _cluster(run, normal, layers, layouts, train)
    training, values = None, {}
    if train is not None and run.config.training.epochs != 0:
        with tempfile.TemporaryDirectory(prefix="onnxpq-", ignore_cleanup_errors=True) as scratch:
            tuned, training = _finetune(run, normal, layers, quantized, train, output, Path(cache_dir or scratch))
        quantized, values = tuned.quantized, tuned.values
    fast = run.config.pq.fast
    tensors = {name: replace(part.freeze(), fast=fast) for name, part in quantized.items()}
    compressed = rewriting.rewrite(rewriting.update_initializers(original, values), layers, tensors)
    with run.stage("verification"):
        proof = _verify(run, model, original, compressed, evidence, inputs, output)
    report = Report(
        layers=_layer_reports(normal, layers, layouts, tensors),
        skipped=tuple(SkippedReport(entry.node, entry.op_type, entry.reason) for entry in skipped),
        training=training,
        verification=proof,
        notes=tuple(run.notes),
        settings=run.config.to_dict(),
        seconds=run.seconds,
    )
    return Result(compressed, report)


def find_layers(model: ir.Model, config: Config) -> tuple[list[Layer], list[Skipped]]:
    """The layers that the settings let be compressed, and the other nodes with large constants.

    Raises:
        NothingToCompressError: there is no such layer; the message gives the reason for each node.
        ConfigError: a glob matches no node.
    """
    layers, skipped = rewriting.find(
        model, min_weights=config.min_weights, include=config.include, exclude=config.exclude
    )
    if not layers:
        reasons = "".join(f"\n  {entry.node} ({entry.op_type}): {entry.reason}" for entry in skipped)
        raise NothingToCompressError(
            "The model has no fully-connected layer that can be compressed."
            + (reasons or " It has no large constants at all.")
        )
    return layers, skipped


def _check_labels(config: Config, scores: NDArray[Any], train: Dataset | None, evidence: Evidence) -> None:
    """Refuse labels that do not fit before the hours of work, as training and verification would after."""
    if train is not None and train.labels is not None:
        if np.issubdtype(train.labels.dtype, np.integer):
            verifying.check_labels(train.labels, scores)
        labels = train.labels[np.resize(np.arange(len(train)), len(scores))]
        objectives.choose(config.training, scores, labels)
    if evidence.dataset.labels is not None:
        verifying.check_labels(evidence.dataset.labels, scores)


def _cluster(
    run: _Run, normal: ir.Model, layers: Sequence[Layer], layouts: Mapping[str, Layout], train: Dataset | None
) -> dict[str, Quantized]:
    """Quantize each weight, for the smallest error of its layers' outputs where there are data to measure it by."""
    found: Iterable[tuple[str, InputStatistics | str | None]] = ((layer.weight, None) for layer in layers)
    if train is not None:
        found = calibration.collect(normal, layers, train, seed=run.config.seed)
    tick = run.ticker("clustering")
    of_weight = {layer.weight: layer for layer in layers}
    quantized: dict[str, Quantized] = {}
    with run.stage("clustering"):
        for weight, statistics in found:
            if isinstance(statistics, str):
                run.notes.append(statistics)
            if weight not in quantized:
                matrix = quantization.matrix_of(_weight(normal, of_weight[weight]), of_weight[weight])
                known = None if isinstance(statistics, str) else statistics
                quantized[weight] = quantization.quantize(
                    matrix, layouts[weight], seed=run.config.seed, statistics=known
                )
            if tick is not None:
                tick(len(quantized), len(of_weight))
    return quantized


def _finetune(
    run: _Run,
    normal: ir.Model,
    layers: Sequence[Layer],
    quantized: Mapping[str, Quantized],
    train: Dataset,
    output: str,
    cache_dir: Path,
) -> tuple[Finetuned, Training]:
    """Cut the frozen prefix off, cache what it computes, check the imported rest, and train it."""
    with run.stage("caching"):
        cut = partition.cut(normal, [layer.weight for layer in layers], [output])
        boundary = dict(train.inputs)
        tick = run.ticker("caching")
        if cut.prefix is not None:
            boundary |= activations.capture(cut.prefix, cut.boundary, train.inputs, cache_dir=cache_dir, progress=tick)
        partition.complete_types(cut.suffix, boundary)
        teacher = activations.capture(cut.suffix, [output], boundary, cache_dir=cache_dir, progress=tick)[output]
        network = importing.import_model(cut.suffix)
        fixed = activations.fixed_batch(cut.suffix)
        batch = first(Dataset({name: boundary[name] for name in cut.boundary}), fixed, CHECKED_SAMPLES)
        check = importing.check_forward(network, cut.suffix, batch)
    rows = split_rows(len(train), run.config.training.validation, run.config.seed)
    learn, choose = (Samples({n: boundary[n] for n in cut.boundary}, teacher, train.labels, part) for part in rows)
    with run.stage("training"):
        tuned = finetuning.finetune(
            Problem(network, layers, output, fixed),
            quantized,
            (learn, choose),
            run.config.training,
            seed=run.config.seed,
            progress=run.ticker("training"),
        )
    nodes = 0 if cut.prefix is None else len(cut.prefix.graph)
    return tuned, Training(
        loss=tuned.describe,
        samples=len(learn),
        validation_samples=len(choose),
        prefix=nodes,
        forward_error=check.max_rel,
        forward_node=check.node,
        before=tuned.before,
        quantized=tuned.start,
        best=tuned.best,
        epochs=tuned.epochs,
    )


def _verify(
    run: _Run,
    source: modelio.Source,
    original: ir.Model,
    compressed: ir.Model,
    evidence: Evidence,
    inputs: Sequence[InputSpec],
    output: str,
) -> Verification:
    """Write the compressed model to a scratch folder and verify that very file."""
    if not runtime.library_available():
        run.notes.append(runtime.LIBRARY_MISSING)
    with tempfile.TemporaryDirectory(prefix="onnxpq-", ignore_cleanup_errors=True) as scratch:
        path = Path(scratch) / "compressed.onnx"
        modelio.save(compressed, path)
        file = source if isinstance(source, str | PathLike) else None
        before = len(modelio.to_bytes(original)) if file is None else modelio.file_bytes(file)
        return verifying.verify(
            original if file is None else file,
            path,
            evidence.dataset,
            inputs,
            output=output,
            description=evidence.description,
            held_out=evidence.held_out,
            file_bytes=(before, modelio.file_bytes(path)),
            library_budget=verifying.FAST_LIBRARY_BUDGET if run.config.pq.fast else verifying.LIBRARY_BUDGET,
            progress=run.ticker("verification"),
        )


def _weight(normal: ir.Model, layer: Layer) -> np.ndarray[tuple[int, ...], np.dtype[np.floating]]:
    tensor = normal.graph.initializers[layer.weight].const_value
    if tensor is None:
        raise ModelError(f"Initializer '{layer.weight}' of node '{layer.node}' has no values.")
    return np.asarray(tensor.numpy())


def _layer_reports(
    normal: ir.Model, layers: Sequence[Layer], layouts: Mapping[str, Layout], tensors: Mapping[str, PQTensor]
) -> tuple[LayerReport, ...]:
    reports: list[LayerReport] = []
    for layer in layers:
        exact = quantization.matrix_of(_weight(normal, layer), layer).numpy()
        counted = all(layer.weight != other.weight for other in reports)
        reports.append(quantization.report(layer, layouts[layer.weight], exact, tensors[layer.weight], counted=counted))
    return tuple(reports)

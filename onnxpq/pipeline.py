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
    allocation,
    calibration,
    checkpoints,
    fingerprint,
    importing,
    manifest,
    modelio,
    objectives,
    preparing,
    quantization,
    rewriting,
    runtime,
    sampling,
    training,
)
from onnxpq import verification as verifying
from onnxpq import workspace as workspaces
from onnxpq.config import Config
from onnxpq.data import Dataset, InputSpec, Source, first, fixed_batch, input_specs
from onnxpq.errors import ModelError, NothingToCompressError
from onnxpq.layers import Layer, Skipped
from onnxpq.metrics import choose_output
from onnxpq.pq.layout import Layout
from onnxpq.pq.quantized import Quantized
from onnxpq.pq.statistics import InputStatistics
from onnxpq.pq.tensor import PQTensor
from onnxpq.report import LayerReport, Report, SkippedReport, Verification
from onnxpq.sampling import Evidence
from onnxpq.training import CHECKED_SAMPLES, Job, Trained
from onnxpq.workspace import Piece, Workspace

Progress: TypeAlias = Callable[[str, int, int], None]
"""Is told the stage ("caching", "clustering", "training", "verification"), what is done, and of how much."""


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
    libraries: runtime.Libraries
    progress: Progress | None
    workspace: Workspace
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def ticker(self, stage: str) -> Callable[[int, int], None] | None:
        return None if self.progress is None else partial(self.progress, stage)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def compress(  # noqa: PLR0913 -- what a user may give, by keyword
    model: modelio.Source,
    data: Source | None = None,
    *,
    test: Source | None = None,
    labels: str | None = None,
    config: Config | None = None,
    cache_dir: str | PathLike[str] | None = None,
    work_dir: str | PathLike[str] | None = None,
    restart: bool = False,
    custom_ops_libraries: runtime.Libraries = (),
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
            part of `work_dir`, or a temporary one.
        work_dir: folder in which this run, if it is interrupted, continues when it is called again (docs/resume.md).
        restart: delete what an earlier run left in `work_dir`.
        custom_ops_libraries: paths of libraries of operators that the model uses. That of onnxruntime-extensions need
            not be named.
        progress: is told how far each stage is.

    Returns:
        The compressed model, and the report.

    Raises:
        OnnxpqError: see `onnxpq.errors`; each message says what to do.
    """
    with workspaces.opened(work_dir, restart=restart) as workspace:
        run = _Run(config or Config(), custom_ops_libraries, progress, workspace)
        return _compress(run, model, data, test, labels, cache_dir or workspace.activations)


def _compress(
    run: _Run,
    model: modelio.Source,
    data: Source | None,
    test: Source | None,
    labels: str | None,
    cache_dir: str | PathLike[str] | None,
) -> Result:
    original = modelio.load(model)
    prepared = preparing.prepare(original)
    runnable = _runnable(run, original)
    normal = importing.normalise(runnable)
    inputs = input_specs(original)
    layers, skipped = find_layers(prepared, run.config)
    layouts = {layer.weight: allocation.layout_of(layer, run.config.pq) for layer in layers}
    train, evidence, notes = sampling.prepare(inputs, data, test=test, labels=labels, config=run.config)
    run.notes.extend(notes)
    made_from = _made_from(run, (model, original), (data, train), (test, evidence.dataset), labels)
    run.workspace.bind(made_from)
    few = first(evidence.dataset, fixed_batch(inputs), CHECKED_SAMPLES)
    outputs = runtime.run(runtime.session(runnable, use_library=False, custom_ops_libraries=run.libraries), few)
    output = choose_output(outputs, run.config.output)
    _check_labels(run.config, outputs[output], train, evidence)

    trained = Trained(_cluster(run, normal, layers, layouts, train))
    if train is not None and not run.config.training.is_off:
        with tempfile.TemporaryDirectory(prefix="onnxpq-", ignore_cleanup_errors=True) as scratch:
            folder = Path(cache_dir or scratch)
            job = Job(
                normal,
                layers,
                output,
                train,
                run.config,
                folder,
                run.libraries,
                run.ticker,
                run.workspace,
                rewriting.constant_names(prepared),
            )
            with run.stage("caching"):
                work = training.prepare(job)
            with run.stage("training"):
                trained = training.train(job, work, trained.quantized)
    fast = run.config.pq.fast
    tensors = {name: replace(part.freeze(), fast=fast) for name, part in trained.quantized.items()}
    compressed = rewriting.rewrite(rewriting.update_initializers(prepared, trained.values), layers, tensors)
    with run.stage("verification"):
        proof = _verify(run, (model, original, runnable), compressed, evidence, inputs, output)
    report = Report(
        layers=_layer_reports(normal, layers, layouts, tensors, trained.ways),
        skipped=tuple(SkippedReport(entry.node, entry.op_type, entry.reason) for entry in skipped),
        training=trained.training,
        verification=proof,
        layer_wise=tuple(trained.layer_wise),
        notes=(*run.notes, *run.workspace.summary()),
        settings=run.config.to_dict(),
        made_from=made_from,
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
        model,
        min_weights=config.min_weights,
        include=config.include,
        exclude=config.exclude,
        conv1x1=config.conv1x1,
    )
    if not layers:
        reasons = "".join(f"\n  {entry.node} ({entry.op_type}): {entry.reason}" for entry in skipped)
        raise NothingToCompressError(
            "The model has no fully-connected layer that can be compressed."
            + (reasons or " It has no large constants at all.")
        )
    return layers, skipped


def _made_from(
    run: _Run,
    model: tuple[modelio.Source, ir.Model],
    train: tuple[Source | None, Dataset | None],
    test: tuple[Source | None, Dataset],
    labels: str | None,
) -> dict[str, Any]:
    """The manifest, from what the user gave and what it was read into."""
    data, samples = train
    return manifest.describe(
        manifest.of_model(*model),
        None if data is None or samples is None else manifest.of_data(data, samples, *(() if test[0] else test[1:])),
        None if test[0] is None else manifest.of_data(*test),
        labels=labels,
        config=run.config,
        libraries=run.libraries,
    )


def _runnable(run: _Run, original: ir.Model) -> ir.Model:
    """The model itself, or one in float32 where onnxruntime has no operators for the bfloat16 that it computes in."""
    if not preparing.has_bfloat16(original):
        return original
    try:
        runtime.session(original, use_library=False, custom_ops_libraries=run.libraries)
    except ModelError:
        run.notes.append(
            "The model computes in bfloat16, which onnxruntime has no operators for on a CPU: its outputs and times "
            "are those of the same model in float32."
        )
        return preparing.widened(original)
    return original


def _check_labels(config: Config, scores: NDArray[Any], train: Dataset | None, evidence: Evidence) -> None:
    """Refuse labels that do not fit before the hours of work, as training and verification would after."""
    if train is not None and train.labels is not None and np.issubdtype(scores.dtype, np.floating):
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
    of_weight = {layer.weight: layer for layer in layers}
    seed, tick = run.config.seed, run.ticker("clustering")
    found: Iterable[tuple[str, InputStatistics | str | None]] = ((weight, None) for weight in of_weight)
    pieces = {weight: _piece(run, normal, layer, layouts[weight], train) for weight, layer in of_weight.items()}
    with run.stage("clustering"):
        kept = {weight: checkpoints.load_quantized(piece) for weight, piece in pieces.items()}
        quantized = {weight: part for weight, part in kept.items() if part is not None}
        if train is not None:
            found = calibration.collect(
                normal, layers, train, seed=seed, libraries=run.libraries, skip=quantized.keys()
            )
        for weight, statistics in found:
            if isinstance(statistics, str):
                run.notes.append(statistics)
            if weight not in quantized:
                matrix = quantization.matrix_of(_weight(normal, of_weight[weight]), of_weight[weight])
                known = None if isinstance(statistics, str) else statistics
                quantized[weight] = quantization.quantize(matrix, layouts[weight], seed=seed, statistics=known)
                checkpoints.save_quantized(pieces[weight], quantized[weight])
            if tick is not None:
                tick(len(quantized), len(of_weight))
    return quantized


def _piece(run: _Run, normal: ir.Model, layer: Layer, layout: Layout, train: Dataset | None) -> Piece:
    """Where a quantized layer is kept: it depends on its weight, how that is cut, and the data, if there are any."""

    def depends() -> Iterator[bytes]:
        yield f"{layout} {layer.weight_is_in_out} {run.config.seed} {train is not None}".encode()
        yield from fingerprint.array_parts(layer.weight, _weight(normal, layer))

    return run.workspace.piece("layer", depends())


def _verify(
    run: _Run,
    models: tuple[modelio.Source, ir.Model, ir.Model],
    compressed: ir.Model,
    evidence: Evidence,
    inputs: Sequence[InputSpec],
    output: str,
) -> Verification:
    """Write the compressed model to a scratch folder and verify that very file.

    `models` is what the user passed, as it was loaded, and as onnxruntime runs it.
    """
    source, original, runnable = models
    if not runtime.library_available():
        run.notes.append(runtime.LIBRARY_MISSING)
    with tempfile.TemporaryDirectory(prefix="onnxpq-", ignore_cleanup_errors=True) as scratch:
        path = Path(scratch) / "compressed.onnx"
        modelio.save(compressed, path)
        file = source if isinstance(source, str | PathLike) else None
        before = len(modelio.to_bytes(original)) if file is None else modelio.file_bytes(file)
        return verifying.verify(
            file if file is not None and runnable is original else runnable,
            path,
            evidence.dataset,
            inputs,
            output=output,
            description=evidence.description,
            held_out=evidence.held_out,
            file_bytes=(before, modelio.file_bytes(path)),
            library_budget=verifying.FAST_LIBRARY_BUDGET if run.config.pq.fast else verifying.LIBRARY_BUDGET,
            libraries=run.libraries,
            progress=run.ticker("verification"),
        )


def _weight(normal: ir.Model, layer: Layer) -> np.ndarray[tuple[int, ...], np.dtype[np.floating]]:
    tensor = normal.graph.initializers[layer.weight].const_value
    if tensor is None:
        raise ModelError(f"Initializer '{layer.weight}' of node '{layer.node}' has no values.")
    return np.asarray(tensor.numpy())


def _layer_reports(
    normal: ir.Model,
    layers: Sequence[Layer],
    layouts: Mapping[str, Layout],
    tensors: Mapping[str, PQTensor],
    ways: Mapping[str, str],
) -> tuple[LayerReport, ...]:
    reports: list[LayerReport] = []
    for layer in layers:
        exact = quantization.matrix_of(_weight(normal, layer), layer).numpy()
        found = quantization.report(layer, layouts[layer.weight], exact, tensors[layer.weight], earlier=reports)
        reports.append(replace(found, training=ways.get(layer.weight, "")))
    return tuple(reports)

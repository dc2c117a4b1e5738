"""The stages in order; each is a function that can be used alone."""

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TypeAlias

import numpy as np
import onnx_ir as ir

from onnxpq import allocation, finetuning, importing, modelio, partition, quantization, rewriting, runtime
from onnxpq import verification as verifying
from onnxpq.activations import capture
from onnxpq.config import Config
from onnxpq.data import Array, Dataset, InputSpec, Source, first, fixed_batch, input_specs, load, random_inputs, split_rows
from onnxpq.errors import DataError, NothingToCompressError
from onnxpq.finetuning import Finetuned, Samples
from onnxpq.layers import Layer, Skipped
from onnxpq.metrics import choose_output
from onnxpq.pq.layout import Layout
from onnxpq.pq.quantized import Quantized
from onnxpq.pq.reference import decode
from onnxpq.pq.tensor import PQTensor
from onnxpq.report import LayerReport, Report, SkippedReport, Training, Verification

Progress: TypeAlias = Callable[[str, int, int], None]
"""Is told the stage ("caching", "clustering", "training", "verification"), what is done, and of how much."""

CHECKED_SAMPLES = 8
"""Samples on which torch is compared with onnxruntime, value by value."""

RANDOM_SAMPLES = 256


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


def compress(  # noqa: PLR0913 -- the public entry: everything after data is optional and named
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
        data: samples to train on: path of an `.npz` file, mapping or iterable of mappings of {input name: array [N, ...]}.
            Without any it is plain product quantization, verified on random inputs only.
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
    train, held_out, description = _samples(run, inputs, data, test, labels)
    sample = runtime.run(runtime.session(original, use_library=False), first(held_out, fixed_batch(inputs), CHECKED_SAMPLES))
    output = choose_output(sample, run.config.output)

    with run.stage("clustering"):
        quantized = _cluster(run, normal, layers, layouts)
    training, values = None, {}
    if train is not None and run.config.training.epochs != 0:
        with tempfile.TemporaryDirectory(prefix="onnxpq-", ignore_cleanup_errors=True) as scratch:
            tuned, training = _finetune(run, normal, layers, quantized, train, output, Path(cache_dir or scratch))
        quantized, values = tuned.quantized, tuned.values
    tensors = {name: part.freeze() for name, part in quantized.items()}
    compressed = rewriting.rewrite(rewriting.update_initializers(original, values), layers, tensors)
    with run.stage("verification"):
        proof = _verify(run, model, original, compressed, held_out, inputs, output, description)
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
            "The model has no fully-connected layer that can be compressed." + (reasons or " It has no large constants at all.")
        )
    return layers, skipped


def _samples(
    run: _Run, inputs: Sequence[InputSpec], source: Source | None, test: Source | None, labels: str | None
) -> tuple[Dataset | None, Dataset, str]:
    """Samples to train on, samples to verify on, and what the latter are."""
    if source is None:
        if test is None:
            run.notes.append(
                "No data was given: the weights were quantized as they are, without training, and the result was compared with "
                "the original on random inputs only. That says nothing about its accuracy; give data with --data."
            )
            return None, random_inputs(inputs, RANDOM_SAMPLES, run.config.seed), "random inputs (no data was given)"
        run.notes.append("No training data was given: the weights were quantized as they are, without training.")
        return None, load(test, inputs, label_key=labels, what="test data"), "test data"
    train = load(source, inputs, label_key=labels, what="training data")
    if labels is None and train.unused:
        run.notes.append(
            f"The data holds {', '.join(map(repr, train.unused))}, which is no input of the model and was not used. If it "
            "holds the labels, --labels trains against them and measures the accuracy."
        )
    if test is not None:
        return train, load(test, inputs, label_key=labels, what="test data"), "test data, not trained on"
    if len(train) < 3:
        raise DataError(f"The training data has {len(train)} samples: too few to set some aside. Give more, or --test.")
    kept, held_out = split_rows(len(train), run.config.held_out, run.config.seed)
    return train.take(kept), train.take(held_out), f"set aside from the data ({100 * run.config.held_out:g} %), not trained on"


def _cluster(
    run: _Run, normal: ir.Model, layers: Sequence[Layer], layouts: Mapping[str, Layout]
) -> dict[str, Quantized]:
    tick = run.ticker("clustering")
    quantized: dict[str, Quantized] = {}
    for done, layer in enumerate(layers, start=1):
        if layer.weight not in quantized:
            matrix = quantization.matrix_of(_weight(normal, layer), layer)
            quantized[layer.weight] = quantization.quantize(matrix, layouts[layer.weight], seed=run.config.seed)
        if tick is not None:
            tick(done, len(layers))
    return quantized


def _finetune(  # noqa: PLR0913, PLR0917 -- a stage: what it is given is what it works on
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
            boundary |= capture(cut.prefix, cut.boundary, train.inputs, cache_dir=cache_dir, progress=tick)
        teacher = capture(cut.suffix, [output], boundary, cache_dir=cache_dir, progress=tick)[output]
        network = importing.import_model(cut.suffix)
        fixed = fixed_batch(input_specs(normal))
        batch = first(Dataset({name: boundary[name] for name in cut.boundary}), fixed, CHECKED_SAMPLES)
        check = importing.check_forward(network, cut.suffix, batch)
    rows = split_rows(len(train), run.config.training.validation, run.config.seed)
    learn, choose = (Samples({n: boundary[n] for n in cut.boundary}, teacher, train.labels, part) for part in rows)
    with run.stage("training"):
        tuned = finetuning.finetune(
            network,
            layers,
            quantized,
            (learn, choose),
            run.config.training,
            output=output,
            seed=run.config.seed,
            fixed_batch=fixed,
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


def _verify(  # noqa: PLR0913, PLR0917 -- a stage: what it is given is what it works on
    run: _Run,
    source: modelio.Source,
    original: ir.Model,
    compressed: ir.Model,
    held_out: Dataset,
    inputs: Sequence[InputSpec],
    output: str,
    description: str,
) -> Verification:
    """Write the compressed model to a scratch folder and verify that very file."""
    if not runtime.library_available():
        run.notes.append(runtime.LIBRARY_MISSING)
    with tempfile.TemporaryDirectory(prefix="onnxpq-", ignore_cleanup_errors=True) as scratch:
        path = Path(scratch) / "compressed.onnx"
        modelio.save(compressed, path)
        is_path = isinstance(source, (str, PathLike))
        before = modelio.file_bytes(source) if is_path else len(modelio.to_bytes(original))
        return verifying.verify(
            source if is_path else original,
            path,
            held_out,
            inputs,
            output=output,
            description=description,
            held_out="not trained on" in description,
            file_bytes=(before, modelio.file_bytes(path)),
            progress=run.ticker("verification"),
        )


def _weight(normal: ir.Model, layer: Layer) -> np.ndarray[tuple[int, ...], np.dtype[np.floating]]:
    tensor = normal.graph.initializers[layer.weight].const_value
    assert tensor is not None  # rules take only initializers with values
    return np.asarray(tensor.numpy())


def _layer_reports(
    normal: ir.Model, layers: Sequence[Layer], layouts: Mapping[str, Layout], tensors: Mapping[str, PQTensor]
) -> tuple[LayerReport, ...]:
    reports: list[LayerReport] = []
    for layer in layers:
        before = _weight(normal, layer)
        tensor, layout = tensors[layer.weight], layouts[layer.weight]
        matrix = decode(tensor.codebooks, tensor.codes, tensor.scales, tensor.in_features)
        exact = before.T if layer.weight_is_in_out else before
        first = all(layer.weight != other.weight for other in reports)
        reports.append(
            LayerReport(
                node=layer.node,
                weight=layer.weight,
                shape=(layer.out_features, layer.in_features),
                sub_vector=layout.sub_vector,
                codewords=layout.codewords,
                groups=layout.groups,
                bytes_before=before.nbytes if first else 0,
                bytes_after=tensor.nbytes if first else 0,
                weight_error=float(np.linalg.norm(matrix - exact) / max(np.linalg.norm(exact), 1e-30)),
            )
        )
    return tuple(reports)

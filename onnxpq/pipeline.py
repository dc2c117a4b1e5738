"""The stages in order; each is a function that can be used alone."""

import itertools
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

from onnxpq import rewriting, runtime, targeting, training
from onnxpq import verification as verifying
from onnxpq import workspace as workspaces
from onnxpq.config import Config
from onnxpq.data import Dataset, Evidence, Source, first, fixed_batch, input_specs, sampling
from onnxpq.errors import ModelError, NothingToCompressError
from onnxpq.graph import Layer, Skipped, files, preparing, tables
from onnxpq.network import CHECKED_SAMPLES, importing
from onnxpq.pq import InputStatistics, Layout, PQTensor
from onnxpq.pq.quantized import Quantized
from onnxpq.quantization import allocation, calibration, encoding, lookups, ordering
from onnxpq.quantization.subject import Ordered, Subject
from onnxpq.report import NOT_TRAINED, LayerReport, Report, SkippedReport, Verification
from onnxpq.support import device as devices
from onnxpq.support import fingerprint, memory
from onnxpq.training import Job, Trained, objectives
from onnxpq.verification import choose_output, is_scores
from onnxpq.verification.outputs import not_scores, pooled
from onnxpq.workspace import Piece, Workspace, checkpoints, manifest

LOOKED_UP = f"{NOT_TRAINED}: its rows are looked up"

Progress: TypeAlias = Callable[[str, int, int], None]
"""Is told the stage ("lookups", "sensitivity", "caching", "clustering", "training", "verification"), what
is done, of how much."""


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
        files.save(self.model, path)


@dataclass
class _Run:
    """What all stages of one run share."""

    config: Config
    libraries: runtime.Libraries
    progress: Progress | None
    workspace: Workspace
    layers: Workspace = field(default_factory=Workspace)
    """Where quantized layers are kept: a target asks for some of them again."""
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def ticker(self, stage: str) -> Callable[[int, int], None] | None:
        return None if self.progress is None else partial(self.progress, stage)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        memory.give_back()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started


def compress(  # noqa: PLR0913 -- what a user may give, by keyword
    model: files.Source,
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
        TargetError: the target is out of reach, or was missed; in the latter case the error has the result.
        OnnxpqError: see `onnxpq.errors`; each message says what to do.
    """
    with workspaces.opened(work_dir, restart=restart) as workspace:
        run = _Run(config or Config(), custom_ops_libraries, progress, workspace)
        subject = _orderable(run, _looked_up(run, _subject(run, model, data, test, labels)))
        with tempfile.TemporaryDirectory(prefix="onnxpq-", ignore_cleanup_errors=True) as scratch:
            folder = Path(cache_dir or workspace.activations or scratch)
            again = workspace.folder is None and run.config.target.max_drop is not None
            run.layers = workspaces.temporary(Path(scratch)) if again else workspace
            return _compress(run, subject, partial(_make, run, subject, _trainer(run, folder)))


def _compress(run: _Run, subject: Subject, make: Callable[..., "_Made"]) -> Result:
    """One model with the layouts of the settings, or those that a target needs."""
    if not run.config.target.is_set:
        made = make(allocation.layouts(subject.layers, run.config), share=1.0)
        return Result(made.model, _report(run, subject, made))
    case = targeting.Case(subject, run.config, run.libraries, run.workspace, run.ticker("sensitivity"))
    with run.stage("sensitivity"):
        aim = targeting.prepare(case)
    if aim.metric is not None and aim.metric.remark is not None and run.config.target.max_drop is not None:
        run.notes.append(aim.metric.remark)
    found = targeting.search(case, aim, make)
    report = _report(run, subject, found.made)
    reached = targeting.conclude(case, aim, found, report)
    return targeting.delivered(Result(found.made.model, replace(report, target=reached)), reached)


@dataclass(frozen=True, eq=False)
class _Made:
    """A compressed model, and how it came about."""

    model: ir.Model
    subject: Subject
    layouts: Mapping[str, Layout]
    tensors: dict[str, PQTensor]
    trained: Trained


def _subject(run: _Run, model: files.Source, data: Source | None, test: Source | None, labels: str | None) -> Subject:
    """Everything that can be refused before the work."""
    original = files.load(model)
    prepared = preparing.prepare(original)
    runnable = _runnable(run, original)
    inputs = input_specs(original)
    layers, skipped = find_layers(prepared, run.config)
    allocation.layouts(layers, run.config)
    train, evidence, notes = sampling.prepare(inputs, data, test=test, labels=labels, config=run.config)
    run.notes.extend(notes)
    made_from = _made_from(run, (model, original), (data, train), (test, evidence.dataset), labels)
    run.workspace.bind(made_from)
    few = first(evidence.dataset, fixed_batch(inputs), CHECKED_SAMPLES)
    outputs = runtime.run(runtime.frugal(runnable, custom_ops_libraries=run.libraries), few)
    normal = importing.normalise(runnable)
    columns = {name: values for name, values in outputs.items() if is_scores(values)}
    numbers = {name: why for name, values in columns.items() if (why := not_scores(normal.graph, name, values))}
    parts = pooled(normal.graph, list(numbers))
    output = choose_output(outputs, run.config.output, numbers=numbers, pooled=parts)
    if run.config.output is None and output in parts.values():
        run.notes.append(_made_of(output, parts))
    _check_labels(run.config, outputs[output], train, evidence)
    files.check_weights(normal, {layer.weight: layer.node for layer in layers})
    scores = outputs[output]
    memory.give_back()
    return Subject(
        source=model,
        original=original,
        runnable=runnable,
        prepared=prepared,
        normal=normal,
        layers=layers,
        skipped=skipped,
        inputs=inputs,
        train=train,
        evidence=evidence,
        output=output,
        scores=scores,
        made_from=made_from,
        numbers=numbers.get(output),
    )


def _made_of(output: str, parts: Mapping[str, str]) -> str:
    names = ", ".join(f"'{part}'" for part, whole in parts.items() if whole == output)
    return f"Output '{output}' is looked at, which is made of {names} alone (--output-name names another)."


def _looked_up(run: _Run, subject: Subject) -> Subject:
    """The same with what is known of how tables are used, if there are any."""
    if subject.train is None or not tables(subject.layers):
        return subject
    piece = run.workspace.piece("lookup", [])
    with run.stage("lookups"):
        found = lookups.load(piece)
        if found is None:
            found = lookups.observe(
                subject.normal,
                subject.layers,
                subject.output,
                subject.train,
                seed=run.config.seed,
                libraries=run.libraries,
                progress=run.ticker("lookups"),
            )
            lookups.save(piece, found)
    run.notes.extend(use.remark for use in found.values() if use.remark is not None)
    return replace(subject, lookups=found)


def _orderable(run: _Run, subject: Subject) -> Subject:
    """The same with a Gather where another order of a layer's inputs pays."""
    train, moments = subject.train, subject.moments
    if not run.config.pq.reorder:
        return subject
    if train is None or subject.runnable is not subject.original:
        lacking = "data tell which is better (--data)" if train is None else "the model computes in bfloat16"
        run.notes.append(f"The inputs of all layers keep their order: {lacking}.")
        return subject
    with run.stage("ordering"):
        grouped = ordering.groups(subject.prepared, subject.layers)
        found = calibration.collect(
            subject.normal, subject.layers, train, seed=run.config.seed, libraries=run.libraries, kept=moments
        )
        matrix = partial(encoding.weight, subject.normal)
        sizes = ordering.gaining(grouped, found, matrix, seed=run.config.seed)
    if not sizes:
        run.notes.append("The inputs of all layers keep their order: no other one saves enough.")
        return subject
    prepared, names = ordering.orderable(subject.prepared, grouped, sizes)
    costs = {grouped[value][0].node: ordering.order_bytes(len(size)) for value, size in sizes.items()}
    for old, new in names.items():
        moments.rename(old, new)
    layers = [replace(layer, order_bytes=costs.get(layer.node, 0)) for layer in subject.layers]
    reordered = ", ".join(f"'{layer.node}'" for value in sizes for layer in grouped[value])
    run.notes.append(f"The inputs are put in another order, in which they quantize better, before {reordered}.")
    ordered = {names[value]: Ordered(grouped[value][0].weight, size) for value, size in sizes.items()}
    return replace(subject, prepared=prepared, normal=importing.normalise(prepared), layers=layers, ordered=ordered)


def _arranged(subject: Subject, layouts: Mapping[str, Layout]) -> Subject:
    """The same with those inputs in the order that suits the length of the sub-vectors."""
    if not subject.ordered:
        return subject
    orders = {
        value: ordering.dealt(entry.sizes, layouts[entry.weight].sub_vector) for value, entry in subject.ordered.items()
    }
    prepared, normal = (ordering.arranged(model, orders) for model in (subject.prepared, subject.normal))
    return replace(subject, prepared=prepared, normal=normal, moments=subject.moments.reordered(orders))


def _trainer(run: _Run, folder: Path) -> Callable[[Subject, Trained, float], Trained]:
    """Training from a quantized start, with a share of the steps.

    What it needs is computed when it is first used, and anew for another model.
    """
    last: list[tuple[tuple[object, ...], Job, training.Prepared]] = []

    def train(subject: Subject, start: Trained, share: float) -> Trained:
        if share == 0 or subject.train is None or run.config.training.is_off:
            return start
        fixed = {name: start.quantized[name] for name in sorted(tables(subject.layers))}
        layers = [layer for layer in subject.layers if layer.weight not in fixed]
        if not layers:
            return replace(start, ways=dict.fromkeys(fixed, LOOKED_UP))
        made_for = (subject.normal, *fixed.values())
        if not last or any(own is not other for own, other in zip(last[0][0], made_for, strict=True)):
            job = Job(
                _with_tables(subject, fixed) if fixed else subject.normal,
                layers,
                subject.output,
                subject.train,
                run.config,
                folder,
                run.libraries,
                run.ticker,
                run.workspace,
                rewriting.constant_names(subject.prepared),
                fixed,
                subject.normal if fixed else None,
            )
            with run.stage("caching"):
                last[:] = [(made_for, job, training.prepare(job))]
        _, job, prepared = last[0]
        with run.stage("training"):
            trained = training.train(replace(job, share=share), prepared, start.quantized)
        return replace(trained, ways=trained.ways | dict.fromkeys(fixed, LOOKED_UP))

    return train


def _with_tables(subject: Subject, quantized: Mapping[str, Quantized]) -> ir.Model:
    """The model as it is trained, with tables as they will be stored: the layers learn to do with what is left."""
    values = {
        layer.weight: encoding.constant_of(subject.normal, layer, quantized[layer.weight])
        for layer in subject.layers
        if layer.weight in quantized
    }
    return rewriting.update_initializers(subject.normal, values)


def _make(
    run: _Run,
    subject: Subject,
    trainer: Callable[[Subject, Trained, float], Trained],
    layouts: Mapping[str, Layout],
    share: float,
) -> _Made:
    """A compressed model with given layouts, after a share of the training: 0 is product quantization alone."""
    own = _arranged(subject, layouts)
    state = trainer(own, Trained(_cluster(run, own, layouts)), share)
    fast = run.config.pq.fast
    tensors = {name: replace(part.freeze(), fast=fast) for name, part in state.quantized.items()}
    updated = rewriting.update_initializers(own.prepared, state.values)
    return _Made(rewriting.rewrite(updated, own.layers, tensors), own, layouts, tensors, state)


def _report(run: _Run, subject: Subject, made: _Made) -> Report:
    """Verify a compressed model, and all that is known of it."""
    with run.stage("verification"):
        proof = _verify(run, subject, made.model)
    trained = made.trained
    return Report(
        layers=_layer_reports(made.subject.normal, made.subject.layers, made.layouts, made.tensors, trained.ways),
        skipped=tuple(SkippedReport(entry.node, entry.op_type, entry.reason) for entry in subject.skipped),
        training=trained.training,
        verification=proof,
        layer_wise=tuple(trained.layer_wise),
        notes=tuple(dict.fromkeys((*run.notes, *run.workspace.summary()))),
        settings=run.config.to_dict(),
        made_from=subject.made_from,
        seconds=run.seconds,
    )


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
        tables=config.takes_tables,
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
    model: tuple[files.Source, ir.Model],
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
        device=devices.describe(),
        libraries=run.libraries,
    )


def _runnable(run: _Run, original: ir.Model) -> ir.Model:
    """The model itself, or one in float32 where onnxruntime has no operators for the bfloat16 that it computes in."""
    if not preparing.has_bfloat16(original):
        return original
    try:
        runtime.frugal(original, custom_ops_libraries=run.libraries)
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


def _cluster(run: _Run, subject: Subject, layouts: Mapping[str, Layout]) -> dict[str, Quantized]:
    """Quantize each weight, for the smallest error of its layers' outputs where there are data to measure it by."""
    normal, layers, train = subject.normal, subject.layers, subject.train
    of_weight = {layer.weight: layer for layer in layers}
    seed, tick = run.config.seed, run.ticker("clustering")
    found: Iterable[tuple[str, InputStatistics | str | None]] = ((weight, None) for weight in of_weight)
    pieces = {weight: _piece(run, normal, layer, layouts[weight], train) for weight, layer in of_weight.items()}
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
                matrix = encoding.weight(normal, of_weight[weight])
                known = None if isinstance(statistics, str) else statistics
                quantized[weight] = encoding.quantize(
                    matrix, layouts[weight], seed=seed, statistics=known, importance=subject.use_of(weight).importance
                )
                checkpoints.save_quantized(pieces[weight], quantized[weight])
                memory.give_back()
            if tick is not None:
                tick(len(quantized), len(of_weight))
    if not run.config.target.is_set:
        # Only on the way to a target is it asked for again.
        subject.moments.clear()
    return quantized


def _piece(run: _Run, normal: ir.Model, layer: Layer, layout: Layout, train: Dataset | None) -> Piece:
    """Where a quantized layer is kept: it depends on its weight, how that is cut, and the data, if there are any."""

    def depends() -> Iterator[bytes]:
        yield f"{layout} {layer.weight_is_in_out} {run.config.seed} {train is not None}".encode()
        yield from fingerprint.array_parts(layer.weight, encoding.weight(normal, layer).numpy())

    return run.layers.piece("layer", depends())


def _verify(run: _Run, subject: Subject, compressed: ir.Model) -> Verification:
    """Write the compressed model to a scratch folder and verify that very file."""
    if not runtime.library_available():
        run.notes.append(runtime.LIBRARY_MISSING)
    before = subject.bytes_before
    with tempfile.TemporaryDirectory(prefix="onnxpq-", ignore_cleanup_errors=True) as scratch:
        path = Path(scratch) / "compressed.onnx"
        files.save(compressed, path)
        return verifying.verify(
            _as_it_is(subject) or subject.runnable,
            path,
            subject.evidence.dataset,
            subject.inputs,
            output=subject.output,
            description=subject.evidence.description,
            held_out=subject.evidence.held_out,
            file_bytes=(before, files.file_bytes(path)),
            library_budget=verifying.budget_of(len(subject.layers), fast=run.config.pq.fast),
            is_timed=_has_room(run, before),
            libraries=run.libraries,
            progress=run.ticker("verification"),
        )


def _has_room(run: _Run, before: int) -> bool:
    """Whether there is memory for a model of so many bytes as users run it: nothing else takes all its weights."""
    needed, room = verifying.TIMED_ROOM * before, memory.available()
    if before <= files.LARGE_BYTES or room is None or needed <= room:
        return True
    run.notes.append(
        f"The time of a call was not measured: to run the original as users do may take {needed:,} bytes of memory, "
        f"and {room:,} are left."
    )
    return False


def _as_it_is(subject: Subject) -> str | PathLike[str] | None:
    """The user's file, where that is what runs, and has not much inside.

    onnxruntime copies the weights that a file has inside. A large model it gets with external data, which are mapped.
    """
    if subject.file is None or subject.runnable is not subject.original:
        return None
    return subject.file if Path(subject.file).stat().st_size <= files.LARGE_BYTES else None


def _layer_reports(
    normal: ir.Model,
    layers: Sequence[Layer],
    layouts: Mapping[str, Layout],
    tensors: Mapping[str, PQTensor],
    ways: Mapping[str, str],
) -> tuple[LayerReport, ...]:
    reports: list[LayerReport] = []
    for layer in layers:
        exact = encoding.weight(normal, layer).numpy()
        found = encoding.report(layer, layouts[layer.weight], exact, tensors[layer.weight], earlier=reports)
        reports.append(replace(found, training=ways.get(layer.weight, "")))
    return tuple(reports)

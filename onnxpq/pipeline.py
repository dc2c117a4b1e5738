"""The data flow: read -> quantize -> train -> rewrite -> verify, once, or as often as a target asks for."""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Final

import onnx_ir as ir

from onnxpq import rewriting, targeting, verification, workspace
from onnxpq.config import Config
from onnxpq.data import Source
from onnxpq.graph import files, opset
from onnxpq.pq import Layout, PQTensor
from onnxpq.quantization import allocation, arranging, bodies, clustering, subject
from onnxpq.quantization.subject import Subject
from onnxpq.report import Report, SkippedReport
from onnxpq.runtime import Libraries
from onnxpq.support.kinds import FULLY_CONNECTED
from onnxpq.training import Trained, Trainer
from onnxpq.workspace import Progress, Run

IN_FLOAT: Final = (
    "Runtimes without the operator library multiply in float32: in int8 the model as a whole would lose too much there."
)


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
    custom_ops_libraries: Libraries = (),
    progress: Progress | None = None,
) -> Result:
    """Compress the fully-connected layers of a model and prove the result in onnxruntime.

    Args:
        model: a path, bytes, an `onnx.ModelProto` or an `onnx_ir.Model`; it is not changed.
        data: samples to train on: path of an `.npz` file, a mapping {input name: array [N, ...]} or an iterable of such
            mappings; or whole calls, such as a folder of `.npz` files (docs/data.md). Without any it is plain
            product quantization, verified on random inputs only.
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
        FloorError: the result lost too much of the original; the error has the result.
        TargetError: the target is out of reach, or was missed; in the latter case the error has the result.
        OnnxpqError: see `onnxpq.errors`; each message says what to do.
    """
    with (
        workspace.opened(work_dir, restart=restart) as kept,
        tempfile.TemporaryDirectory(prefix="onnxpq-", ignore_cleanup_errors=True) as scratch,
    ):
        run = Run(config or Config(), custom_ops_libraries, progress, kept, layers=kept)
        own = subject.read(run, model, data, test, labels)
        targeting.check(run, own)
        own = subject.looked_up(run, subject.reached(run, own))
        own = arranging.orderable(run, arranging.scaled(run, own))
        if kept.folder is None and run.config.target.is_set:
            run.layers = workspace.temporary(Path(scratch))
        trainer = Trainer(run, Path(cache_dir or kept.activations or scratch), own.train, own.output)
        make, prove = partial(_make, run, own, trainer), partial(_prove, run, own)
        if run.config.target.is_set:
            made, report = targeting.seek(run, own, make, prove)
        else:
            made = make(allocation.layouts(own.layers, run.config, has_data=own.train is not None))
            report = prove(made)
        if bodies.costs_too_much(report.verification, run.config.pq.body):
            run.notes.append(IN_FLOAT)
            made = made.in_float(run)
            report = prove(made)
        return targeting.delivered(verification.above_floor(Result(made.model, report)))


@dataclass(frozen=True, eq=False)
class _Made:
    """A compressed model, and how it came about."""

    model: ir.Model
    subject: Subject
    layouts: Mapping[str, Layout]
    tensors: dict[str, PQTensor]
    trained: Trained

    def in_float(self, run: Run) -> "_Made":
        """The same for runtimes without the operator library that are to multiply in float32."""
        tensors = {name: replace(tensor, multiplies_int8=False) for name, tensor in self.tensors.items()}
        return _made(run, self.subject, self.layouts, tensors, self.trained)


def _make(run: Run, whole: Subject, trainer: Trainer, layouts: Mapping[str, Layout], share: float = 1.0) -> _Made:
    """A compressed model with given layouts, after a share of the training: 0 is product quantization alone."""
    own = arranging.arranged(whole, layouts)
    start = clustering.cluster(run, own, layouts)
    trained = trainer.train(own.forms, own.layers, start, share)
    settings, version = run.config.pq, opset(own.forms.prepared)
    multiplied = {layer.weight for layer in own.layers if layer.kind == FULLY_CONNECTED}
    tensors = {}
    for name, part in trained.quantized.items():
        may_int8 = name in multiplied and bodies.multiplies_int8(
            part.layout, part.input_error, settings.body, has_data=own.train is not None, opset=version
        )
        tensors[name] = replace(part.freeze(), fast=settings.fast, multiplies_int8=may_int8)
    return _made(run, own, layouts, tensors, trained)


def _made(
    run: Run, own: Subject, layouts: Mapping[str, Layout], tensors: dict[str, PQTensor], trained: Trained
) -> _Made:
    updated = rewriting.update_initializers(own.forms.prepared, trained.values)
    rewritten = rewriting.rewrite(updated, own.layers, tensors)
    model = rewriting.trimmed(rewritten, rest=run.config.rest, keep_metadata=run.config.keep_metadata)
    return _Made(model, own, layouts, tensors, trained)


def _prove(run: Run, whole: Subject, made: _Made) -> Report:
    """Verify a compressed model, and tell all that is known of it."""
    proof = verification.prove(
        run,
        whole.forms,
        made.model,
        whole.evidence,
        whole.inputs,
        kinds=whole.kinds,
        output=whole.output,
        layers=len(whole.layers),
        integer_layers=sum(tensor.multiplies_int8 for tensor in made.tensors.values()),
        aligned=whole.aligned,
    )
    own, trained = made.subject, made.trained
    return Report(
        layers=clustering.reports(
            own.forms.normal, own.layers, made.layouts, made.tensors, trained.quantized, trained.ways
        ),
        skipped=tuple(SkippedReport(entry.node, entry.op_type, entry.reason, entry.nbytes) for entry in whole.skipped),
        training=trained.training,
        verification=proof,
        layer_wise=tuple(trained.layer_wise),
        notes=tuple(dict.fromkeys((*run.notes, *run.workspace.summary()))),
        settings=run.config.to_dict(),
        made_from=whole.made_from,
        seconds=run.seconds,
    )

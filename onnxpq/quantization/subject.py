"""What one run compresses: the model in its forms, its layers, and its data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxpq import runtime
from onnxpq.data import Alignment, Dataset, Evidence, InputSpec, Source, batch_of, input_specs, sampling, sizes
from onnxpq.errors import DataError, NothingToCompressError
from onnxpq.graph import Forms, Layer, Skipped, check_weights, files, tables
from onnxpq.quantization import allocation, calibration, lookups
from onnxpq.quantization.calibration import Moments
from onnxpq.quantization.lookups import Lookups
from onnxpq.rewriting import find_layers
from onnxpq.runtime import alignment
from onnxpq.support import device, memory
from onnxpq.training import objectives
from onnxpq.verification import (
    Kind,
    check_classes,
    check_labels,
    choose_output,
    flattened,
    is_one_hot,
    is_scores,
    kind_of,
    name_classes,
    outputs,
    without_samples,
)
from onnxpq.workspace import Run, manifest

ONE_HOT = (
    "The labels of shape {shape} are one-hot, but floats: they are compared with the output by the squared error. With "
    "numbers of classes (labels.argmax(-1)) the training is by cross-entropy, and the accuracy is measured."
)

UNREACHED = "No sample of the data reaches it, so that nothing would show what became of it."

MIXED = (
    "Output '{output}' is not of single samples: what it gives for a sample depends on the others of the batch "
    "(relative difference {gap:.2g} between a batch and a part of it). So what lies along the batch axis are no "
    "samples, but steps of a sequence, for one. Name the axis of the samples with --batch-axis (1 for [T, N, C]), or "
    "give whole calls: a folder with an .npz file for each call, or --batch-axis none."
)

_GIVE = "Give data that do, or none for plain product quantization."


@dataclass(frozen=True, eq=False)
class Ordered:
    """A value whose entries are put in order (`onnxpq.quantization.ordering`).

    Attributes:
        weight: of the layer whose sub-vectors the order is for.
        sizes: [in], how much each entry counts.
    """

    weight: str
    sizes: NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Subject:
    """What is compressed.

    Attributes:
        forms: the model.
        layers: to be compressed.
        skipped: left alone.
        inputs: of the model.
        train: samples to train on, or None.
        evidence: samples to verify on.
        output: that loss and metrics look at.
        scores: the original's output for some samples, which come first where it has an entry for each.
        kinds: what each output is, by its name.
        made_from: the manifest (`onnxpq.workspace.manifest`).
        numbers: what speaks against reading the output as scores of classes
            (`onnxpq.verification.outputs.not_scores`), or None.
        aligned: where the samples lie in the original's outputs.
        moments: what was found of the layers' inputs, for those who look for it again
            (`onnxpq.quantization.calibration.collect`).
        ordered: by name, the values that are put in order.
        lookups: how the samples use each table, by the weight's name.
    """

    forms: Forms
    layers: list[Layer]
    skipped: list[Skipped]
    inputs: list[InputSpec]
    train: Dataset | None
    evidence: Evidence
    output: str
    scores: NDArray[Any]
    kinds: Mapping[str, Kind]
    made_from: dict[str, Any]
    numbers: str | None = None
    aligned: Alignment = field(default_factory=Alignment)
    moments: Moments = field(default_factory=Moments)
    ordered: Mapping[str, Ordered] = field(default_factory=dict)
    lookups: Mapping[str, Lookups] = field(default_factory=dict)

    def use_of(self, weight: str) -> Lookups:
        """What is known of the lookups of a weight: nothing of one that is no table."""
        return self.lookups.get(weight, Lookups())

    @property
    def layers_before(self) -> int:
        """Bytes of the weights that are compressed, in the original file."""
        return sum({layer.weight: layer.weight_bytes for layer in self.layers}.values())


def read(run: Run, model: files.Source, data: Source | None, test: Source | None, labels: str | None) -> Subject:
    """Read model and data, and refuse before the work all that can be.

    Args:
        run: takes notes; its workspace is bound to what the run is made from.
        model: what the user passed.
        data: samples to train on, or None.
        test: samples to verify on, or None.
        labels: key of the labels in both, or None.

    Raises:
        OnnxpqError: see `onnxpq.errors`; each message says what to do.
    """
    forms = Forms.of(model, partial(runtime.refusal, custom_ops_libraries=run.libraries))
    run.notes.extend(forms.notes)
    layers, skipped = find_layers(forms.prepared, run.config)
    allocation.layouts(layers, run.config)
    session = runtime.frugal(forms.runnable, custom_ops_libraries=run.libraries)
    if data is None and test is None:
        run_quietly = partial(runtime.run, session, quiet=True)
        inputs, made_up = sizes.found(forms.original, run_quietly, run.config.seed, run.config.batch_axes)
    else:
        ranks = sizes.ranks(forms.original, (data, test))
        inputs, made_up = input_specs(forms.original, ranks, run.config.batch_axes), []
    train, evidence, notes = sampling.prepare(inputs, data, test=test, labels=labels, config=run.config)
    run.notes.extend((*notes, *made_up))
    made_from = manifest.describe(
        manifest.of_model(model, forms.original),
        # Where a part of the data is the test, the run is made from that part too.
        None if data is None or train is None else manifest.of_data(data, train, *([] if test else [evidence.dataset])),
        None if test is None else manifest.of_data(test, evidence.dataset),
        labels=labels,
        config=run.config,
        device=device.describe(),
        libraries=run.libraries,
    )
    run.workspace.bind(made_from)
    measure = partial(_measure, run, partial(runtime.run, session), inputs)
    aligned, found, count = measure(evidence.dataset)
    output, numbers = _choose_output(run, forms, inputs, found, aligned)
    if not evidence.made_up:  # made-up ones are as good for anything
        _refuse_mixed(output, aligned)
    if train is not None and not train.whole and (evidence.dataset.whole or len(evidence.dataset) < alignment.MEASURED):
        own = measure(train)[0]
        _refuse_mixed(output, own)
        aligned = own if evidence.dataset.whole else aligned
    kinds = _kinds(forms, found, numbers)
    has_labels = any(data is not None and data.labels is not None for data in (train, evidence.dataset))
    if has_labels and output not in aligned.places and not evidence.dataset.whole:
        raise without_samples(output, found[output], count)
    _check_labels(run, found[output], train, evidence)
    check_weights(forms.normal, {layer.weight: layer.node for layer in layers})
    memory.give_back()
    return Subject(
        forms,
        layers,
        skipped,
        inputs,
        train,
        evidence,
        output,
        found[output],
        kinds,
        made_from,
        numbers.get(output),
        aligned,
    )


def _measure(
    run: Run,
    call: Callable[[Mapping[str, NDArray[Any]]], Mapping[str, NDArray[Any]]],
    inputs: list[InputSpec],
    dataset: Dataset,
) -> tuple[Alignment, dict[str, NDArray[Any]], int]:
    return alignment.measure(call, dataset, batch_of(dataset, inputs), seed=run.config.seed)


def _refuse_mixed(output: str, aligned: Alignment) -> None:
    """Refuse samples that are none, as steps of a sequence are: to train on them teaches nonsense.

    Only the output that counts is looked at: what else the model gives need not be of single samples.
    """
    if output in aligned.mixed:
        raise DataError(MIXED.format(output=output, gap=aligned.mixed[output]))


def _choose_output(
    run: Run, forms: Forms, inputs: list[InputSpec], found: Mapping[str, NDArray[Any]], aligned: Alignment
) -> tuple[str, dict[str, str]]:
    """The output that loss and metrics look at; and what speaks against reading outputs as scores of classes."""
    graph = forms.normal.graph
    # Those of single samples go before: only they can be judged by their samples.
    found = {name: found[name] for name in sorted(found, key=lambda name: name not in aligned.places)}
    columns = {name: values for name, values in found.items() if is_scores(values)}
    numbers = {name: why for name, values in columns.items() if (why := outputs.not_scores(graph, name, values))}
    parts = outputs.pooled(graph, list(numbers))
    # What a state is in the next call is not what a model is for, unless the user says so.
    states = set() if run.config.output else {spec.follower for spec in inputs}
    shown = {name: values for name, values in found.items() if name not in states}
    output = choose_output(shown, run.config.output, numbers=numbers, pooled=parts)
    if run.config.output is None and output in parts.values():
        names = ", ".join(f"'{part}'" for part, whole in parts.items() if whole == output)
        run.notes.append(
            f"Output '{output}' is looked at, which is made of {names} alone (--output-name names another)."
        )
    return output, numbers


def _kinds(forms: Forms, found: Mapping[str, NDArray[Any]], numbers: Mapping[str, str]) -> dict[str, Kind]:
    graph = forms.normal.graph
    return {
        name: kind_of(flattened(values), scores=name not in numbers, sigmoid=outputs.is_sigmoid(graph, name))
        for name, values in found.items()
    }


def _check_labels(run: Run, scores: NDArray[Any], train: Dataset | None, evidence: Evidence) -> None:
    """Refuse labels that do not fit before the hours of work, as training and verification would after."""
    whole = [data for data in (train, evidence.dataset) if data is not None and data.whole and data.labels is not None]
    for calls in (data.labels for data in whole if data.labels is not None):
        entries = np.concatenate([np.ravel(entry) for entry in calls])
        if scores.dtype.kind in "iuf" and name_classes(entries, scores):
            check_classes(entries, scores.reshape(-1, scores.shape[-1]) if is_scores(scores) else scores.ravel())
    if whole:
        return
    labels = None if train is None else evidence.labels_as_given(train)
    if labels is not None and np.issubdtype(scores.dtype, np.floating):
        if np.issubdtype(labels.dtype, np.integer):
            check_labels(labels, scores)
        objectives.choose(run.config.training, scores, labels)
        if labels.dtype.kind == "f" and is_one_hot(labels):
            run.notes.append(ONE_HOT.format(shape=list(labels.shape)))
    if evidence.dataset.labels is not None:
        check_labels(evidence.dataset.labels, scores)


def reached(run: Run, subject: Subject) -> Subject:
    """The same without the layers that no sample reaches: nothing would show what became of them.

    Raises:
        NothingToCompressError: none is left.
    """
    data = subject.evidence.dataset if subject.train is None and subject.evidence.held_out else subject.train
    if data is None:
        return subject
    names = calibration.unreached(
        subject.forms.normal, subject.layers, data, seed=run.config.seed, libraries=run.libraries
    )
    if not names:
        return subject
    left = [
        Skipped(layer.node, layer.op_type, layer.weight, UNREACHED) for layer in subject.layers if layer.weight in names
    ]
    layers = [layer for layer in subject.layers if layer.weight not in names]
    nodes = ", ".join(f"'{entry.node}'" for entry in left)
    if not layers:
        raise NothingToCompressError(
            f"Nothing can be compressed: no sample of the data reaches any layer ({nodes}). {_GIVE}"
        )
    run.notes.append(f"No sample of the data reaches the layers {nodes}, so they were left alone. {_GIVE}")
    return replace(subject, layers=layers, skipped=[*subject.skipped, *left])


def looked_up(run: Run, subject: Subject) -> Subject:
    """The same with what is known of how tables are used, if there are any."""
    if subject.train is None or not tables(subject.layers):
        return subject
    piece = run.workspace.piece("lookup", [])
    with run.stage("lookups"):
        found = lookups.load(piece)
        if found is None:
            found = lookups.observe(
                subject.forms.normal,
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

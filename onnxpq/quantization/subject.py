"""What one run compresses: the model in its forms, its layers, and its data."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxpq import runtime
from onnxpq.config import Config
from onnxpq.data import Dataset, Evidence, InputSpec, Source, first, fixed_batch, input_specs, sampling
from onnxpq.errors import ModelError
from onnxpq.graph import Forms, Layer, Skipped, files, tables
from onnxpq.network import CHECKED_SAMPLES
from onnxpq.quantization import allocation, lookups
from onnxpq.quantization.calibration import Moments
from onnxpq.quantization.lookups import Lookups
from onnxpq.rewriting import find_layers
from onnxpq.support import device, memory
from onnxpq.training import objectives
from onnxpq.verification import Kind, check_labels, choose_output, is_scores, kind_of, outputs
from onnxpq.workspace import Run, manifest

WIDENED = (
    "The model computes in bfloat16, which onnxruntime has no operators for on a CPU: its outputs and times are those "
    "of the same model in float32."
)


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
        scores: the original's output for some samples.
        kinds: what each output is, by its name.
        made_from: the manifest (`onnxpq.workspace.manifest`).
        numbers: what speaks against reading the output as scores of classes
            (`onnxpq.verification.outputs.not_scores`), or None.
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

    def runs(candidate: Any) -> bool:
        try:
            runtime.frugal(candidate, custom_ops_libraries=run.libraries)
        except ModelError:
            run.notes.append(WIDENED)
            return False
        return True

    forms = Forms.of(model, runs)
    inputs = input_specs(forms.original)
    layers, skipped = find_layers(forms.prepared, run.config)
    allocation.layouts(layers, run.config)
    train, evidence, notes = sampling.prepare(inputs, data, test=test, labels=labels, config=run.config)
    run.notes.extend(notes)
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
    few = first(evidence.dataset, fixed_batch(inputs), CHECKED_SAMPLES)
    found = runtime.run(runtime.frugal(forms.runnable, custom_ops_libraries=run.libraries), few)
    output, numbers = _choose_output(run, forms, found)
    kinds = _kinds(forms, found, numbers)
    _check_labels(run.config, found[output], train, evidence)
    files.check_weights(forms.normal, {layer.weight: layer.node for layer in layers})
    memory.give_back()
    return Subject(
        forms, layers, skipped, inputs, train, evidence, output, found[output], kinds, made_from, numbers.get(output)
    )


def _choose_output(run: Run, forms: Forms, found: Mapping[str, NDArray[Any]]) -> tuple[str, dict[str, str]]:
    """The output that loss and metrics look at; and what speaks against reading outputs as scores of classes."""
    graph = forms.normal.graph
    columns = {name: values for name, values in found.items() if is_scores(values)}
    numbers = {name: why for name, values in columns.items() if (why := outputs.not_scores(graph, name, values))}
    parts = outputs.pooled(graph, list(numbers))
    output = choose_output(found, run.config.output, numbers=numbers, pooled=parts)
    if run.config.output is None and output in parts.values():
        names = ", ".join(f"'{part}'" for part, whole in parts.items() if whole == output)
        run.notes.append(
            f"Output '{output}' is looked at, which is made of {names} alone (--output-name names another)."
        )
    return output, numbers


def _kinds(forms: Forms, found: Mapping[str, NDArray[Any]], numbers: Mapping[str, str]) -> dict[str, Kind]:
    graph = forms.normal.graph
    return {
        name: kind_of(values, scores=name not in numbers, sigmoid=outputs.is_sigmoid(graph, name))
        for name, values in found.items()
    }


def _check_labels(config: Config, scores: NDArray[Any], train: Dataset | None, evidence: Evidence) -> None:
    """Refuse labels that do not fit before the hours of work, as training and verification would after."""
    if train is not None and train.labels is not None and np.issubdtype(scores.dtype, np.floating):
        if np.issubdtype(train.labels.dtype, np.integer):
            check_labels(train.labels, scores)
        labels = train.labels[np.resize(np.arange(len(train)), len(scores))]
        objectives.choose(config.training, scores, labels)
    if evidence.dataset.labels is not None:
        check_labels(evidence.dataset.labels, scores)


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

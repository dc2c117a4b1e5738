"""The training of all layers of a model: end to end where a gradient reaches them, the others each by itself."""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq.config import Config
from onnxpq.data import Dataset, of_objects, validation_rows
from onnxpq.errors import ModelError, UnalignedError
from onnxpq.graph import Layer, subgraphs
from onnxpq.network import CHECKED_SAMPLES, Part, Plan, importing, partition, routing
from onnxpq.pq.quantized import Quantized
from onnxpq.report import END_TO_END, LAYER_WISE, NOT_TRAINED, LayerTraining, Training
from onnxpq.runtime import Libraries, activations
from onnxpq.training import finetuning, objectives
from onnxpq.training.finetuning import Problem, Samples
from onnxpq.verification import of_call
from onnxpq.workspace import Piece, Workspace, checkpoints

LAYER_ROWS = 16384
"""A layer that is trained by itself sees at most so many rows."""

UNREACHED = "no sample reaches it: it lies in a branch that is not taken"

Array: TypeAlias = NDArray[Any]

Ticker: TypeAlias = Callable[[str], Callable[[int, int], None] | None]
"""For the name of a stage, what is told its progress."""


@dataclass(frozen=True, eq=False)
class Job:
    """What is to be trained.

    Attributes:
        model: normalised.
        layers: of it.
        output: that the loss looks at.
        data: samples to train on, and to choose the best epoch by.
        config: of the run.
        cache_dir: for what onnxruntime computes for the data.
        libraries: custom-operator libraries that the model needs.
        ticker: for progress.
        workspace: where what is done is kept, for a run that is interrupted.
        constants: names of the constants that the user's file has in its main graph, and that can be given new values.
        tables: what is quantized already and not trained, by weight name; `model` holds their decoded values.
        original: the model with its own tables, which teaches; None where `model` does.
        share: of the steps that the settings give.
    """

    model: ir.Model
    layers: Sequence[Layer]
    output: str
    data: Dataset
    config: Config
    cache_dir: Path
    libraries: Libraries
    ticker: Ticker
    workspace: Workspace = field(default_factory=Workspace)
    constants: Collection[str] = ()
    tables: Mapping[str, Quantized] = field(default_factory=dict)
    original: ir.Model | None = None
    share: float = 1.0


@dataclass(frozen=True, eq=False)
class Prepared:
    """How each layer is trained, and what the part that is trained end to end is given (to learn, to choose by)."""

    plan: Plan
    samples: tuple[Samples, Samples] | None


@dataclass
class Trained:
    """What the training gave.

    Attributes:
        quantized: the layers, by weight name.
        values: other initializers, by name.
        ways: how each layer was trained, by weight name.
        training: of the layers that were trained end to end; None where there were none.
        layer_wise: of the others.
    """

    quantized: dict[str, Quantized]
    values: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    ways: dict[str, str] = field(default_factory=dict)
    training: Training | None = None
    layer_wise: list[LayerTraining] = field(default_factory=list)


def prepare(job: Job) -> Prepared:
    """Decide how each layer is trained, and let onnxruntime compute what is not trained, once for all samples.

    Raises:
        OnnxpqError: see `onnxpq.network.routing.plan` and `onnxpq.runtime.activations.capture`.
    """
    few = job.data.some(CHECKED_SAMPLES, job.config.seed)
    plan = routing.plan(job.model, job.layers, job.output, few, job.libraries)
    if plan.part is None:
        return Prepared(plan, None)
    capture = partial(
        activations.capture,
        cache_dir=job.cache_dir,
        libraries=job.libraries,
        places=plan.part.places,
        progress=job.ticker("caching"),
    )
    try:
        given, taught = partition.boundary_values(plan.part.cut, job.data, capture), None
        if job.original is None:
            teacher = capture(plan.part.cut.suffix, [job.output], given)
        else:
            taught, teacher = routing.taught(plan.part, job.original, job.output, job.data, capture)
    except UnalignedError as error:
        # The few samples fitted together, all of them do not: texts of many lengths, for one.
        weights = dict.fromkeys(plan.part.weights, str(error))
        return Prepared(Plan(None, {**plan.layer_wise, **weights}), None)
    rows = validation_rows(len(job.data), job.config.training.validation, job.config.seed)
    target, before = teacher.inputs[job.output], None if taught is None else taught.inputs
    labels = job.data.labels
    if job.data.whole and labels is not None:
        labels = of_objects([of_call(own, output) for own, output in zip(labels, target, strict=True)])
    learn, choose = (Samples(given.inputs, target, labels, part, before, job.data.whole) for part in rows)
    return Prepared(plan, (learn, choose))


def train(job: Job, prepared: Prepared, quantized: Mapping[str, Quantized]) -> Trained:
    """Train all layers.

    Args:
        job: the model and its data.
        prepared: `prepare(job)`.
        quantized: where to start, by weight name.

    Raises:
        TrainingError: the loss became NaN or infinite.
        DataError, OutputError: the inputs of a layer cannot be captured; see `onnxpq.runtime.activations.capture_rows`.
    """
    trained = Trained(dict(quantized))
    if prepared.plan.part is not None and prepared.samples is not None:
        _end_to_end(job, prepared.plan.part, prepared.samples, trained)
    tick = job.ticker("layer-wise training")
    for done, (weight, reason) in enumerate(prepared.plan.layer_wise.items(), start=1):
        # All together they get the time that the rest has got.
        minutes = job.config.training.minutes / len(prepared.plan.layer_wise)
        _by_itself(job, [layer for layer in job.layers if layer.weight == weight], reason, minutes, trained)
        if tick is not None:
            tick(done, len(prepared.plan.layer_wise))
    return trained


def _piece(job: Job, way: str, start: Mapping[str, Quantized]) -> Piece:
    """Where a training is kept: it depends on what it starts from, apart from what is the same for the whole run."""
    settings = f"{way} {job.output} {job.config.training} {job.share:g} {job.config.seed}"
    parts = itertools.chain([settings.encode()], checkpoints.parts({**start, **job.tables}))
    return job.workspace.piece("training", parts)


def _end_to_end(job: Job, part: Part, samples: tuple[Samples, Samples], trained: Trained) -> None:
    start = {layer.weight: trained.quantized[layer.weight] for layer in part.layers}
    problem = Problem(
        part.network,
        part.layers,
        job.output,
        vectors(job, part),
        part.fixed_batch,
        places=part.places,
        originals=_originals(job, part),
        whole=part.whole,
    )
    tuned = finetuning.finetune(
        problem,
        start,
        samples,
        job.config.training,
        seed=job.config.seed,
        share=job.share,
        progress=job.ticker("training"),
        piece=_piece(job, END_TO_END, start),
    )
    trained.ways |= _ways(trained.quantized, tuned.quantized)
    trained.quantized |= tuned.quantized
    trained.values |= tuned.values
    trained.training = Training(
        loss=tuned.describe,
        samples=len(samples[0]),
        validation_samples=len(samples[1]),
        prefix=0 if part.cut.prefix is None else len(part.cut.prefix.graph),
        forward_error=part.check.max_rel,
        forward_node=part.check.node,
        before=tuned.before,
        quantized=tuned.start,
        best=tuned.best,
        batch=tuned.schedule.batch,
        steps=tuned.schedule.steps,
        epochs=tuned.epochs,
        of_calls=part.whole,
    )


def _originals(job: Job, part: Part) -> dict[str, Array]:
    """What the tables are in the original that lie in the part, as those do that no sample decides about."""
    if job.original is None:
        return {}
    constants = {name: job.original.graph.initializers[name].const_value for name in job.tables}
    own = {name for name, _ in part.network.named_initializers()}
    return {name: np.array(tensor.numpy(), np.float32) for name, tensor in constants.items() if tensor and name in own}


def _ways(before: Mapping[str, Quantized], after: Mapping[str, Quantized]) -> dict[str, str]:
    """How each layer of a part was trained: those in a branch of an If that no batch took were not.

    Where nothing was better than the start, that is what is kept of all of them.
    """
    changed = {name: not part.codebooks.equal(before[name].codebooks) for name, part in after.items()}
    none = not any(changed.values())
    return {name: END_TO_END if none or reached else f"{NOT_TRAINED}: {UNREACHED}" for name, reached in changed.items()}


def vectors(job: Job, part: Part) -> list[str]:
    """What shifts and scales in the part, and nowhere else in the model: to train it costs no bytes."""
    parameters = {name for name, _ in part.network.named_initializers()}
    own = {layer.bias for layer in part.layers if layer.bias is not None} & parameters
    others = {layer.bias for layer in job.layers if layer.weight not in {own.weight for own in part.layers}}
    found = (set(part.network.vectors()) & set(job.constants)) | own
    inside = {name for name in found if _is_inside(job, name, part.cut.suffix.graph)}
    return sorted(inside - others - {layer.weight for layer in job.layers})


def _is_inside(job: Job, name: str, graph: ir.Graph) -> bool:
    """Whether an initializer of the model has its effect through a part of it alone, and is no output itself."""
    value = job.model.graph.initializers[name]
    return not value.is_graph_output() and len(value.uses()) == len(graph.initializers[name].uses())


def _by_itself(job: Job, layers: Sequence[Layer], reason: str, minutes: float, trained: Trained) -> None:
    """Train a layer against the outputs that the original layer gives for its inputs.

    Args:
        job: the model and its data.
        layers: all that share a weight; the first one that can be trained alone stands for them.
        reason: why it is not trained end to end.
        minutes: for it.
        trained: takes the result.
    """
    layer, alone = next(
        ((layer, found) for layer in layers if (found := partition.alone(job.model, layer))), (None, None)
    )
    if layer is None or alone is None:
        why = "its inputs have no rows that it treats alike, or no run of the model gives them out"
        trained.ways |= {layer.weight: f"{NOT_TRAINED}: {reason}; {why}" for layer in layers}
        return
    try:
        rows = activations.capture_rows(
            subgraphs.expose(job.model, [alone.input]),
            alone.input,
            job.data,
            limit=LAYER_ROWS,
            flatten=alone.by_rows or bool(layer.place),
            cache_dir=job.cache_dir,
            libraries=job.libraries,
        )
    except (ModelError, UnalignedError) as error:
        if isinstance(error, ModelError) and not layer.place:
            raise
        # No sample that is trained on reaches it, or a loop changes shapes from iteration to iteration.
        trained.ways[layer.weight] = f"{NOT_TRAINED}: {reason}; {error}"
        return
    teacher = activations.capture(alone.model, [alone.output], Dataset({alone.input: rows}), cache_dir=job.cache_dir)
    # Rows of one sample resemble each other: what is held out is the end, which comes from other samples.
    held_out = min(len(rows) - 1, max(1, round(job.config.training.validation * len(rows))))
    index = np.arange(len(rows))
    inputs, target = {alone.input: rows}, teacher.inputs[alone.output]
    learn, choose = (Samples(inputs, target, None, part) for part in (index[:-held_out], index[-held_out:]))
    objective = objectives.relative_squared_error(target)
    network = importing.import_model(alone.model)
    parameters = {name for name, _ in network.named_initializers()}
    bias = [name for name in {layer.bias} & parameters if name and _is_inside(job, name, alone.model.graph)]
    start = {layer.weight: trained.quantized[layer.weight]}
    tuned = finetuning.finetune(
        Problem(network, [layer], alone.output, bias, places=teacher.places, objective=objective),
        start,
        (learn, choose),
        # A mixture tells nothing new about a layer, which is linear, and the layer's output is what the loss looks at.
        replace(job.config.training, minutes=minutes, mixup=0.0, features=0.0),
        seed=job.config.seed,
        share=job.share,
        piece=_piece(job, LAYER_WISE, start),
    )
    trained.quantized |= tuned.quantized
    trained.values |= tuned.values
    trained.ways[layer.weight] = f"{LAYER_WISE}: {reason}"
    trained.layer_wise.append(
        LayerTraining(layer.node, reason, len(learn), len(choose), tuned.start, tuned.best, tuned.epochs)
    )

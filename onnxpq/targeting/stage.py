"""A target as a step of the pipeline: measure the layers, let the search make models, and say what was reached."""

import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import onnx_ir as ir

from onnxpq import rewriting
from onnxpq.data import Dataset, batch_of, validation_rows
from onnxpq.errors import ConfigError, TargetError
from onnxpq.graph import Layer, files, opset, tables
from onnxpq.network import matrices
from onnxpq.operators import MAX_NIBBLE_CODEWORDS
from onnxpq.pq import InputStatistics, Layout, PQTensor
from onnxpq.quantization import allocation, bodies, calibration, sensitivity
from onnxpq.quantization.curves import Weight
from onnxpq.quantization.sensitivity import Curve, Influence
from onnxpq.quantization.subject import Subject
from onnxpq.report import Report, TargetReport, drop_of, percent
from onnxpq.support import memory
from onnxpq.support.kinds import FULLY_CONNECTED
from onnxpq.targeting import planning, searching
from onnxpq.targeting.planning import Layouts, Plan, Planner
from onnxpq.targeting.searching import Found, Work
from onnxpq.verification import Drop, Metric, scoring
from onnxpq.workspace import Run, checkpoints


@dataclass(frozen=True, eq=False)
class Case:
    """What is to be compressed, and what for.

    Attributes:
        run: its settings have a target; its workspace keeps what was measured of each weight.
        subject: the model, its layers and its data.
    """

    run: Run
    subject: Subject


@dataclass(frozen=True, eq=False)
class Aim:
    """The target, made concrete.

    Attributes:
        planner: of the model.
        metric: to judge by; None without data.
        judged: samples to judge by; likewise.
    """

    planner: Planner
    metric: Metric | None
    judged: Dataset | None


class IsMade(Protocol):
    """What the pipeline makes."""

    @property
    def model(self) -> ir.Model:
        """The compressed model."""
        ...

    @property
    def subject(self) -> Subject:
        """What was compressed, its inputs in the order that was chosen."""
        ...

    @property
    def tensors(self) -> Mapping[str, PQTensor]:
        """What its weights are now, by name."""
        ...


class HasReport(Protocol):
    """What the pipeline gives to the user."""

    @property
    def report(self) -> Report:
        """What is known of the compressed model."""
        ...


Made = TypeVar("Made", bound=IsMade)
Result = TypeVar("Result", bound=HasReport)


def check(run: Run, subject: Subject) -> None:
    """Refuse at once a size that not even the smallest codes of all layers reach.

    Raises:
        TargetError: the size is out of reach.
    """
    if run.config.target.limits_bytes:
        case = Case(run, subject)
        sizes = [_curve(case, layer, None) for layer in _first_of_each(subject.layers)]
        _limit(case)(Planner(sizes, partial(_weigh, case, {})))


def seek(run: Run, subject: Subject, make: Callable[..., Made], prove: Callable[[Made], Report]) -> tuple[Made, Report]:
    """Make models until one is what the target asks for, and say what was reached.

    Args:
        run: of the pipeline; its settings have a target.
        subject: what is compressed.
        make: a model with given layouts (by weight name) after a share of the training.
        prove: verifies a model.

    Raises:
        ConfigError: see `prepare`.
        TargetError: the target is out of reach.
    """
    case = Case(run, subject)
    with run.stage("sensitivity"):
        aim = prepare(case)
    if aim.metric is not None and aim.metric.remark is not None and run.config.target.max_drop is not None:
        run.notes.append(aim.metric.remark)
    found = search(case, aim, make)
    report = prove(found.made)
    return found.made, replace(report, target=conclude(case, aim, found, report))


def prepare(case: Case) -> Aim:
    """Choose the metric, and measure the layers.

    Raises:
        ConfigError: the metric does not fit, or a drop is limited where nothing can be judged by.
    """
    target, metric, judged = case.run.config.target, None, None
    if case.subject.train is None and target.max_drop is not None:
        raise ConfigError("A limit for the drop needs data to judge by: give --data. A size needs none.")
    if case.subject.train is not None:
        own, labels = case.subject, case.subject.train.labels
        metric = scoring.choose(target.metric, own.output, own.scores, labels, numbers=own.numbers)
        # The rows that training chooses its best epoch by: those it does not learn from.
        rows = validation_rows(len(case.subject.train), case.run.config.training.validation, case.run.config.seed)[1]
        judged = case.subject.train.take(rows)
    known = _known(case)
    input_errors = {weight: measured["input_error"] for weight, measured in known.items()}
    return Aim(Planner(_curves(case, known), partial(_weigh, case, input_errors)), metric, judged)


def search(case: Case, aim: Aim, make: Callable[..., Made]) -> Found[Made]:
    """Make models until one is what was asked for.

    Args:
        case: what is compressed.
        aim: from `prepare`.
        make: a model with given layouts (by weight name) after a share of the training.

    Raises:
        TargetError: the size or the drop is out of reach.
    """
    judged = aim.judged
    judge = None if judged is None else lambda made: _drop(case, aim, made.model, judged)
    trains = case.subject.train is not None and not case.run.config.training.is_off
    work = Work(make, judge, trains, None if judged is None else partial(_traced, case))
    return searching.search(case.run.config.target, aim.planner, _limit(case), work)


def conclude(case: Case, aim: Aim, found: Found[Made], report: Report) -> TargetReport:
    """What was reached, by the verified file and on the samples that it was verified on."""
    target, trial, checked = case.run.config.target, found.trials[found.chosen], report.verification
    proof, remark = None, None
    if aim.metric is not None:
        proven = _drop(case, aim, found.made.model, case.subject.evidence.dataset)
        proof = proven.drop
        if target.max_drop is not None and found.last is not None:
            remark = scoring.by_heart(found.last, proven)
    kept = [
        (target.ratio is None or report.ratio >= target.ratio),
        (target.fc_ratio is None or report.layer_ratio >= target.fc_ratio),
        (target.size is None or checked.bytes_after <= target.size),
        trial.met,
        (target.max_drop is None or (proof is not None and proof.value <= target.max_drop)),
    ]
    outcome = (
        f"a file of {checked.bytes_after:,} bytes, {report.ratio:.2f} times smaller, layers {report.layer_ratio:.2f} "
        "times smaller"
    )
    if aim.metric is not None and trial.drop is not None:
        outcome += f"; {drop_of(aim.metric.name)} {percent(trial.drop)} on the samples that decided"
    if target.max_drop is not None and all(kept) and proof is not None and proof.high > target.max_drop:
        outcome += "; there are too few samples to rule out that it is more"
    return TargetReport(
        asked=planning.asked(target, None if aim.metric is None else aim.metric.name),
        reached=all(kept),
        outcome=outcome,
        metric=None if aim.metric is None else aim.metric.name,
        decided_on=None if aim.judged is None else f"{len(aim.judged)} validation samples, not learned from",
        trials=tuple(found.trials),
        chosen=found.chosen,
        proof=proof,
        expected=found.planner.expected(),
        remark=remark,
        corrections=tuple(found.remarks),
    )


def delivered(result: Result) -> Result:
    """The result, if it is what the target asked for.

    Raises:
        TargetError: it is not; the error has the result.
    """
    reached = result.report.target
    if reached is None or reached.reached:
        return result
    proof = ""
    if reached.proof is not None and reached.metric is not None:
        proof = f"; {drop_of(reached.metric)} {percent(reached.proof)} on the samples that it was verified on"
    raise TargetError(f"Missed: {reached.asked}. Reached: {reached.outcome}{proof}.", result=result)


def _drop(case: Case, aim: Aim, model: ir.Model, samples: Dataset) -> Drop:
    if aim.metric is None:
        raise AssertionError("a metric is chosen where there are samples")
    models = (case.subject.forms.runnable, model)
    return scoring.measure(
        aim.metric,
        models,
        samples,
        aligned=case.subject.aligned,
        fixed_batch=batch_of(samples, case.subject.inputs),
        libraries=case.run.libraries,
    )


def _limit(case: Case) -> Callable[[Planner], Plan]:
    """The best layouts of the bytes that are allowed, by what a planner expects."""
    subject = case.subject
    return partial(
        planning.limit,
        target=case.run.config.target,
        file_before=subject.forms.bytes_before,
        layers_before=subject.layers_before,
    )


def _probe(case: Case, subject: Subject, train: Dataset) -> Influence:
    """A model's output as a function of its weights, on some samples at random."""
    order = np.random.default_rng(case.run.config.seed).permutation(len(train))
    some = train.take(np.sort(order[: sensitivity.PROBED_SAMPLES]))
    return Influence(subject.forms.normal, subject.layers, subject.output, some, libraries=case.run.libraries)


def _traced(case: Case, made: IsMade) -> dict[str, float]:
    """The squared relative error of the output that each weight of a model brings in alone, by name."""
    subject = made.subject
    if subject.train is None:
        raise AssertionError("a model is judged where there are samples")
    probe = _probe(case, subject, subject.train)
    return {
        layer.weight: probe.quantized(layer, made.tensors[layer.weight]) for layer in _first_of_each(subject.layers)
    }


def _first_of_each(layers: Sequence[Layer]) -> list[Layer]:
    """One layer for each weight, in the order of the model."""
    found: dict[str, Layer] = {}
    for layer in layers:
        found.setdefault(layer.weight, layer)
    return list(found.values())


def _known(case: Case) -> dict[str, dict[str, Any]]:
    """What is measured of every weight, by name, in the order of the model."""
    tick = case.run.ticker("sensitivity")
    layers = {layer.weight: layer for layer in _first_of_each(case.subject.layers)}
    pieces = {weight: case.run.workspace.piece("measurement", [weight.encode()]) for weight in layers}
    known = {weight: found for weight, piece in pieces.items() if (found := checkpoints.load(piece)) is not None}
    probe = None
    if case.subject.train is not None and len(known) < len(layers):
        probe = _probe(case, case.subject, case.subject.train)
    for weight, statistics in _statistics(case, frozenset(known)):
        known[weight] = _measured(case, layers[weight], statistics, probe)
        checkpoints.save(pieces[weight], known[weight])
        memory.give_back()
        if tick is not None:
            tick(len(known), len(layers))
    return {weight: known[weight] for weight in layers}


def _curves(case: Case, known: Mapping[str, Mapping[str, Any]]) -> list[Curve]:
    """The sensitivity of every weight."""
    layers = _first_of_each(case.subject.layers)
    return sensitivity.filled([_curve(case, layer, known[layer.weight]) for layer in layers])


def _statistics(case: Case, skip: frozenset[str]) -> Iterator[tuple[str, InputStatistics | None]]:
    """Each weight that is not to be skipped, once, with what is known of its inputs."""
    layers = case.subject.layers
    if case.subject.train is None:
        yield from ((weight, None) for weight in {layer.weight: None for layer in layers} if weight not in skip)
        return
    looked_up = sorted(tables(layers) - skip)
    yield from ((weight, case.subject.use_of(weight).statistics) for weight in looked_up)
    for weight, found in calibration.collect(
        case.subject.forms.normal,
        layers,
        case.subject.train,
        seed=case.run.config.seed,
        libraries=case.run.libraries,
        skip=skip,
        kept=case.subject.moments,
    ):
        yield weight, None if isinstance(found, str) else found


def _families(case: Case, layer: Layer) -> list[list[Layout]]:
    """What a weight may get; one with settings of its own has no choice."""
    pinned = allocation.pinned(case.subject.layers, case.run.config).get(layer.weight)
    if pinned is not None:
        return [[pinned]]
    return allocation.options(
        layer, MAX_NIBBLE_CODEWORDS if case.run.config.pq.fast else case.run.config.target.max_codewords
    )


def _measured(case: Case, layer: Layer, statistics: InputStatistics | None, probe: Influence | None) -> dict[str, Any]:
    """What is measured of a weight: the error with each layout, and its influence, if there are data."""
    importance = case.subject.use_of(layer.weight).importance
    matrix = matrices.weight(case.subject.forms.normal, layer)
    weight = Weight(matrix, statistics, importance, seed=case.run.config.seed)
    families = _families(case, layer)
    found: dict[str, Any] = {"errors": list(itertools.chain.from_iterable(weight.curves(families)))}
    multiplied = any(other.weight == layer.weight and other.kind == FULLY_CONNECTED for other in case.subject.layers)
    found["input_error"] = statistics.rounding_error(matrix.numpy()) if statistics is not None and multiplied else None
    if probe is not None:
        layouts = list(itertools.chain.from_iterable(families))
        found["influences"] = sensitivity.influences(probe, layer, weight, layouts, found["errors"])
    return found


def _curve(case: Case, layer: Layer, measured: Mapping[str, Any] | None) -> Curve:
    """What was measured of a weight; the bytes alone where nothing was."""
    layouts = tuple(itertools.chain.from_iterable(_families(case, layer)))
    sizes = tuple(_bytes(case, layer.weight, layout) for layout in layouts)
    if measured is None:
        return Curve(layer.weight, layouts, sizes, (1.0,) * len(sizes))
    curve = Curve(layer.weight, layouts, sizes, tuple(measured["errors"]))
    if "influences" not in measured:
        return curve
    influences = tuple((error, influence) for error, influence in measured["influences"])
    return replace(curve, influences=influences, gain=_gain(case, layer.weight))


def _gain(case: Case, weight: str) -> float:
    """By what factor training lowers what a weight brings into the output."""
    looked_up = tables(case.subject.layers)
    if case.run.config.training.is_off or all(layer.weight in looked_up for layer in case.subject.layers):
        return 1.0
    return searching.TABLE_GAIN if weight in looked_up else searching.TRAINING_GAIN


def _bytes(case: Case, weight: str, layout: Layout) -> int:
    """What a weight takes in the file: each subgraph that uses it has a copy."""
    layers = [layer for layer in case.subject.layers if layer.weight == weight]
    return len({layer.place for layer in layers}) * layout.nbytes + sum(layer.input_bytes for layer in layers)


def _weigh(case: Case, input_errors: Mapping[str, float | None], layouts: Layouts) -> int:
    """Bytes of the file with given layouts, by writing it; its functions depend on how layers multiply."""
    body, version = case.run.config.pq.body, opset(case.subject.forms.prepared)
    has_data = case.subject.train is not None
    tensors = {}
    for number, (name, layout) in enumerate(layouts.items(), 1):
        may_int8 = bodies.multiplies_int8(layout, input_errors.get(name), body, has_data=has_data, opset=version)
        tensors[name] = _placeholder(layout, number, multiplies_int8=may_int8)
    rewritten = rewriting.rewrite(case.subject.forms.prepared, case.subject.layers, tensors)
    config = case.run.config
    model = rewriting.trimmed(rewritten, rest=config.rest, keep_metadata=config.keep_metadata)
    with tempfile.TemporaryDirectory(prefix="onnxpq-", ignore_cleanup_errors=True) as scratch:
        path = Path(scratch) / "weighed.onnx"
        files.save(model, path)
        return files.file_bytes(path)


def _placeholder(layout: Layout, number: int, *, multiplies_int8: bool) -> PQTensor:
    """A tensor of the right sizes with random content: constants of equal content are stored once."""
    rng = np.random.default_rng(number)
    shape = (1, layout.groups, layout.codewords, layout.sub_vector)
    return PQTensor(
        codebooks=rng.integers(-9, 9, shape).astype(np.int8 if layout.codebook_bytes == 1 else np.float16),
        codes=rng.integers(0, 2, (layout.out_features, 1, layout.sub_vectors), np.uint8),
        scales=rng.uniform(1, 2, layout.out_features).astype(np.float32),
        in_features=layout.in_features,
        multiplies_int8=multiplies_int8,
    )

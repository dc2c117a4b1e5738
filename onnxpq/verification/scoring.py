"""What a compressed model loses by the user's metric, sample by sample, against the original.

Every metric is a loss per sample of both models and a unit: ``drop = sum(after - before) / sum(unit)``. So the drop of
accuracy is in points, and that of a squared error is a share.

A score of the user's own is a function ``score(outputs, original, labels)``: outputs of a model and of the original
({name: array [N, ...]}), and the labels or None. It gives one number or one for each sample, higher being better. The
samples come first, wherever the model has them; an output that is not of single samples is [calls, ...], an array of
objects where the shapes differ.

Where the output to look at is not of single samples, calls of one sample each are what is judged.
"""

import importlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from onnxpq import runtime
from onnxpq.data import Alignment, Dataset, batches, of_objects
from onnxpq.errors import ConfigError, DataError
from onnxpq.support.figures import Interval
from onnxpq.verification.metrics import Z95, counted, flattened, is_scores, is_sequence, name_classes, of_call

Array: TypeAlias = NDArray[Any]
Outputs: TypeAlias = Mapping[str, Array]
Score: TypeAlias = Callable[[Outputs, Outputs, Array | None], object]

BATCH = 256
"""Samples per run, where the model leaves that open."""

BEYOND_CHANCE = 3.0
"""So many standard errors are no chance."""


@dataclass(frozen=True)
class Drop:
    """What a compressed model loses.

    Attributes:
        metric: by which.
        drop: with the 95 % interval that pairs give; of width 0 where the metric gives one number for all samples.
        relative_error: relative L2 difference of the output, None where it holds no floats.
        samples: number of them.
        wrong: share of them that the original gets wrong; None where the metric is not accuracy.
    """

    metric: str
    drop: Interval
    relative_error: float | None
    samples: int
    wrong: float | None = None

    @property
    def cautious(self) -> float:
        """The drop and one standard error: what is still unlikely to be exceeded on other samples."""
        return self.drop.value + (self.drop.high - self.drop.value) / Z95


@dataclass(frozen=True)
class Metric:
    """A metric, chosen for a model and its data.

    Attributes:
        name: "accuracy", "agreement", "mse" (against numeric labels), "relative mse" (against the original's outputs,
            as a share of their mean square), or "module:function".
        output: the output that it looks at.
        score: of "module:function".
        remark: why it is this one, where that needs saying.
    """

    name: str
    output: str
    score: Score | None = None
    remark: str | None = None


def choose(wanted: str, output: str, values: Array, labels: Array | None, *, numbers: str | None = None) -> Metric:
    """The metric that the settings ask for.

    Args:
        wanted: `TargetConfig.metric`.
        output: name of the output to look at.
        values: what the original gives there for some samples, [n, ...].
        labels: of some samples, or None.
        numbers: what speaks against scores of classes there (`onnxpq.verification.outputs.not_scores`), or None.

    Raises:
        ConfigError: the metric does not fit the output or needs labels; or the function cannot be imported.
    """
    values = flattened(values)
    if labels is not None and is_sequence(labels):  # of whole calls
        labels = np.asarray(labels[0])
    classes = labels is not None and name_classes(labels, values)
    countable = is_scores(values) or not np.issubdtype(values.dtype, np.floating)
    squared = Metric("relative mse" if labels is None or classes else "mse", output)
    if ":" in wanted:
        return Metric(wanted, output, _imported(wanted))
    if wanted == "auto":
        if labels is not None:
            return Metric("accuracy", output) if classes else squared
        if numbers is not None and is_scores(values):
            return replace(squared, remark=_read_as_numbers(output, numbers))
        return Metric("agreement", output) if countable else squared
    if wanted == "accuracy" and not classes:
        raise ConfigError(
            f"The metric 'accuracy' needs labels that name classes of output '{output}'. Name their key with --labels, "
            "or choose the metric agreement or mse."
        )
    if wanted == "agreement" and not countable:
        raise ConfigError(
            f"The metric 'agreement' compares the largest entries; output '{output}' has one per sample. Choose mse."
        )
    if wanted == "mse" and not np.issubdtype(values.dtype, np.floating):
        raise ConfigError(f"The metric 'mse' needs floating-point numbers; output '{output}' holds {values.dtype}.")
    return squared if wanted == "mse" else Metric(wanted, output)


def measure(
    metric: Metric,
    models: tuple[runtime.Model, runtime.Model],
    dataset: Dataset,
    *,
    aligned: Alignment,
    fixed_batch: int | None,
    libraries: runtime.Libraries = (),
) -> Drop:
    """What is lost between two models on some samples, by onnxruntime; with the operator library where there is one.

    Args:
        metric: from `choose`.
        models: original and compressed.
        dataset: the samples, with labels where the metric needs them.
        aligned: where the samples lie in the original's outputs (`onnxpq.runtime.alignment`).
        fixed_batch: the number of samples that the models take at a time; None for any.
        libraries: custom-operator libraries that the models need.

    Raises:
        DataError: the user's score gives something else than numbers.
        ModelError, RuntimeLibraryError: onnxruntime refuses a model.
    """
    use = runtime.library_available()
    original = runtime.frugal(models[0], custom_ops_libraries=libraries)
    compressed = runtime.frugal(models[1], use_library=use, custom_ops_libraries=libraries)
    parts: list[tuple[Outputs, Outputs]] = []
    losses: list[NDArray[np.float64]] = []
    squares = np.zeros(2)
    if dataset.whole:
        fixed_batch, aligned = None, Alignment()
    size = fixed_batch or (BATCH if metric.output in aligned.places else 1)
    for part, count in batches(dataset, size, exact=fixed_batch is not None):
        for before, after, labels in _runs(metric.output, (original, compressed), part, count, aligned, fixed_batch):
            exact, found = before[metric.output], after[metric.output]
            squares += _squares(exact, found)
            if metric.score is None:
                losses.append(_losses(metric.name, exact, found, labels))
            else:
                parts.append((before, after))
    if metric.score is not None:
        losses.append(_scored(metric, metric.score, parts, dataset))
    relative = math.sqrt(squares[0] / squares[1]) if squares[1] > 0 else None
    every = np.concatenate(losses)
    wrong = float(every[:, 0].sum() / max(1.0, every[:, 2].sum())) if metric.name == "accuracy" else None
    return Drop(metric.name, _interval(every), relative, len(dataset), wrong)


def by_heart(decided: Drop, proof: Drop) -> str | None:
    """A remark where the original gets more of the samples that decided right than chance explains."""
    if decided.wrong is None or proof.wrong is None:
        return None
    counts = decided.samples, proof.samples
    share = (decided.wrong * counts[0] + proof.wrong * counts[1]) / sum(counts)
    chance = math.sqrt(share * (1 - share) * (1 / counts[0] + 1 / counts[1]))
    if proof.wrong - decided.wrong <= BEYOND_CHANCE * chance:
        return None
    return (
        f"The original gets {decided.wrong:.2%} of the samples that decided wrong, and {proof.wrong:.2%} of those that "
        "it was verified on: it was probably trained on the former. What a smaller model loses there then looks larger "
        "than it is. With data that the original has not seen (--data) a smaller file may do."
    )


def _read_as_numbers(output: str, reason: str) -> str:
    return (
        f"Output '{output}' {reason}, so it is taken for numbers and judged by its squared error. If it holds scores "
        "of classes, --metric agreement compares the largest ones."
    )


def _runs(
    output: str, sessions: tuple[Any, Any], part: Dataset, count: int, aligned: Alignment, fixed: int | None
) -> Iterator[tuple[Outputs, Outputs, Array | None]]:
    """What both models give for the first `count` samples, and the labels; sample by sample where that is needed."""
    pair = [runtime.run(session, part.feeds) for session in sessions]
    if (
        fixed is None
        and len(part) > 1
        and aligned.samples(output, len(part), *(found[output] for found in pair)) is None
    ):
        for index in range(count):
            yield from _runs(output, sessions, part.take(slice(index, index + 1)), 1, aligned, fixed)
        return
    before, after = (_by_samples(outputs, aligned, len(part), count) for outputs in pair)
    if part.whole:
        labels = None if part.labels is None else of_call(part.labels[0], before[output][0])[None]
        yield before, after, labels
        return
    yield before, after, None if part.labels is None else part.labels[:count]


def _by_samples(outputs: Outputs, aligned: Alignment, samples: int, count: int) -> dict[str, Array]:
    """The outputs of the first `count` samples, [count, ...]; those that are of the call as a whole, [1, ...]."""
    found = {name: aligned.samples(name, samples, value) for name, value in outputs.items()}
    whole = {name: flattened(value)[None] for name, value in outputs.items() if found[name] is None}
    return {name: whole[name] if front is None else front[0][:count] for name, front in found.items()}


def _losses(metric: str, exact: Array, found: Array, labels: Array | None) -> NDArray[np.float64]:
    """Loss of the original, of the compressed model, and unit, per sample: [n, 3]."""
    one, zero = np.ones(len(exact)), np.zeros(len(exact))
    fits = exact.shape == found.shape
    if metric == "accuracy" and labels is not None:
        shown = counted(labels).reshape(len(labels), -1)
        unit = (shown.any(1)).astype(np.float64)
        before, after = (_wrong(values, labels, shown) for values in (exact, found if fits else None))
        return np.stack([before, after, unit], 1)
    if metric == "agreement":
        return np.stack([zero, 1 - _mean(_classes(exact) == _classes(found)) if fits else one, one], 1)
    if metric == "relative mse" or labels is None:
        unit = _mean(_square(exact))
        # What has another shape is as far off as if nothing were there.
        return np.stack([zero, _mean(_square(found - exact)) if fits else unit, unit], 1)
    wanted = labels.reshape(exact.shape)
    before = _mean(_square(exact - wanted))
    after = _mean(_square((found if fits else np.zeros_like(exact)) - wanted))
    return np.stack([before, after, before], 1)


def _interval(losses: NDArray[np.float64]) -> Interval:
    """The drop, and its interval by the standard error of a ratio of means."""
    before, after, unit = losses.T
    gap, whole = float((after - before).sum()), float(unit.sum())
    if whole <= 0:
        drop = 0.0 if gap == 0 else math.copysign(math.inf, gap)
        return Interval(drop, drop, drop)
    drop = gap / whole
    rest = after - before - drop * unit
    error = 0.0 if len(rest) < 2 else float(rest.std(ddof=1)) * math.sqrt(len(rest)) / whole
    return Interval(drop, drop - Z95 * error, drop + Z95 * error)


def _scored(
    metric: Metric, score: Score, parts: list[tuple[Outputs, Outputs]], dataset: Dataset
) -> NDArray[np.float64]:
    """The losses by the user's score, [n, 3] or [1, 3]."""
    before, after = ({name: _joined([part[i][name] for part in parts]) for name in parts[0][i]} for i in (0, 1))
    found = []
    for outputs in (before, after):
        given = np.asarray(score(outputs, before, dataset.labels))
        count = len(dataset)
        if given.dtype.kind not in "biuf" or given.shape not in ((), (count,)) or not np.isfinite(given).all():
            raise DataError(
                f"The metric '{metric.name}' gave an array of {given.dtype}{list(given.shape)}; one finite number, or "
                f"one for each of the {count} samples, is expected."
            )
        found.append(-given.astype(np.float64).reshape(-1))
    if found[0].shape != found[1].shape:
        raise DataError(f"The metric '{metric.name}' gave one number for one model and one per sample for the other.")
    return np.stack([*found, np.ones_like(found[0])], 1)


def _joined(parts: list[Array]) -> Array:
    """Parts [n, ...] as one array; of objects where their shapes differ."""
    if len({part.shape[1:] for part in parts}) == 1:
        return np.concatenate(parts)
    return of_objects([row for part in parts for row in part])


def _imported(name: str) -> Score:
    module, _, attribute = name.partition(":")
    # A program has its own folder on the path, not the one that the user stands in.
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), attribute)
    # Anything can go wrong in a file of the user's.
    except Exception as error:
        raise ConfigError(
            f"The metric '{name}' cannot be imported: {error}. Give module:function, the module lying in the current "
            "folder or installed."
        ) from error
    finally:
        sys.path.remove("")
    if not callable(found):
        raise ConfigError(f"The metric '{name}' is a {type(found).__name__}, no function.")
    return cast(Score, found)


def _classes(values: Array) -> Array:
    return values.argmax(-1) if is_scores(values) else values


def _wrong(values: Array | None, labels: Array, shown: Array) -> NDArray[np.float64]:
    """Share of a sample's labels that are missed, of those that count; where there is no value, of all."""
    missed = np.ones(labels.shape, bool) if values is None else _classes(values).reshape(labels.shape) != labels
    return np.asarray((missed.reshape(shown.shape) & shown).sum(1) / np.maximum(1, shown.sum(1)))


def _mean(values: Array) -> NDArray[np.float64]:
    """Mean over all but the samples; that of nothing is 0, and all of nothing agrees."""
    rows = values.reshape(len(values), math.prod(values.shape[1:]))
    if rows.shape[1] == 0:
        return np.full(len(rows), float(values.dtype == np.bool_))
    return np.asarray(rows.mean(1, dtype=np.float64))


def _square(values: Array) -> NDArray[np.float64]:
    return np.square(values.astype(np.float64))


def _squares(exact: Array, found: Array) -> NDArray[np.float64]:
    """Sums of squares: of the difference, and of the exact values."""
    if not np.issubdtype(exact.dtype, np.floating):
        return np.zeros(2)
    whole = _square(exact).sum()
    return np.array([_square(found - exact).sum() if exact.shape == found.shape else whole, whole])

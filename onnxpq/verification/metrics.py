"""Figures that compare two models: streaming sums over batches, and the intervals of shares.

Outputs of single samples have the samples first (`onnxpq.data.places`), those of whole calls are as they are.

All are tested on numbers worked by hand; memory does not grow with the number of samples.
"""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxpq.errors import ConfigError, DataError
from onnxpq.report import Accuracy, OutputReport
from onnxpq.support.figures import Interval

Z95 = 1.959963984540054
"""Two-sided 95 % quantile of the standard normal distribution."""

IGNORED = -100
"""The label of what counts neither in a loss nor in a metric, as torch and Hugging Face have it: parts of words, and
what fills up texts."""

UNIT_TOLERANCE = 1e-3
"""Sums of probabilities, and squares of lengths, are 1 within this."""


def is_scores(array: NDArray[np.generic]) -> bool:
    """Whether an output holds scores of classes: floats, [N, ..., C] with at least two columns."""
    return np.issubdtype(array.dtype, np.floating) and array.ndim >= 2 and array.shape[-1] >= 2


def is_sequence(array: NDArray[np.generic]) -> bool:
    """Whether an output is a sequence of arrays, or a map (`onnxpq.runtime.run`)."""
    return array.dtype.hasobject and any(isinstance(entry, np.ndarray) for entry in array.flat)


def flattened(array: NDArray[Any]) -> NDArray[Any]:
    """A sequence as one array of all entries of its arrays, [entries]; any other output as it is."""
    if not is_sequence(array):
        return array
    parts = [flattened(np.asarray(entry)).ravel() for entry in array.flat]
    if all(np.issubdtype(part.dtype, np.floating) for part in parts):
        return np.concatenate(parts)
    return np.concatenate([part.astype(object) for part in parts])


def rows_of(array: NDArray[np.generic]) -> int:
    """The answers that an output gives: one for each row of scores, else one for each entry."""
    return math.prod(array.shape[:-1]) if is_scores(array) else array.size


def are_one(values: NDArray[np.floating]) -> bool:
    """Whether all values are 1 but for rounding."""
    return bool((np.abs(values - 1) <= UNIT_TOLERANCE).all())


def are_probabilities(scores: NDArray[np.generic]) -> bool:
    """Whether an output [n, ..., C] holds the probabilities of C >= 2 classes: none negative, and their sum is 1."""
    if not is_scores(scores) or scores.size == 0:
        return False
    found = scores.astype(np.float64)
    return bool(found.min() >= 0) and are_one(found.sum(-1))


def choose_output(
    outputs: Mapping[str, NDArray[np.generic]],
    wanted: str | None,
    *,
    numbers: Collection[str] = (),
    pooled: Collection[str] = (),
) -> str:
    """The output that loss and task metric look at.

    Args:
        outputs: the original model's outputs on some samples.
        wanted: the user's choice, or None: the first that holds scores of classes, else the first with several
            columns, else the first of floats, else the first of integers (a model that gives labels alone; no gradient
            comes from them), else the first of all.
        numbers: outputs that look like scores and are not (`onnxpq.verification.outputs.not_scores`).
        pooled: those of them that others with several columns are made of (`onnxpq.verification.outputs.pooled`),
            which go before.

    Raises:
        ConfigError: there is no such output, or it holds no floats.
    """
    floats = [name for name, array in outputs.items() if np.issubdtype(array.dtype, np.floating)]
    if wanted is not None:
        if wanted not in outputs:
            raise ConfigError(f"The model has no output '{wanted}'. Its outputs are: {', '.join(outputs)}.")
        if wanted not in floats:
            raise ConfigError(
                f"Output '{wanted}' holds {outputs[wanted].dtype}, which has no gradient. "
                f"Choose one of: {', '.join(floats) or 'none'}."
            )
        return wanted
    integers = [name for name, array in outputs.items() if np.issubdtype(array.dtype, np.integer)]
    columns = [name for name in floats if is_scores(outputs[name])]
    scores = [name for name in columns if name not in numbers]
    return (scores + [name for name in columns if name not in pooled] + floats + integers + list(outputs))[0]


def name_classes(labels: NDArray[np.generic], output: NDArray[np.generic]) -> bool:
    """Whether labels are numbers of classes that `output` scores or names, not numbers to be compared with it.

    Args:
        labels: [N, ...].
        output: the model's output for some samples, [n, ...].
    """
    if not np.issubdtype(labels.dtype, np.integer):
        return False
    return np.issubdtype(output.dtype, np.integer) or (is_scores(output) and labels.shape[1:] != output.shape[1:])


def counted(labels: NDArray[np.generic]) -> NDArray[np.bool_]:
    """Which entries of integer labels count."""
    return np.asarray(labels != IGNORED)


def check_classes(labels: NDArray[np.generic], scores: NDArray[np.generic]) -> None:
    """Check integer labels [N, ...] against scores of classes [n, ..., C], or numbers of classes, of some samples.

    Raises:
        DataError: another shape is expected, a label is no class, or none counts.
    """
    if not is_scores(scores):
        check_numbers(labels, scores)
        return
    shape = [len(labels), *scores.shape[1:]]
    if list(labels.shape) == shape:
        raise DataError(_one_per_class(labels))
    if list(labels.shape) != shape[:-1]:
        raise DataError(
            f"Labels of shape {list(labels.shape)} do not fit scores of shape {shape}: {shape[:-1]} is expected."
        )
    numbers, classes = labels.astype(np.int64), scores.shape[-1]
    is_counted = counted(numbers)
    if not is_counted.any():
        raise DataError(
            f"All labels are {IGNORED}, which says that they do not count: nothing can be learned from them."
        )
    wrong = is_counted & ((numbers < 0) | (numbers >= classes))
    if wrong.any():
        found = numbers[is_counted]
        raise DataError(
            f"Labels are out of range: found {found.min()} to {found.max()} (the first wrong one is that of sample "
            f"{np.argwhere(wrong)[0][0]}); the output has {classes} classes, so 0 to {classes - 1} is expected, or "
            f"{IGNORED} for what is to be ignored."
        )


def of_call(labels: NDArray[Any], output: NDArray[Any]) -> NDArray[Any]:
    """The labels of a whole call, with an entry for each answer that its output gives.

    Args:
        labels: as they were given; dimensions of 1 do not matter.
        output: what the call gives, as it is.

    Raises:
        DataError: there are more of them or fewer.
    """
    is_number = not np.issubdtype(labels.dtype, np.integer) or not (is_scores(output) or output.dtype.kind in "iu")
    shape = output.shape if is_number or not is_scores(output) or labels.size == output.size else output.shape[:-1]
    if [size for size in labels.shape if size != 1] != [size for size in shape if size != 1]:
        raise DataError(
            f"Labels of shape {list(labels.shape)} do not fit a call whose output has shape {list(output.shape)}: "
            f"{list(shape)} is expected."
        )
    return labels.reshape(shape)


def is_one_hot(labels: NDArray[np.generic]) -> bool:
    """Whether labels [..., C >= 2] hold a 1 for the right class and 0 for all others."""
    if labels.ndim < 2 or labels.shape[-1] < 2 or labels.dtype.kind not in "biuf":
        return False
    return bool(np.isin(labels, (0, 1)).all() and (labels.sum(-1) == 1).all())


def _one_per_class(labels: NDArray[np.generic]) -> str:
    """What to do with integer labels of which there is one for each score."""
    what = f"Labels of shape {list(labels.shape)} have an integer for each of {labels.shape[-1]} classes"
    if is_one_hot(labels):
        return f"{what} and are one-hot: numbers of classes are expected. Give labels.argmax(-1)."
    if np.isin(labels, (0, 1)).all():
        return (
            f"{what}, several of which may be right (multi-label): that is trained and judged by the squared error. "
            "Give labels.astype('float32')."
        )
    return f"{what}: give one number of a class for each sample, or floats to be compared with the output."


def check_numbers(labels: NDArray[np.generic], output: NDArray[np.generic]) -> None:
    """Check numeric labels [N, ...] against an output [n, ...] of some samples.

    Raises:
        DataError: labels of another number of entries than the output has, or no numbers.
    """
    if not np.issubdtype(labels.dtype, np.number):
        raise DataError(
            f"Labels to be compared with an output must be numbers; found {labels.dtype}. Convert them to integers "
            "where they name classes, else to floats."
        )
    if math.prod(labels.shape[1:]) != math.prod(output.shape[1:]):
        raise DataError(
            f"Labels of shape {list(labels.shape)} do not fit the output of shape {[len(labels), *output.shape[1:]]}: "
            "as many numbers are expected."
        )


@dataclass
class Difference:
    """Sums over pairs of values from which their difference follows.

    Attributes:
        squared_difference: of floats of the same shape.
        squared_reference: likewise.
        numbers: how many these are.
        largest: absolute difference of them.
        agreeing: entries (of scores: rows) that say the same; none where the shapes differ.
        compared: number of these.
        floats: whether all are floats.
        finite: of the second ones.
        finite_reference: of the first ones.
        entries: numbers and other entries of the first ones.
        values: pairs.
        reshaped: those whose shapes differ.
        shapes: the first such shapes, of both.
        is_whole: whether some pairs are of whole calls, not of single samples.
    """

    squared_difference: float = 0.0
    squared_reference: float = 0.0
    numbers: int = 0
    largest: float = 0.0
    agreeing: int = 0
    compared: int = 0
    floats: bool = True
    finite: bool = True
    finite_reference: bool = True
    entries: int = 0
    values: int = 0
    reshaped: int = 0
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    is_whole: bool = False

    def add(self, reference: NDArray[np.generic], other: NDArray[np.generic]) -> None:
        """Count in one pair: of any shapes and types, sequences of arrays among them."""
        reshaped = self.reshaped
        self._add(reference, other)
        self.values += 1
        self.reshaped = min(self.reshaped, reshaped + 1)

    def _add(self, reference: NDArray[np.generic], other: NDArray[np.generic]) -> None:
        self.floats &= np.issubdtype(reference.dtype, np.floating) or is_sequence(reference)
        if reference.shape != other.shape:
            self._add_shapes(reference, other)
        elif is_sequence(reference):
            for one, two in zip(reference.flat, other.flat, strict=True):
                self._add(np.asarray(one), np.asarray(two))
        elif np.issubdtype(reference.dtype, np.floating):
            self._add_floats(reference, other)
        else:
            self.agreeing += int(np.sum(reference == other))
            self.compared += reference.size
            self.entries += reference.size

    def _add_shapes(self, reference: NDArray[np.generic], other: NDArray[np.generic]) -> None:
        """Values of different shapes have nothing in common."""
        self.reshaped += 1
        self.shapes = self.shapes or (reference.shape, other.shape)
        if not self.floats or is_scores(reference):
            self.compared += max(rows_of(reference), rows_of(other))
        self.entries += reference.size

    def _add_floats(self, reference: NDArray[np.generic], other: NDArray[np.generic]) -> None:
        exact, found = reference.astype(np.float64), other.astype(np.float64)
        self.finite &= bool(np.isfinite(found).all())
        self.finite_reference &= bool(np.isfinite(exact).all())
        gap = np.abs(found - exact)
        self.squared_difference += float(np.square(gap).sum())
        self.squared_reference += float(np.square(exact).sum())
        self.numbers += exact.size
        self.largest = max(self.largest, float(gap.max(initial=0.0)))
        self.entries += exact.size
        if is_scores(reference):
            same = exact.argmax(-1) == found.argmax(-1)
            self.agreeing += int(same.sum())
            self.compared += same.size

    @property
    def relative(self) -> float:
        """Relative L2 difference; 0 where both are zero, infinite where only the reference is."""
        if self.squared_reference == 0:
            return 0.0 if self.squared_difference == 0 else math.inf
        return math.sqrt(self.squared_difference / self.squared_reference)

    @property
    def mean(self) -> float:
        """Root mean square difference of floats of the same shape."""
        return math.sqrt(self.squared_difference / max(1, self.numbers))

    def report(self, name: str) -> OutputReport:
        """The figures of the output `name`."""
        agreement = self.agreeing / self.compared if self.compared else None
        is_measured = self.floats and self.entries > 0 and self.reshaped < self.values
        return OutputReport(
            name,
            self.largest if is_measured else None,
            self.relative if is_measured else None,
            agreement,
            values=self.values,
            reshaped=self.reshaped,
            shapes=self.shapes,
            is_empty=self.entries == 0,
            is_whole=self.is_whole,
        )


@dataclass
class Correct:
    """Counts of right answers of two models on the same samples."""

    both: int = 0
    only_original: int = 0
    only_compressed: int = 0
    neither: int = 0

    def add(self, labels: NDArray[np.generic], original: NDArray[np.generic], compressed: NDArray[np.generic]) -> None:
        """Count in one batch: labels [N, ...], scores [N, ..., C] or numbers of classes, as many as labels."""
        shown = counted(labels)
        first, second = ((_classes(x).reshape(labels.shape) == labels)[shown] for x in (original, compressed))
        self.both += int((first & second).sum())
        self.only_original += int((first & ~second).sum())
        self.only_compressed += int((~first & second).sum())
        self.neither += int((~first & ~second).sum())

    def report(self, output: str) -> Accuracy:
        """Accuracies with Wilson intervals, and their paired difference."""
        total = self.both + self.only_original + self.only_compressed + self.neither
        drop = (self.only_original - self.only_compressed) / total
        # Bonett and Price (2012): one sample more on either side, so that few changes give no interval of width zero.
        lost, won = (self.only_original + 1) / (total + 2), (self.only_compressed + 1) / (total + 2)
        centre, margin = lost - won, Z95 * math.sqrt((lost + won - (lost - won) ** 2) / (total + 2))
        return Accuracy(
            output,
            wilson(self.both + self.only_original, total),
            wilson(self.both + self.only_compressed, total),
            Interval(drop, max(-1.0, centre - margin), min(1.0, centre + margin)),
        )


def _classes(output: NDArray[np.generic]) -> NDArray[np.generic]:
    return output.argmax(-1) if is_scores(output) else output


def wilson(successes: int, total: int) -> Interval:
    """95 % score interval of a share (Wilson 1927); it stays within [0, 1] and holds for shares near 0 or 1."""
    share = successes / total
    centre = (share + Z95**2 / (2 * total)) / (1 + Z95**2 / total)
    margin = Z95 / (1 + Z95**2 / total) * math.sqrt(share * (1 - share) / total + Z95**2 / (4 * total**2))
    # The bounds enclose the share; at 0 and 1 they equal it but for rounding.
    return Interval(share, max(0.0, min(share, centre - margin)), min(1.0, max(share, centre + margin)))

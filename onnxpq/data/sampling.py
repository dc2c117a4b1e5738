"""Which samples are trained on and which prove the result."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxpq.config import Config
from onnxpq.data.datasets import Dataset, random_inputs, split_rows
from onnxpq.data.inputs import Array, InputSpec
from onnxpq.data.reading import Reading, Source, load
from onnxpq.errors import DataError

RANDOM_SAMPLES = 256
RANDOM_CALLS = 32
"""The same where samples have nothing in common, so that each is a call."""

LEAST = 3
"""Samples from which some are set aside: one to learn from, one to choose by, one to prove."""

_PLAIN = "No training data was given: the weights were quantized as they are, without training."


@dataclass(frozen=True, eq=False)
class Evidence:
    """Samples to verify on.

    Attributes:
        dataset: the samples.
        description: what they are, for the report.
        held_out: they are real and none of them was trained on.
        made_up: they are random numbers.
        numbers: which samples of the data they are, where they are a part of those.
    """

    dataset: Dataset
    description: str
    held_out: bool
    made_up: bool = False
    numbers: NDArray[np.intp] | None = None

    def labels_as_given(self, train: Dataset) -> Array | None:
        """The labels of the data, in the user's order: messages speak of it."""
        if self.numbers is None or train.labels is None or self.dataset.labels is None:
            return train.labels
        samples = len(train) + len(self.dataset)
        found = np.empty((samples, *train.labels.shape[1:]), train.labels.dtype)
        found[np.setdiff1d(np.arange(samples), self.numbers)] = train.labels
        found[self.numbers] = self.dataset.labels
        return found


def prepare(
    inputs: list[InputSpec], data: Source | None, *, test: Source | None, labels: str | None, config: Config
) -> tuple[Dataset | None, Evidence, list[str]]:
    """Read the data and set some aside for verification where there is no test data.

    Args:
        inputs: of the model.
        data: to train on, or None.
        test: to verify on, or None.
        labels: key of the labels in both, or None.
        config: `held_out` and `seed`.

    Returns:
        Samples to train on (None without `data`), samples to verify on, and sentences for the user.

    Raises:
        DataError: see `onnxpq.data.reading.load`; or there are too few samples to set some aside.
        ConfigError: a batch axis is named for an input that the model has not.
    """
    axes = config.batch_axes
    axes.check([*(spec.name for spec in inputs), *([] if labels is None else [labels])])
    reading = Reading(inputs, labels, axes, axes.whole)
    tested = None
    if test is not None:
        loaded = load(test, replace(reading, what="test data"))
        tested = Evidence(loaded, "test data, not trained on", True)
    if data is None:
        if tested is not None:
            return None, tested, [_PLAIN, *tested.dataset.remarks]
        count = RANDOM_SAMPLES if reading.has_samples else RANDOM_CALLS
        random = random_inputs(inputs, count, config.seed)
        warning = (
            "The result was compared with the original on random inputs only, which says nothing about its accuracy. "
            "Give data with --data."
        )
        return None, Evidence(random, "random inputs, as no data was given", False, made_up=True), [_PLAIN, warning]
    train = load(data, replace(reading, what="training data"))
    notes = list(dict.fromkeys([*train.remarks, *(tested.dataset.remarks if tested is not None else [])]))
    if tested is not None and _same_samples(train, tested.dataset):
        tested = Evidence(tested.dataset, "test data, WHICH IS THE TRAINING DATA", False)
        notes.append("The test data is the training data: its figures do not say how the model does on new data.")
    if labels is None and train.unused:
        notes.append(
            f"The data holds {', '.join(map(repr, train.unused))}, which is no input of the model and was not used. If "
            "it holds the labels, --labels trains against them and measures the accuracy."
        )
    if tested is not None:
        return train, tested, notes
    if len(train) < LEAST:
        raise DataError(_too_few(train))
    kept, aside = split_rows(len(train), config.held_out, config.seed)
    share = f"{100 * config.held_out:g} % of the data, set aside and not trained on"
    return train.take(kept), Evidence(train.take(aside), share, True, numbers=aside), notes


def _too_few(train: Dataset) -> str:
    found = f"The training data has {train.count}: too few to set some aside. Give more, or --test."
    if not train.whole:
        return found
    return (
        f"{found} A folder of .npz files holds a call in each. --test alone verifies plain product quantization on it."
    )


def _same_samples(one: Dataset, other: Dataset) -> bool:
    if one.whole or other.whole:
        return (
            one.whole == other.whole
            and len(one) == len(other)
            and all(
                np.array_equal(a, b)
                for name, calls in one.inputs.items()
                for a, b in zip(calls, other.inputs[name], strict=True)
            )
        )
    return all(np.array_equal(array, other.inputs[name]) for name, array in one.inputs.items())

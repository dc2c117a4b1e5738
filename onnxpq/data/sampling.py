"""Which samples are trained on and which prove the result."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxpq.config import Config
from onnxpq.data.datasets import (
    Array,
    Dataset,
    InputSpec,
    Source,
    has_samples,
    load,
    load_call,
    random_inputs,
    split_rows,
)
from onnxpq.errors import DataError

RANDOM_SAMPLES = 256

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
        DataError: see `onnxpq.data.datasets.load`; or there are too few samples to set some aside.
    """
    if not has_samples(inputs):
        return None, _one_call(inputs, data, test, labels), [_PLAIN]
    tested = None
    if test is not None:
        tested = Evidence(load(test, inputs, label_key=labels, what="test data"), "test data, not trained on", True)
    if data is None:
        if tested is not None:
            return None, tested, [_PLAIN]
        random = random_inputs(inputs, RANDOM_SAMPLES, config.seed)
        warning = (
            "The result was compared with the original on random inputs only, which says nothing about its accuracy. "
            "Give data with --data."
        )
        return None, Evidence(random, "random inputs, as no data was given", False, made_up=True), [_PLAIN, warning]
    train = load(data, inputs, label_key=labels, what="training data")
    notes = []
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
    if len(train) < 3:
        raise DataError(f"The training data has {len(train)} samples: too few to set some aside. Give more, or --test.")
    kept, aside = split_rows(len(train), config.held_out, config.seed)
    share = f"{100 * config.held_out:g} % of the data, set aside and not trained on"
    return train.take(kept), Evidence(train.take(aside), share, True, numbers=aside), notes


def _one_call(inputs: list[InputSpec], data: Source | None, test: Source | None, labels: str | None) -> Evidence:
    """What a model without samples is verified on."""
    scalar = next(spec for spec in inputs if not spec.shape)
    if data is not None or labels is not None or test is None:
        raise DataError(
            f"Input '{scalar.name}' is a scalar, so that the model's inputs have no samples in common: it can be "
            "compressed by plain product quantization only. Give no --data and no --labels, and as --test the arrays "
            "of one call of the model."
        )
    return Evidence(load_call(test, inputs, what="test data"), "one call of the model, given as test data", True)


def _same_samples(one: Dataset, other: Dataset) -> bool:
    return all(np.array_equal(array, other.inputs[name]) for name, array in one.inputs.items())

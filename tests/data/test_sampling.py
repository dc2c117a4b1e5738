"""Which samples train and which prove."""

import numpy as np

from onnxpq.config import Config
from onnxpq.data import sampling
from onnxpq.data.inputs import InputSpec

FLOAT32 = np.dtype(np.float32)


def test_labels_are_told_as_they_were_given() -> None:
    labels = np.arange(20)
    specs = [InputSpec("x", FLOAT32, (None, 3))]
    arrays = {"x": np.zeros((20, 3), np.float32), "y": labels}
    train, evidence, _ = sampling.prepare(specs, arrays, test=None, labels="y", config=Config())
    np.testing.assert_array_equal(evidence.labels_as_given(train), labels)
    train, evidence, _ = sampling.prepare(specs, arrays, test=arrays, labels="y", config=Config())
    np.testing.assert_array_equal(evidence.labels_as_given(train), labels)

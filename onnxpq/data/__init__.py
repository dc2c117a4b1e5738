"""Samples: what users give, as arrays by the model's inputs, and which of them train and which prove.

In: files, folders, mappings or iterables, and what the model's inputs are. Out: `Dataset`s, of samples or of whole
calls. Nothing here runs a model.
"""

from onnxpq.data.datasets import Dataset, batch_of, batches, first, of_objects, validation_rows
from onnxpq.data.inputs import InputSpec, common_batch, input_specs
from onnxpq.data.places import Alignment, Place, distance
from onnxpq.data.reading import Source, calls_of
from onnxpq.data.sampling import Evidence

__all__ = [
    "Alignment",
    "Dataset",
    "Evidence",
    "InputSpec",
    "Place",
    "Source",
    "batch_of",
    "batches",
    "calls_of",
    "common_batch",
    "distance",
    "first",
    "input_specs",
    "of_objects",
    "sampling",
    "sizes",
    "validation_rows",
]

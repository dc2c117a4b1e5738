"""Samples: what users give, as arrays by the model's inputs, and which of them train and which prove.

In: files, mappings or iterables, and what the model's inputs are. Out: `Dataset`s. Nothing here runs a model.
"""

from onnxpq.data.datasets import (
    Dataset,
    InputSpec,
    Source,
    batches,
    common_batch,
    first,
    fixed_batch,
    input_specs,
    of_objects,
    validation_rows,
)
from onnxpq.data.places import Alignment, Place, distance
from onnxpq.data.sampling import Evidence

__all__ = [
    "Alignment",
    "Dataset",
    "Evidence",
    "InputSpec",
    "Place",
    "Source",
    "batches",
    "common_batch",
    "distance",
    "first",
    "fixed_batch",
    "input_specs",
    "of_objects",
    "sampling",
    "sizes",
    "validation_rows",
]

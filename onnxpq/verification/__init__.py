"""Whether the result is as good as the original: outputs side by side, metrics, times.

In: two models, samples, the output that counts. Out: records for the report. The module `outputs`, which reads an
output's meaning off the graph, needs the importer and so torch; the rest does not.
"""

from onnxpq.verification.floor import Kind, above_floor, kind_of
from onnxpq.verification.metrics import (
    IGNORED,
    are_probabilities,
    check_classes,
    check_numbers,
    choose_output,
    flattened,
    is_one_hot,
    is_scores,
    name_classes,
    of_call,
)
from onnxpq.verification.proof import check_labels, prove, without_samples
from onnxpq.verification.scoring import Drop, Metric

__all__ = [
    "IGNORED",
    "Drop",
    "Kind",
    "Metric",
    "above_floor",
    "are_probabilities",
    "check_classes",
    "check_labels",
    "check_numbers",
    "choose_output",
    "flattened",
    "is_one_hot",
    "is_scores",
    "kind_of",
    "name_classes",
    "of_call",
    "outputs",
    "prove",
    "scoring",
    "without_samples",
]

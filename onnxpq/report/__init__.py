"""What is told to the user in the end, as records that become text and JSON.

In: figures that others measured. Out: sentences and tables. Nothing here measures.
"""

from onnxpq.report.floor import FloorReport, StandsStill
from onnxpq.report.run import (
    END_TO_END,
    LAYER_WISE,
    NOT_TRAINED,
    Accuracy,
    Epoch,
    Latency,
    LayerReport,
    LayerTraining,
    OutputReport,
    Report,
    SkippedReport,
    SquaredError,
    Training,
    Verification,
)
from onnxpq.report.target import TargetReport, Trial, drop_of, percent

__all__ = [
    "END_TO_END",
    "LAYER_WISE",
    "NOT_TRAINED",
    "Accuracy",
    "Epoch",
    "FloorReport",
    "Latency",
    "LayerReport",
    "LayerTraining",
    "OutputReport",
    "Report",
    "SkippedReport",
    "SquaredError",
    "StandsStill",
    "TargetReport",
    "Training",
    "Trial",
    "Verification",
    "drop_of",
    "percent",
]

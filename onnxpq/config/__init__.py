"""The settings of a run: checked values, no behaviour.

In: keyword arguments, a dictionary or a TOML file. Out: frozen dataclasses that hold only what may be. A setting knows
nothing of models, data or torch.
"""

from onnxpq.config.axes import BatchAxes
from onnxpq.config.settings import (
    CODEBOOKS,
    GENTLE_SUB_VECTOR,
    LOSSES,
    REGULARIZERS,
    SUB_VECTOR,
    TARGET_CHOOSES,
    Config,
    LayerConfig,
    PQConfig,
    TrainingConfig,
)
from onnxpq.config.target import METRICS, TargetConfig

__all__ = [
    "CODEBOOKS",
    "GENTLE_SUB_VECTOR",
    "LOSSES",
    "METRICS",
    "REGULARIZERS",
    "SUB_VECTOR",
    "TARGET_CHOOSES",
    "BatchAxes",
    "Config",
    "LayerConfig",
    "PQConfig",
    "TargetConfig",
    "TrainingConfig",
]

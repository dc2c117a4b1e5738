"""The settings of a run: checked values, no behaviour.

In: keyword arguments, a dictionary or a TOML file. Out: frozen dataclasses that hold only what may be. A setting knows
nothing of models, data or torch.
"""

from onnxpq.config.axes import BatchAxes
from onnxpq.config.settings import (
    AUTO,
    BODIES,
    CODEBOOKS,
    FLOAT,
    GENTLE_SUB_VECTOR,
    HALF,
    INT8,
    LOSSES,
    REGULARIZERS,
    RESTS,
    SUB_VECTOR,
    TARGET_CHOOSES,
    Config,
    LayerConfig,
    PQConfig,
    TrainingConfig,
)
from onnxpq.config.target import METRICS, TargetConfig

__all__ = [
    "AUTO",
    "BODIES",
    "CODEBOOKS",
    "FLOAT",
    "GENTLE_SUB_VECTOR",
    "HALF",
    "INT8",
    "LOSSES",
    "METRICS",
    "REGULARIZERS",
    "RESTS",
    "SUB_VECTOR",
    "TARGET_CHOOSES",
    "BatchAxes",
    "Config",
    "LayerConfig",
    "PQConfig",
    "TargetConfig",
    "TrainingConfig",
]

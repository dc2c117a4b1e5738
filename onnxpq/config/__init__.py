"""The settings of a run: checked values, no behaviour.

In: keyword arguments, a dictionary or a TOML file. Out: frozen dataclasses that hold only what may be. A setting knows
nothing of models, data or torch.
"""

from onnxpq.config.settings import (
    CODEBOOKS,
    LOSSES,
    REGULARIZERS,
    TARGET_CHOOSES,
    Config,
    LayerConfig,
    PQConfig,
    TrainingConfig,
)
from onnxpq.config.target import METRICS, TargetConfig

__all__ = [
    "CODEBOOKS",
    "LOSSES",
    "METRICS",
    "REGULARIZERS",
    "TARGET_CHOOSES",
    "Config",
    "LayerConfig",
    "PQConfig",
    "TargetConfig",
    "TrainingConfig",
]

"""onnxpq: make a trained ONNX model small and fast without its training code.

Public names are resolved when they are first used: importing onnxpq loads neither torch nor onnxruntime.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxpq.config import Config, LayerConfig, PQConfig, TargetConfig, TrainingConfig
    from onnxpq.data import Dataset
    from onnxpq.errors import OnnxpqError
    from onnxpq.network.ops import register_op
    from onnxpq.pipeline import Result, compress
    from onnxpq.report import Report
    from onnxpq.runtime import library_available, library_path, session

_HOMES = {
    "Config": "onnxpq.config.settings",
    "Dataset": "onnxpq.data.datasets",
    "LayerConfig": "onnxpq.config.settings",
    "OnnxpqError": "onnxpq.errors",
    "PQConfig": "onnxpq.config.settings",
    "Report": "onnxpq.report.run",
    "Result": "onnxpq.pipeline",
    "TargetConfig": "onnxpq.config.target",
    "TrainingConfig": "onnxpq.config.settings",
    "compress": "onnxpq.pipeline",
    "library_available": "onnxpq.runtime.sessions",
    "library_path": "onnxpq.runtime.sessions",
    "register_op": "onnxpq.network.ops",
    "session": "onnxpq.runtime.sessions",
}

__all__ = [
    "Config",
    "Dataset",
    "LayerConfig",
    "OnnxpqError",
    "PQConfig",
    "Report",
    "Result",
    "TargetConfig",
    "TrainingConfig",
    "compress",
    "library_available",
    "library_path",
    "register_op",
    "session",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxpq' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

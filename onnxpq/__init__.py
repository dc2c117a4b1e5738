"""onnxpq: make a trained ONNX model small and fast without its training code.

Public names are resolved when they are first used: importing onnxpq loads neither torch nor onnxruntime.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxpq.config import Config, LayerConfig, PQConfig, TrainingConfig
    from onnxpq.data import Dataset
    from onnxpq.errors import OnnxpqError
    from onnxpq.ops import register_op
    from onnxpq.pipeline import Result, compress
    from onnxpq.report import Report
    from onnxpq.runtime import library_available, library_path, session
    from onnxpq.targetconfig import TargetConfig

_HOMES = {
    "Config": "onnxpq.config",
    "Dataset": "onnxpq.data",
    "LayerConfig": "onnxpq.config",
    "OnnxpqError": "onnxpq.errors",
    "PQConfig": "onnxpq.config",
    "Report": "onnxpq.report",
    "Result": "onnxpq.pipeline",
    "TargetConfig": "onnxpq.targetconfig",
    "TrainingConfig": "onnxpq.config",
    "compress": "onnxpq.pipeline",
    "library_available": "onnxpq.runtime",
    "library_path": "onnxpq.runtime",
    "register_op": "onnxpq.ops",
    "session": "onnxpq.runtime",
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

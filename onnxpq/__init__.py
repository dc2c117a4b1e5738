"""onnxpq: make a trained ONNX model small and fast without its training code.

Public names are resolved when they are first used: importing onnxpq loads neither torch nor onnxruntime.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnxpq.config import Config, LayerConfig, PQConfig, TargetConfig, TrainingConfig
    from onnxpq.data import Dataset
    from onnxpq.errors import OnnxpqError
    from onnxpq.library import decompress, inline, rewrite, update_weights
    from onnxpq.network.ops import register_op
    from onnxpq.pipeline import Result, compress
    from onnxpq.pq import Layout, PQTensor
    from onnxpq.report import Report
    from onnxpq.runtime import library_available, library_path, session

_HOMES = {
    "Config": "onnxpq.config.settings",
    "Dataset": "onnxpq.data.datasets",
    "LayerConfig": "onnxpq.config.settings",
    "Layout": "onnxpq.pq.layout",
    "OnnxpqError": "onnxpq.errors",
    "PQConfig": "onnxpq.config.settings",
    "PQTensor": "onnxpq.pq.tensor",
    "Report": "onnxpq.report.run",
    "Result": "onnxpq.pipeline",
    "TargetConfig": "onnxpq.config.target",
    "TrainingConfig": "onnxpq.config.settings",
    "compress": "onnxpq.pipeline",
    "decompress": "onnxpq.library",
    "inline": "onnxpq.library",
    "library_available": "onnxpq.runtime.sessions",
    "library_path": "onnxpq.runtime.sessions",
    "register_op": "onnxpq.network.ops",
    "rewrite": "onnxpq.library",
    "session": "onnxpq.runtime.sessions",
    "update_weights": "onnxpq.library",
}

__all__ = [
    "Config",
    "Dataset",
    "LayerConfig",
    "Layout",
    "OnnxpqError",
    "PQConfig",
    "PQTensor",
    "Report",
    "Result",
    "TargetConfig",
    "TrainingConfig",
    "compress",
    "decompress",
    "inline",
    "library_available",
    "library_path",
    "register_op",
    "rewrite",
    "session",
    "update_weights",
]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxpq' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

"""onnxruntime: the only room that imports it.

In: a model and arrays. Out: sessions with the operator library, outputs, and values inside the graph. It does not know
what a layer or a codebook is.
"""

from onnxpq.runtime.activations import Array, extract
from onnxpq.runtime.judging import refusal
from onnxpq.runtime.sessions import (
    LIBRARY_MISSING,
    Libraries,
    Model,
    frugal,
    is_large,
    library_available,
    library_path,
    run,
    save_ort,
    session,
)

__all__ = [
    "LIBRARY_MISSING",
    "Array",
    "Libraries",
    "Model",
    "activations",
    "alignment",
    "extract",
    "frugal",
    "is_large",
    "library_available",
    "library_path",
    "refusal",
    "run",
    "save_ort",
    "session",
]

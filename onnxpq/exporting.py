"""A compressed model in other forms, for tools that do not take it as it is."""

import os
from os import PathLike
from pathlib import Path
from typing import Final

import onnx_ir as ir

from onnxpq import rewriting, runtime
from onnxpq.errors import ConfigError
from onnxpq.graph import files, inline
from onnxpq.operators import DOMAIN, KERNEL_OP_TYPES
from onnxpq.support.writing import scratch_folder

DENSE: Final = "dense"
INLINE: Final = "inline"
ORT_LIBRARY: Final = "ort-library"
WAYS: Final = (DENSE, INLINE, ORT_LIBRARY)


def inlined(model: ir.Model) -> ir.Model:
    """A copy of a model without functions: operators of ours are the standard ones of their bodies.

    Codes stay codes, so the file stays small; a runtime that does not fold constants decodes at every call.

    Raises:
        ModelError: the functions cannot be inlined.
    """
    result = model.clone()
    inline(result)
    result.opset_imports.pop(DOMAIN, None)
    return result


def export(source: files.Source, path: str | PathLike[str], way: str) -> None:
    """Write a compressed model in another form; the file appears whole or not at all.

    Args:
        source: the model, as `onnxpq.compress` takes one.
        path: the file to write.
        way: "dense": dense weights instead of codes. "inline": standard operators, no functions. "ort-library":
            onnxruntime's own format, for its small builds with the operator library; what has no kernel there is dense.

    Raises:
        ConfigError: there is no such way.
        ModelError: the model holds nothing of ours, or onnxruntime does not run the result.
        OutputError: the file cannot be written.
        RuntimeLibraryError: the operator library is needed, and was not built.
    """
    if way not in WAYS:
        raise ConfigError(f"A model is exported as one of {', '.join(WAYS)}. Got {way!r} instead.")
    files.check_output_path(path, source)
    model = files.load(source)
    if way == ORT_LIBRARY:
        _save_ort(model, os.fspath(path))
        return
    result = rewriting.decompress(model) if way == DENSE else inlined(model)
    # Whoever cannot load it should hear of it now.
    runtime.session(result, use_library=False)
    files.save(result, path)


def _save_ort(model: ir.Model, target: str) -> None:
    """Onnxruntime's format: graph optimizations are done, and operators of the library stay."""
    if not any(node.domain == DOMAIN and node.op_type in KERNEL_OP_TYPES for node in model.graph.all_nodes()):
        raise ConfigError(
            "The model has no operator that the library has a kernel for, so onnxruntime's format would hold dense "
            f"weights. Export it as '{INLINE}', or convert it with onnxruntime's own tool."
        )
    with scratch_folder(target) as scratch:
        written = Path(scratch) / "model.ort"
        runtime.save_ort(model, written)
        os.replace(written, target)

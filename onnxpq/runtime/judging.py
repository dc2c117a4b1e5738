"""Whether onnxruntime loads a model, asked where nobody else vouches for it.

What ONNX's checker refuses may be a model all the same: onnxruntime decides. It is asked in a process of its own, as
some models kill it: a local function with LayerNormalization below opset 17, for instance.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

from onnxpq.runtime.sessions import Libraries, Model, source_of

SECONDS: Final = 600
"""Longer than any model takes to load without its weights being folded."""

_REFUSED: Final = 3

_ASK: Final = f"""
import sys
from onnxpq import errors, runtime
try:
    runtime.frugal(sys.argv[1], custom_ops_libraries=sys.argv[2:])
except errors.OnnxpqError as error:
    print(error)
    sys.exit({_REFUSED})
"""


def refusal(model: Model, *, custom_ops_libraries: Libraries = ()) -> str | None:
    """Why onnxruntime does not load a model; None where it does.

    Args:
        model: as for `onnxpq.runtime.session`.
        custom_ops_libraries: paths of libraries of operators that the model uses.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with tempfile.TemporaryDirectory(prefix="onnxpq-", ignore_cleanup_errors=True) as scratch:
        path = _path(model, Path(scratch))
        command = [sys.executable, "-c", _ASK, path, *(os.fspath(library) for library in custom_ops_libraries)]
        try:
            answer = subprocess.run(  # noqa: S603 -- Python itself, with a program of ours
                command, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment
            )
        except subprocess.TimeoutExpired:
            return f"onnxruntime does not load it within {SECONDS} seconds."
    if answer.returncode == _REFUSED:
        return answer.stdout.strip().replace(f"{scratch}{os.sep}", "")
    if answer.returncode:
        return f"the process in which onnxruntime loads it dies ({_last_line(answer.stderr, answer.returncode)})."
    return None


def _path(model: Model, scratch: Path) -> str:
    """A file of the model."""
    source = source_of(model, scratch)
    if isinstance(source, bytes):
        file = scratch / "model.onnx"
        file.write_bytes(source)
        return str(file)
    return source


def _last_line(text: str, code: int) -> str:
    if code < 0:
        return f"signal {-code}"
    return text.strip().rpartition("\n")[2] or f"exit code {code}"

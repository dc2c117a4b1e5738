"""Compares two readers of time-major outputs by itself, with nothing of onnxpq but its session.

``python tests/whole_outputs.py ORIGINAL COMPRESSED DATA.npz`` runs both on each picture and prints, of whole outputs
and of the strings that they spell, what a report should say.
"""

import json
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

import onnxpq


def outputs(session: onnxruntime.InferenceSession, x: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """[T, C] of each picture, one call for each."""
    for row in x:
        (scores,) = session.run(None, {"x": row[None]})
        assert scores.shape[1] == 1
        yield scores[:, 0]


def spelt(scores: NDArray[np.float32]) -> str:
    """The string of [T, C]: neighbouring steps of one class are one digit, class 0 is none."""
    return "".join(str(kind - 1) for kind, _ in groupby(scores.argmax(-1)) if kind > 0)


def compare(original: Path, compressed: Path, x: NDArray[np.float32]) -> dict[str, Any]:
    """Figures of all steps of all pictures."""
    sessions = (onnxruntime.InferenceSession(original), onnxpq.session(compressed))
    before, after = (list(outputs(session, x)) for session in sessions)
    one, other = (np.concatenate(found).astype(np.float64) for found in (before, after))
    return {
        "relative_error": float(np.linalg.norm(one - other) / np.linalg.norm(one)),
        "max_error": float(np.abs(one - other).max()),
        "agreement": float((one.argmax(-1) == other.argmax(-1)).mean()),
        "strings": float(np.mean([spelt(a) == spelt(b) for a, b in zip(before, after, strict=True)])),
        "texts": [spelt(scores) for scores in after],
    }


if __name__ == "__main__":
    with np.load(sys.argv[3]) as archive:
        print(json.dumps(compare(Path(sys.argv[1]), Path(sys.argv[2]), archive["x"]), indent=2))

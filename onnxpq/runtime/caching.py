"""Arrays that are kept in memory or in a folder, from which a second run reads them.

Those of samples are one array per value. Those of whole calls have shapes of their own: they follow one another in a
file per value, and a list of their shapes says where each begins.
"""

import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from onnxpq.data import of_objects
from onnxpq.errors import OutputError

Array: TypeAlias = np.ndarray[Any, Any]

Allocate: TypeAlias = Callable[[int, tuple[int, ...], np.dtype[Any]], Array]
"""Makes the array for the i-th value, given its shape and type."""

_UNFINISHED = ".unfinished-"
_SHAPES = "shapes.json"


def in_memory(_index: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
    """An `Allocate` that keeps nothing."""
    return np.empty(shape, dtype)


def on_disk(folder: Path) -> Allocate:
    """An `Allocate` of arrays that `opened` finds again."""

    def allocate(index: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        return np.lib.format.open_memmap(folder / _file_name(index), mode="w+", dtype=dtype, shape=shape)

    return allocate


def opened(folder: Path, count: int) -> list[Array]:
    """So many arrays, memory-mapped and copied on write.

    Raises:
        OSError, ValueError: one is missing or truncated.
    """
    return [np.load(folder / _file_name(index), mmap_mode="c") for index in range(count)]


def write_calls(folder: Path, calls: Iterable[Sequence[Array]]) -> None:
    """Keep the values of whole calls, given call by call."""
    shapes: list[list[tuple[int, ...]]] = []
    types: list[str] = []
    with ExitStack() as stack:
        files: list[Any] = []
        for values in calls:
            files = files or [stack.enter_context((folder / f"{i}.bin").open("wb")) for i in range(len(values))]
            for file, value in zip(files, values, strict=True):
                file.write(np.ascontiguousarray(value).tobytes())
            shapes.append([value.shape for value in values])
            types = [value.dtype.str for value in values]
    (folder / _SHAPES).write_text(json.dumps({"types": types, "shapes": shapes}), encoding="utf-8")


def opened_calls(folder: Path) -> list[Array]:
    """What `write_calls` kept: for each value [calls] objects, arrays in memory-mapped files.

    Raises:
        OSError, ValueError: a file is missing or truncated.
    """
    kept = json.loads((folder / _SHAPES).read_text(encoding="utf-8"))
    found = []
    for index, name in enumerate(kept["types"]):
        shapes = [tuple(call[index]) for call in kept["shapes"]]
        ends = np.cumsum([0, *(math.prod(shape) for shape in shapes)])
        # An empty file cannot be mapped.
        flat = np.memmap(folder / f"{index}.bin", name, "c", shape=(int(ends[-1]),)) if ends[-1] else np.zeros(0, name)
        spans = zip(ends[:-1], ends[1:], shapes, strict=True)
        found.append(of_objects([flat[begin:end].reshape(shape) for begin, end, shape in spans]))
    return found


def kept(folder: Path, write: Callable[[Path], object], read: Callable[[Path], list[Array]]) -> list[Array]:
    """What lies in a folder, and what `write` puts there where nothing does or it is damaged.

    Raises:
        OutputError: it cannot be written.
    """
    if folder.exists():
        try:
            return read(folder)
        except (OSError, ValueError, KeyError):
            # What is there was truncated, or a file is missing.
            shutil.rmtree(folder, ignore_errors=True)
    _fill(folder, write)
    return read(folder)


def _fill(found: Path, write: Callable[[Path], object]) -> None:
    """Write into a folder of another name, then rename it: what has the right name is whole."""
    try:
        found.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=found.parent))
        try:
            write(unfinished)
            unfinished.rename(found)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        # Another process may have put the same results there meanwhile.
        if not found.exists():
            raise OutputError(
                f"The activations cannot be cached in '{found.parent}': {error}. Choose another cache folder, or none."
            ) from error


def _file_name(index: int) -> str:
    return f"{index}.npy"

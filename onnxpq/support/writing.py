"""Files that appear whole or not at all: written beside their place, then renamed into it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from onnxpq.errors import OutputError


@contextmanager
def scratch_folder(target: str) -> Iterator[str]:
    """A folder on the target's file system, gone afterwards; the system's errors become those of writing the target.

    Args:
        target: path of the file that is to be written.

    Raises:
        OutputError: the folder cannot be made, or what is done in it fails for reasons of the system.
    """
    folder, name = os.path.split(target)
    try:
        with tempfile.TemporaryDirectory(dir=folder or ".", prefix=f".{name}.") as scratch:
            yield scratch
    except OSError as error:
        raise OutputError(f"Cannot write '{target}': {error}. Free some space or choose another path.") from error


def write_bytes(folder: str, content: bytes) -> str:
    """The path of a new file in `folder` whose content is on disk."""
    path = os.path.join(folder, "content")
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return path

"""Memory that was freed, and goes back to the system."""

import ctypes
from collections.abc import Callable
from functools import cache


def give_back() -> None:
    """Hand memory that was freed back to the system, where the C library is glibc; takes some hundredths of a second.

    glibc keeps freed blocks of less than 32 MiB for its next ones (mallopt(3), M_MMAP_THRESHOLD), and pieces in use
    between them keep their neighbours: after a session of onnxruntime as much as the weights of the model.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    # Windows has no library without a name; other C libraries have no such function.
    except (AttributeError, OSError, TypeError):
        return None
    return trim

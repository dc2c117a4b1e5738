"""Memory of the system: how much there is left, and what was freed goes back to it."""

import ctypes
import mmap
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import IO, Final
from weakref import WeakSet

_mappings: WeakSet[mmap.mmap] = WeakSet()

_PROC: Final = Path("/proc")
_CGROUPS: Final = Path("/sys/fs/cgroup")

_LIMITS: Final = {
    "v2": ("memory.max", "memory.current", ("active_file", "inactive_file")),
    "v1": ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
}
"""Files of a control group with its limit and what it uses, and what of the latter is pages of files, which the system
may drop (kernel.org, admin-guide/cgroup-v2 and cgroup-v1/memory)."""


def available() -> int | None:
    """Bytes that can be allocated without the system swapping or ending the process; None where it does not say.

    On Linux; a limit of the control group, as containers have one, counts.
    """
    try:
        found = _numbers(_PROC / "meminfo")["MemAvailable:"] * 1024
        groups = _groups((_PROC / "self" / "cgroup").read_text())
    except (OSError, KeyError, ValueError):
        return None
    return min([found, *(room for folder, names in groups if (room := _room(folder, *names)) is not None)])


def mapped(file: IO[bytes]) -> mmap.mmap:
    """A whole file, not empty, to be read; `give_back` lets its pages go."""
    mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if hasattr(mapping, "madvise"):
        _mappings.add(mapping)
    return mapping


def give_back() -> None:
    """Hand memory that is not needed now back to the system; takes some hundredths of a second.

    Pages of mapped files are read again when they are looked at. What was freed goes back where the C library is glibc:
    it keeps freed blocks of less than 32 MiB for its next ones (mallopt(3), M_MMAP_THRESHOLD), and pieces in use
    between them keep their neighbours: after a session of onnxruntime as much as the weights of the model.
    """
    for mapping in list(_mappings):
        mapping.madvise(mmap.MADV_DONTNEED)
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


def _groups(content: str) -> Iterator[tuple[Path, tuple[str, str, tuple[str, ...]]]]:
    """The folders of the groups that a process is in, from its own to the outermost, and what the files there are."""
    for line in content.splitlines():
        number, controllers, name = line.split(":", 2)
        if number == "0":
            top, names = _CGROUPS, _LIMITS["v2"]
        elif "memory" in controllers.split(","):
            top, names = _CGROUPS / "memory", _LIMITS["v1"]
        else:
            continue
        # In a container the outermost group is that of the container, whose name outside may still be given.
        own = top / name.lstrip("/")
        yield from ((folder, names) for folder in (own, *own.parents) if folder == top or top in folder.parents)


def _room(folder: Path, limit: str, used: str, droppable: tuple[str, ...]) -> int | None:
    """What is left of the limit of a group, None where it has none."""
    try:
        most = int((folder / limit).read_text())
        taken = int((folder / used).read_text())
        pages = _numbers(folder / "memory.stat")
    # No such files, or the word "max".
    except (OSError, ValueError):
        return None
    return most - taken + sum(pages.get(name, 0) for name in droppable)


def _numbers(path: Path) -> dict[str, int]:
    """By their first words, the numbers in the lines of a file."""
    lines = (line.split() for line in path.read_text().splitlines())
    return {words[0]: int(words[1]) for words in lines if len(words) > 1}

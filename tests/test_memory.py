import platform
import sys

import numpy as np
import pytest

from onnxpq import memory

BLOCK = 2**20
BLOCKS = 128


def anonymous() -> int:
    """Bytes that this process has allocated and written to, as Linux counts them."""
    with open("/proc/self/status") as file:
        return int(next(line for line in file if line.startswith("RssAnon:")).split()[1]) * 1024


@pytest.mark.skipif(memory._trim() is None, reason="only glibc keeps what was freed and can be told not to")
def test_what_was_freed_goes_back() -> None:
    np.ones(31 * BLOCK, np.uint8)  # freed: from now on glibc takes blocks of up to this size from its heap
    blocks = [np.ones(BLOCK, np.uint8) for _ in range(BLOCKS)]
    between = [bytes(100) for _ in range(1000)]
    before = anonymous()
    del blocks[:-1]
    memory.give_back()
    assert before - anonymous() > 0.9 * BLOCK * BLOCKS
    assert len(between) == 1000


def test_other_systems_have_nothing_to_call(monkeypatch: pytest.MonkeyPatch) -> None:
    memory._trim.cache_clear()
    monkeypatch.setattr("ctypes.CDLL", lambda _: object())
    try:
        memory.give_back()
        assert memory._trim() is None
    finally:
        memory._trim.cache_clear()


def test_on_linux_with_glibc_there_is() -> None:
    if sys.platform == "linux":
        assert (memory._trim() is not None) == ("glibc" in " ".join(platform.libc_ver()))

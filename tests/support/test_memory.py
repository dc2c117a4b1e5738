import platform
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.common.memory import anonymous
from onnxpq.support import memory

BLOCK = 2**20
BLOCKS = 128


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


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_pages_of_a_mapped_file_are_let_go_and_read_again(tmp_path: Path) -> None:
    path = tmp_path / "file"
    np.arange(BLOCK, dtype=np.uint32).tofile(path)
    with path.open("rb") as file:
        values = np.frombuffer(memory.mapped(file), np.uint32)
    for _ in range(2):
        assert np.array_equal(values, np.arange(BLOCK, dtype=np.uint32))
        assert resident(path) == 4 * BLOCK
        memory.give_back()
        assert resident(path) == 0


def resident(path: Path) -> int:
    """Bytes of a mapped file that are in memory."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    next(line for line in lines if line.endswith(str(path)))
    return int(next(line for line in lines if line.startswith("Rss:")).split()[1]) * 1024


# What is left


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A system with 8,000 KiB available, whose processes are in no group with a limit."""
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUPS", tmp_path / "cgroup")
    write(
        tmp_path / "proc" / "meminfo", "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable: 8000 kB\nHugePages_Total: 0\n"
    )
    write(tmp_path / "proc" / "self" / "cgroup", "0::/\n")
    return tmp_path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def group(folder: Path, limit: str, used: int, pages: int) -> None:
    write(folder / "memory.max", f"{limit}\n")
    write(folder / "memory.current", f"{used}\n")
    write(folder / "memory.stat", f"anon 5\nactive_file {pages}\ninactive_file 1\n")


def test_without_groups_the_system_says_what_is_left(system: Path) -> None:
    assert memory.available() == 8000 * 1024


def test_the_smallest_limit_counts_without_pages_of_files(system: Path) -> None:
    write(system / "proc" / "self" / "cgroup", "0::/outer/inner\n")
    group(system / "cgroup" / "outer" / "inner", "max", 10**6, 0)
    group(system / "cgroup" / "outer", "5000000", 3_000_000, 999_999)
    assert memory.available() == 5_000_000 - 3_000_000 + 10**6
    group(system / "cgroup" / "outer" / "inner", "2500000", 2_000_000, 99)
    assert memory.available() == 500_100
    group(system / "cgroup" / "outer" / "inner", str(10**12), 10**6, 0)
    group(system / "cgroup" / "outer", str(10**12), 10**6, 0)
    assert memory.available() == 8000 * 1024


def test_a_container_has_its_limit_at_the_top(system: Path) -> None:
    write(system / "proc" / "self" / "cgroup", "0::/of/the/machine\n")
    group(system / "cgroup", "4000000", 1_000_000, 0)
    assert memory.available() == 3_000_001


def test_groups_of_the_first_version(system: Path) -> None:
    write(system / "proc" / "self" / "cgroup", "9:name=systemd:/\n4:cpu,memory:/own\n1:cpu:/\n")
    own = system / "cgroup" / "memory" / "own"
    write(own / "memory.limit_in_bytes", "3000000\n")
    write(own / "memory.usage_in_bytes", "1000000\n")
    write(own / "memory.stat", "cache 7\ntotal_active_file 10\ntotal_inactive_file 20\n")
    assert memory.available() == 2_000_030


@pytest.mark.parametrize("content", ["", "MemTotal: 5 kB\n", "MemAvailable: many kB\n"])
def test_nothing_is_known_where_the_system_does_not_say(system: Path, content: str) -> None:
    write(system / "proc" / "meminfo", content)
    assert memory.available() is None
    (system / "proc" / "meminfo").unlink()
    assert memory.available() is None


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say")
def test_this_system_says_it() -> None:
    found = memory.available()
    assert found is not None
    assert 0 < found < 2**50

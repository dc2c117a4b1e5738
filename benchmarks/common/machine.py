"""What figures depend on besides the code: the processor, the versions, the commit."""

import platform
import subprocess
from pathlib import Path
from typing import Final

from benchmarks.common.processes import ROOT

INSTRUCTIONS: Final = ("avx2", "avx_vnni", "avx512vbmi", "avx512_vnni", "amx_int8")
"""Sets of instructions that onnxruntime's kernels and ours choose by."""


def facts() -> dict[str, str]:
    """What times depend on: the processor's name, those of its instruction sets that count here, onnxruntime."""
    import onnxruntime  # noqa: PLC0415 -- a script may set what it takes from the environment first

    info = Path("/proc/cpuinfo")
    fields = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line) if info.exists() else {}
    stripped = {name.strip(): value.strip() for name, value in fields.items()}
    flags = stripped.get("flags", "").split()
    sets = [name for name in INSTRUCTIONS if name in flags]
    name = stripped.get("model name") or platform.processor() or platform.machine()
    return {"processor": " ".join([name, *sets]), "onnxruntime": onnxruntime.__version__}


def commit() -> str | None:
    """The commit of this checkout, short; None where it is none."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None

"""ONNXPQ_SIMD: each level that this processor has is used, any other value is an error with a sentence."""

import os
import platform
import subprocess
import sys

import pytest

import onnxpq

pytestmark = pytest.mark.skipif(not onnxpq.library_available(), reason="onnxpq was built without a C++ compiler")

ON_ARM = platform.machine() in {"aarch64", "arm64"}
ABSENT = "avx2" if ON_ARM else "neon"
REGISTER = "import onnxruntime, sys; onnxruntime.SessionOptions().register_custom_ops_library(sys.argv[1])"


def register(level: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: a process chooses once."""
    command = [sys.executable, "-c", REGISTER, onnxpq.library_path()]
    environment = {**os.environ, "ONNXPQ_SIMD": level}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("level", ["", "scalar"])
def test_level_that_is_there_is_accepted(level: str) -> None:
    result = register(level)
    assert result.returncode == 0, result.stderr


def test_every_level_that_the_refusal_names_is_accepted() -> None:
    named = register("none").stderr.split("this library on this processor has: ")[1].splitlines()[0]
    levels = [level.strip(" .") for level in named.split(",")]
    assert levels[0] == "scalar"
    for level in levels:
        result = register(level)
        assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("level", [ABSENT, "sse9", "SCALAR", "scalar ", "x" * 1000])
def test_absent_and_unknown_levels_are_refused_with_a_sentence(level: str) -> None:
    result = register(level)
    assert result.returncode == 1
    sentence = f"ONNXPQ_SIMD is '{level[:40]}'; this library on this processor has: scalar"
    assert sentence in result.stderr

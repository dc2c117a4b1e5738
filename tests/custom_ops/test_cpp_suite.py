"""Builds the C++ tests with warnings as errors and sanitizers, and runs them."""

import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "custom_ops"

pytestmark = pytest.mark.skipif(
    not (shutil.which("cmake") and (shutil.which("c++") or shutil.which("g++"))),
    reason="needs CMake and a C++ compiler",
)


def run(*command: str | Path) -> None:
    result = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{command}\n{result.stdout[-4000:]}\n{result.stderr[-4000:]}"


def test_every_level_equals_the_scalar_reference(tmp_path: Path) -> None:
    options = ["-DONNXPQ_BUILD_TESTS=ON", "-DONNXPQ_WERROR=ON", "-DONNXPQ_SANITIZE=address,undefined"]
    run("cmake", "-S", SOURCE, "-B", tmp_path, "-DCMAKE_BUILD_TYPE=RelWithDebInfo", *options)
    run("cmake", "--build", tmp_path, "--parallel", "2")
    run("ctest", "--test-dir", tmp_path, "--output-on-failure")


def test_without_a_compiler_it_configures_with_a_warning_and_installs_nothing(tmp_path: Path) -> None:
    configure = ["cmake", "-S", SOURCE, "-B", tmp_path / "build", "-DCMAKE_CXX_COMPILER="]
    result = subprocess.run(
        [str(part) for part in configure],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": str(Path(shutil.which("cmake") or "").parent), "CXX": "/no/such/compiler"},
    )
    assert result.returncode == 0, result.stderr
    assert "onnxpq is built without its operator library" in " ".join(result.stderr.split())
    run("cmake", "--build", tmp_path / "build")
    run("cmake", "--install", tmp_path / "build", "--prefix", tmp_path / "installed")
    assert not list((tmp_path / "installed").rglob("*onnxpq*"))


@pytest.mark.skipif(not shutil.which("nm"), reason="needs nm")
def test_library_exports_one_function_and_needs_no_onnxruntime() -> None:
    onnxpq = pytest.importorskip("onnxpq")
    if not onnxpq.library_available() or not onnxpq.library_path().endswith(".so"):
        pytest.skip("needs an operator library in ELF format")
    symbols = subprocess.run(
        ["nm", "--dynamic", onnxpq.library_path()],  # noqa: S607
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert [line.split()[-1] for line in symbols if " T " in line or " W " in line] == ["RegisterCustomOps"]
    assert not [line for line in symbols if "Ort" in line]

"""The cases that other runtimes and processors are held to: right here, and false ones noticed."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import onnxpq

FOLDER = Path(__file__).resolve().parents[2] / "custom_ops" / "tests"

pytestmark = pytest.mark.skipif(not onnxpq.library_available(), reason="onnxpq was built without a C++ compiler")


def run(script: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cases")
    written = run("cases.py", folder)
    assert written.returncode == 0, written.stderr
    return folder


def run_cases(folder: Path, library: bool) -> subprocess.CompletedProcess[str]:
    return run("run_cases.py", folder, *(["--library", onnxpq.library_path()] if library else []))


@pytest.mark.parametrize(("library", "count"), [(False, 16), (True, 17)], ids=["body", "library"])
def test_all_cases_pass_here(folder: Path, library: bool, count: int) -> None:
    result = run_cases(folder, library)
    assert result.returncode == 0, result.stdout
    assert f"{count} of {count} cases passed" in result.stdout


def test_model_that_is_wrongly_accepted_is_noticed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "K16.onnx").write_bytes((folder / "K16.onnx").read_bytes())
    np.savez(tmp_path / "K16.npz", refusal="attribute")
    result = run_cases(tmp_path, library=True)
    assert result.returncode == 1
    assert "K16: not refused, expected 'attribute'" in result.stdout


@pytest.mark.parametrize(
    ("array", "factor", "library", "sentence"),
    [
        ("exact_1", 1.02, False, "K16: batch 1: relative error 1.96e-02, budget 1e-05"),
        ("exact_1", 1.02, True, "K16: batch 1: relative error 1.9"),
        ("bits_1", 1.0000002, True, "K16: batch 1: not the bits of the machine that wrote the case"),
    ],
)
def test_false_case_is_noticed(
    folder: Path, tmp_path: Path, array: str, factor: float, library: bool, sentence: str
) -> None:
    with np.load(folder / "K16.npz") as file:
        case = dict(file)
    case[array] = (case[array] * factor).astype(case[array].dtype)
    (tmp_path / "K16.onnx").write_bytes((folder / "K16.onnx").read_bytes())
    np.savez(tmp_path / "K16.npz", **case)
    result = run_cases(tmp_path, library)
    assert result.returncode == 1
    assert sentence in result.stdout
    assert "0 of 1 cases passed" in result.stdout


def test_library_that_the_runtime_cannot_load_is_told(folder: Path, tmp_path: Path) -> None:
    result = run("run_cases.py", folder, "--library", tmp_path / "absent.so")
    assert result.returncode == 2
    assert "refused: " in result.stdout

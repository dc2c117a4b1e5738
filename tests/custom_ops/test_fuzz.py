"""A run of the fuzzer, and that it notices what it is for: wrong answers, wrong sentences, crashes."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import onnxpq

FOLDER = Path(__file__).resolve().parents[2] / "custom_ops" / "tests"
CASES = 500

pytestmark = pytest.mark.skipif(not onnxpq.library_available(), reason="onnxpq was built without a C++ compiler")


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(FOLDER / "fuzz.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def fuzz(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import fuzz  # noqa: PLC0415 -- found only now

    return fuzz


def test_random_and_hostile_cases_end_in_the_right_answer_or_a_sentence() -> None:
    result = run("--cases", str(CASES), "--seed", "20")
    assert result.returncode == 0, result.stderr
    counts = {
        how: int(count) for count, how in re.findall(r"(\d+) (answer|refused by \w+(?: operator)?)", result.stdout)
    }
    assert sum(counts.values()) == CASES, result.stdout
    assert counts["answer"] > CASES // 3
    assert counts["refused by the operator"] > CASES // 20
    assert counts["refused by onnxruntime"] > CASES // 20


VALID = {"seed": 1, "out": 40, "in_features": 33, "d": 4, "codewords": 16, "groups": 9, "stages": 1}


def test_errors_of_two_percent_and_of_one_value_are_noticed(fuzz: ModuleType) -> None:
    for codewords in (16, 20):
        case = fuzz.case_of_json(VALID | {"codewords": codewords})
        right = fuzz.right_answer(case, fuzz.tensors_of(case))
        fuzz.judge(right, right)
        with pytest.raises(fuzz.WrongOutcomeError, match="80 of 80 values differ"):
            fuzz.judge(np.float32(1.02) * right, right)
        other = right.copy()
        other[1, 3] = np.nan
        with pytest.raises(fuzz.WrongOutcomeError, match=r"1 of 80 values differ; at \(1, 3\)"):
            fuzz.judge(other, right)


def test_answer_where_a_sentence_is_due_is_noticed(
    fuzz: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = fuzz.case_of_json(VALID)
    assert fuzz.outcome(case, onnxpq.library_path(), tmp_path) == "answer"
    bad = replace(case, shapes=(("bias", (39,)),))
    assert fuzz.outcome(bad, onnxpq.library_path(), tmp_path) == "refused by the operator"
    with monkeypatch.context() as patch:
        patch.setattr(fuzz, "sentences", lambda *_: [re.compile("no such sentence")])
        with pytest.raises(fuzz.WrongOutcomeError, match=r"expected the error.*no such sentence"):
            fuzz.outcome(case, onnxpq.library_path(), tmp_path)
        with pytest.raises(fuzz.WrongOutcomeError, match=r"error .*input 'bias' has shape .*no such sentence"):
            fuzz.outcome(bad, onnxpq.library_path(), tmp_path)


@pytest.mark.skipif(not shutil.which("c++"), reason="needs a C++ compiler")
def test_crash_is_told_with_its_case(tmp_path: Path) -> None:
    library, source = tmp_path / "libcrash.so", tmp_path / "crash.cpp"
    source.write_text('extern "C" void RegisterCustomOps() { __builtin_trap(); }')
    subprocess.run(["c++", "-shared", "-fPIC", "-o", library, source], check=True)  # noqa: S607
    result = run("--cases", "10", "--library", library)
    assert result.returncode == 1
    assert result.stdout.startswith("0 cases, seed 0")
    how, case = result.stderr.strip().splitlines()[-2:]
    assert re.match(r"SIG(ILL|TRAP); the last case was:", how)
    assert json.loads(case).keys() >= VALID.keys()

"""Fuzzes the operator library through real onnxruntime sessions.

    python custom_ops/tests/fuzz.py --cases 20000 --seed 0
    python custom_ops/tests/fuzz.py --case '{"seed": 1, ...}'      # one case again, as a failure prints it

Every case is a model of one `PQMatMul` node with odd shapes, values, element types, attributes, inputs or damaged
tensors (fuzz_cases.py). It must end in one of two ways: with the right answer, bit for bit, or with an error whose
sentence says what is wrong with it (fuzz_oracle.py). A crash, a hang, another answer or another error fails, and the
case is printed.
"""

import argparse
import faulthandler
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import hypothesis
import numpy as np
import onnxruntime

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tests"), str(ROOT)]

from fuzz_cases import Case, case_of_json, cases  # noqa: E402 -- needs tests/ on the path
from fuzz_models import Tensors, model_of_case, tensors_of  # noqa: E402
from fuzz_oracle import operator_of, right_answer, sentences  # noqa: E402

import onnxpq  # noqa: E402 -- from the checkout where it is not installed

CASES_PER_PROCESS = 1000
HANG_SECONDS = 300
LEVELS = {
    "all": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    "basic": onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "off": onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
ORT_ERRORS = tuple(
    value
    for value in vars(onnxruntime.capi.onnxruntime_pybind11_state).values()
    if isinstance(value, type) and issubclass(value, Exception)
)


class WrongOutcomeError(AssertionError):
    """A case that ended in neither of the two ways."""


def outcome(case: Case, library: str, folder: Path) -> str:
    """How a case ended: "answer", or the first words of the sentence.

    Raises:
        WrongOutcomeError: neither the right answer nor a sentence that says what is wrong.
    """
    tensors = tensors_of(case)
    expected = sentences(case, tensors)
    try:
        y = _run(case, tensors, library, folder)
    except ORT_ERRORS as error:
        text = str(error)
        for sentence in expected:
            if sentence.search(text):
                return "refused by the operator" if operator_of(case) in text else "refused by onnxruntime"
        wanted = [sentence.pattern for sentence in expected] or "an answer"
        raise WrongOutcomeError(f"error '{text}'; expected {wanted}") from error
    if expected:
        wanted = [sentence.pattern for sentence in expected]
        raise WrongOutcomeError(f"an answer of shape {y.shape}; expected the error {wanted}")
    judge(y, right_answer(case, tensors))
    return "answer"


def judge(y: np.ndarray, expected: np.ndarray) -> None:
    """Compare bit for bit, but for the sign of zeros and the bits of NaN.

    Raises:
        WrongOutcomeError: they differ.
    """
    if y.shape != expected.shape or y.dtype != expected.dtype:
        raise WrongOutcomeError(f"an answer {y.dtype}{y.shape}; expected {expected.dtype}{expected.shape}")
    different = (y != expected) & ~(np.isnan(y) & np.isnan(expected))
    if different.any():
        where = tuple(int(i) for i in np.argwhere(different)[0])
        raise WrongOutcomeError(
            f"{different.sum()} of {y.size} values differ; at {where} {y[where]!r}, expected {expected[where]!r}"
        )


def _run(case: Case, tensors: Tensors, library: str, folder: Path) -> np.ndarray:
    model = model_of_case(case, tensors, folder)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = case.threads
    options.graph_optimization_level = LEVELS[case.level]
    options.register_custom_ops_library(library)
    source: str | bytes = model.SerializeToString()
    if any(place == "external" for _, place in case.places):
        (folder / "model.onnx").write_bytes(source)
        source = str(folder / "model.onnx")
    session = onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    feed = {"X": tensors.x, "condition": np.array(True)}
    feed |= tensors.constants
    feed |= {f"{name}_source": array for name, array in tensors.constants.items()}
    feed = {i.name: feed[i.name] for i in session.get_inputs() if i.name in feed}
    y = session.run(None, feed)[0]
    judge(session.run(None, feed)[0], y)
    return y


# ---- a process of its own, so that a crash can be told


def worker(count: int, seed: int, library: str, journal: Path) -> int:
    """Run `count` cases; the one that is running is in `journal`, and the outcomes are printed at the end."""
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="onnxpq-fuzz-") as folder:

        @hypothesis.seed(seed)
        @hypothesis.settings(
            max_examples=count,
            deadline=None,
            database=None,
            phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(cases())
        def fuzz(case: Case) -> None:
            journal.write_text(json.dumps(case.json()))
            faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
            outcomes[outcome(case, library, Path(folder))] += 1

        fuzz()
    faulthandler.cancel_dump_traceback_later()
    print(json.dumps(outcomes))
    return 0


def fuzz(count: int, seed: int, library: str) -> tuple[Counter[str], str]:
    """Outcomes of `count` cases, and what failed first (empty: nothing)."""
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="onnxpq-fuzz-") as folder:
        journal = Path(folder, "case.json")
        for chunk, done in enumerate(range(0, count, CASES_PER_PROCESS)):
            size = min(CASES_PER_PROCESS, count - done)
            arguments = ["--cases", str(size), "--seed", str(seed * 1_000_003 + chunk), "--library", library]
            command = [sys.executable, __file__, *arguments, "--journal", str(journal)]
            result = subprocess.run(command, capture_output=True, text=True, check=False)
            if result.returncode:
                how = signal.Signals(-result.returncode).name if result.returncode < 0 else f"exit {result.returncode}"
                case = journal.read_text() if journal.exists() else "none"
                return total, f"{result.stdout[-4000:]}{result.stderr[-12000:]}\n{how}; the last case was:\n{case}"
            total.update(json.loads(result.stdout.splitlines()[-1]))
    return total, ""


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--library", default="", help="default: the one of this installation")
    parser.add_argument("--case", help="one case, as JSON")
    parser.add_argument("--journal", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    library = arguments.library or onnxpq.library_path()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if arguments.case:
        with tempfile.TemporaryDirectory(prefix="onnxpq-fuzz-") as folder:
            print(outcome(case_of_json(json.loads(arguments.case)), library, Path(folder)))
        return 0
    if arguments.journal:
        return worker(arguments.cases, arguments.seed, library, arguments.journal)
    outcomes, failure = fuzz(arguments.cases, arguments.seed, library)
    print(
        f"{outcomes.total()} cases, seed {arguments.seed}: "
        + ", ".join(f"{n} {k}" for k, n in sorted(outcomes.items()))
    )
    if failure:
        print(failure, file=sys.stderr)
    return 1 if failure else 0


if __name__ == "__main__":
    sys.exit(main())

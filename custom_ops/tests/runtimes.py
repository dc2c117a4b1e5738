"""One library and one model file in many onnxruntimes: installs each in an environment of its own and runs the cases.

    python custom_ops/tests/runtimes.py                      # oldest to newest
    python custom_ops/tests/runtimes.py --versions 1.24.4    # others
    python custom_ops/tests/runtimes.py --keep FOLDER        # keep the environments, and use those that are there

Every version must give the outputs that this Python's onnxruntime gave: the same bits with the operator library, the
same values within a budget without it. Versions older than the library's interface must refuse it with its sentence and
still run the model. Exit code 1 where one does not.
"""

import argparse
import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER))

import cases  # noqa: E402 -- its folder is no package

import onnxpq  # noqa: E402 -- cases.py makes it importable from a checkout
from onnxpq.runtime.sessions import MIN_RUNTIME  # noqa: E402

VERSIONS = ["1.16.3", "1.17.3", "1.18.1", "1.20.1", "1.23.2", "1.26.0", "1.27.0", "1.28.0", "newest"]
FIRST_WITH_NUMPY_2 = (1, 19)
REFUSAL = "the operator library needs 1.17 or newer"
EXIT_CODES = (0, 1, 2)  # of run_cases.py; a crash has another one
TIMEOUT = 600


@dataclass(frozen=True)
class Outcome:
    """One runtime: what ran, and what was wrong (empty where nothing was)."""

    runtime: str
    library: str
    body: str
    problem: str


def environment(folder: Path, version: str) -> Path:
    """Python of an environment with this onnxruntime and a numpy that it accepts; made where it is not there."""
    python = folder / version / "bin" / "python"
    if python.exists():
        return python
    venv.create(folder / version, with_pip=False)
    newest = version == "newest"
    numpy_2 = newest or tuple(map(int, version.split(".")[:2])) >= FIRST_WITH_NUMPY_2
    wanted = ["onnxruntime" if newest else f"onnxruntime=={version}", "numpy" if numpy_2 else "numpy<2"]
    # Its other dependencies serve its tools, not its sessions.
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--only-binary=:all:"]
    result = subprocess.run([*pip, *wanted], capture_output=True, text=True, check=False, timeout=TIMEOUT)
    if result.returncode:
        python.unlink()  # so that the next try with --keep installs again
        raise SystemExit(f"pip cannot install {' and '.join(wanted)}:\n{result.stderr}")
    return python


def run(python: Path, folder: Path, library: str) -> tuple[int, list[str]]:
    """Exit code and what run_cases.py printed, the runtime first."""
    command = [str(python), str(FOLDER / "run_cases.py"), str(folder), *(["--library", library] if library else [])]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    lines = result.stdout.splitlines()
    if result.returncode not in EXIT_CODES or not lines:
        raise SystemExit(f"{' '.join(command)}: exit code {result.returncode}\n{result.stdout}{result.stderr}")
    return result.returncode, lines


def check(python: Path, folder: Path) -> Outcome:
    """Run the cases in one environment, with the library and without."""
    body_code, body = run(python, folder, "")
    code, lines = run(python, folder, onnxpq.library_path())
    refused = any(REFUSAL in line for line in lines)
    too_old = tuple(map(int, body[0].split()[1].split(".")[:2])) < MIN_RUNTIME
    problems = [] if body_code == 0 else body
    if (code == 2 and refused) if too_old else (code == 0):
        library = "refused: " + REFUSAL if refused else lines[-1]
    else:
        library = "WRONG"
        problems += lines
    return Outcome(body[0], library, body[-1], "\n".join(problems))


def main() -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", nargs="+", default=VERSIONS)
    parser.add_argument("--keep", type=Path, help="folder of the environments; by default they are thrown away")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="onnxpq-runtimes-") as scratch:
        folder = Path(scratch, "cases")
        cases.write(folder)
        outcomes = []
        print("| runtime | with the library, bit for bit | function bodies, within the budget |\n|---|---|---|")
        for version in arguments.versions:
            outcome = check(environment(arguments.keep or Path(scratch), version), folder)
            print(f"| {outcome.runtime} | {outcome.library} | {outcome.body} |", flush=True)
            outcomes.append(outcome)
    for outcome in outcomes:
        if outcome.problem:
            print(f"\n{outcome.runtime}:\n{outcome.problem}", file=sys.stderr)
    return 1 if any(outcome.problem for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())

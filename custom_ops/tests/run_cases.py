"""Runs the cases of cases.py in this Python's onnxruntime. Needs numpy and onnxruntime, nothing else.

    python run_cases.py FOLDER                       # the function bodies, in standard operators
    python run_cases.py FOLDER --library LIBRARY     # the operator library; ONNXPQ_SIMD chooses the instruction set

Prints a line for each case. Exit code 1: a case fails. 2: runtime and library do not fit together, or ONNXPQ_SIMD.
"""

import argparse
import json
import platform
import sys
from pathlib import Path

import numpy as np
import onnxruntime

FIRST_THAT_FOLDS = (1, 17)
"""Older ones run the bodies of functions that call functions, but compute their constants at every call."""


def session_options(library: str) -> onnxruntime.SessionOptions:
    """Options of a session; `library` may be empty."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 2
    if library:
        options.register_custom_ops_library(library)
    return options


def failure(path: Path, library: str) -> str:
    """What is wrong with a case in this runtime; empty where nothing is."""
    with np.load(path.with_suffix(".npz")) as file:
        case = dict(file)
    if "refusal" in case:
        return refusal_failure(path, library, str(case["refusal"]))
    options = session_options(library)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    budget = float(case["library_budget" if library else "body_budget"])
    if problem := ends_failure(path, case, library):
        return problem
    batches = sum(name.startswith("X_") for name in case)
    for i in range(batches):
        given = {session.get_inputs()[0].name: case[f"X_{i}"]}
        y, exact, bits = session.run(None, given)[0], case[f"exact_{i}"], case.get(f"bits_{i}")
        if y.shape != exact.shape:
            return f"batch {i}: shape {y.shape}, expected {exact.shape}"
        if library and bits is not None and not np.array_equal(y, bits):
            return f"batch {i}: not the bits of the machine that wrote the case; off by up to {np.abs(y - bits).max()}"
        error, measure = np.sqrt(np.sum((y - exact) ** 2)), np.sqrt(np.sum(exact**2))
        if not error <= budget * measure:
            return f"batch {i}: relative error {error / measure:.2e}, budget {budget:.0e}"
    return ""


def ends_failure(path: Path, case: dict[str, np.ndarray], library: str) -> str:
    """What is wrong with the operators that onnxruntime made of the function body; the profile tells which ran."""
    allowed = set(case["ends"].tolist())
    version = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
    if library or not allowed or version < FIRST_THAT_FOLDS:
        return ""
    options = session_options("")
    options.enable_profiling = True
    options.profile_file_prefix = str(path.with_suffix(""))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    session.run(None, {session.get_inputs()[0].name: case["X_0"]})
    profile = Path(session.end_profiling())
    events = json.loads(profile.read_text())
    profile.unlink()
    ran = {event["args"]["op_name"] for event in events if event.get("cat") == "Node" and "op_name" in event["args"]}
    return f"{sorted(ran - allowed)} ran; expected nothing but {sorted(allowed)}" if ran - allowed or not ran else ""


def refusal_failure(path: Path, library: str, sentence: str) -> str:
    """What is wrong where the library must refuse a model with a sentence."""
    try:
        onnxruntime.InferenceSession(str(path), session_options(library), providers=["CPUExecutionProvider"])
    except Exception as refusal:  # onnxruntime's exceptions have no common base that is public
        return "" if sentence in str(refusal) else f"refused with {str(refusal)!r}, expected {sentence!r}"
    return f"not refused, expected {sentence!r}"


def main() -> int:
    """Run all cases of the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--library", default="", help="the operator library; without it, the function bodies run")
    arguments = parser.parse_args()
    print(f"onnxruntime {onnxruntime.__version__}, numpy {np.__version__}, {platform.machine()}")
    try:
        session_options(arguments.library)
    except Exception as refusal:  # onnxruntime's exceptions have no common base that is public
        print(f"  refused: {refusal}")
        return 2
    paths = sorted(arguments.folder.glob("*.onnx"))
    if not arguments.library:  # what the library must refuse is nothing to runtimes without it
        paths = [path for path in paths if "refusal" not in np.load(path.with_suffix(".npz"))]
    failed = 0
    for path in paths:
        problem = failure(path, arguments.library)
        failed += bool(problem)
        print(f"  {path.stem}: {problem or 'ok'}")
    print(f"{len(paths) - failed} of {len(paths)} cases passed")
    return 0 if paths and not failed else 1


if __name__ == "__main__":
    sys.exit(main())

"""What a session of a large model costs that leaves the weights in their file (`onnxpq.runtime.sessions.frugal`).

    python -m benchmarks prepacking [--widths 1024 4096]

Chains of square layers of 256 MiB in all, in float32, in external data. Printed are the memory that loading took
(Linux: anonymous, for each byte of the model) with and without prepacking, and the median time of a call of so many
rows without it to that with it, calls of the two taking turns. Stored are those of the last run.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.common import processes
from benchmarks.common.chain import build
from benchmarks.common.memory import EVERY, Anonymous
from benchmarks.common.store import Results
from onnxpq import runtime
from onnxpq.graph import files

RESULTS = Results.of(__name__)
BYTES = 2**28
ROWS = (1, 8, 32, 128, 256, 1024)
CALLS = 9


def child(model: str, prepack: bool) -> None:
    """Load, and print what that took."""
    runtime.session(small(), use_library=False)
    anonymous = Anonymous()
    time.sleep(10 * EVERY)
    before = anonymous.peak
    session = runtime.session(model, use_library=False, prepack=prepack)
    time.sleep(10 * EVERY)
    print(anonymous.peak - before)
    del session


def small() -> bytes:
    """A model to load before, so that what onnxruntime itself takes is not counted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "m.onnx")
        build(path, 1, 8)
        return path.read_bytes()


def loaded(model: Path, prepack: bool) -> int:
    return int(processes.output("prepacking", "--child", model, *(["--prepack"] if prepack else [])))


def ratio(model: Path, width: int, rows: int) -> float:
    values = {"x": np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32)}
    sessions = {prepack: runtime.session(model, use_library=False, prepack=prepack) for prepack in (True, False)}
    times: dict[bool, list[float]] = {True: [], False: []}
    for round_number in range(CALLS + 1):
        for prepack, session in sessions.items():
            begin = time.perf_counter()
            runtime.run(session, values)
            if round_number:
                times[prepack].append(time.perf_counter() - begin)
    return median(times[False]) / median(times[True])


def measure(width: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        inside, model = Path(folder, "inside.onnx"), Path(folder, "m.onnx")
        build(inside, BYTES // (4 * width * width), width)
        files.save(files.load(inside), model, external_data=True)
        size = files.file_bytes(model)
        return {
            "width": width,
            "bytes with prepacking": loaded(model, True) / size,
            "bytes without": loaded(model, False) / size,
            "time without to with": {rows: ratio(model, width, rows) for rows in ROWS},
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[1024, 4096])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--prepack", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.prepack)
        return
    found = [measure(width) for width in options.widths]
    for row in found:
        print(json.dumps(row))
    RESULTS.replace(found)

"""Peak memory of compressing models of more and more layers, which must not grow with the model.

    python -m benchmarks compress_memory [--layers 8 24 48] [--width 512] [--epochs 0]

Each run is a process of its own, and so is one that loads a model and runs it once in onnxruntime as users do, to
compare with. Peaks up to the end of each stage are those of the anonymous memory, which was allocated, and of the
resident set, in which the system (Linux) counts pages of files, too, that it may drop at any time. The last stage,
which times the original as users run it, is left out where memory is short. The model is a chain of square layers in
float32 with random weights, the data are random; with --epochs 0 the layers are clustered for the smallest error of
their outputs and not trained. Printed and stored are MB (10^6 bytes) above the start.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import processes
from benchmarks.common.chain import build
from benchmarks.common.memory import EVERY, Anonymous, peak
from benchmarks.common.store import Results

RESULTS = Results.of(__name__)
SAMPLES = 2048
PASS_BYTES = 2**22
"""Moments of the layers' inputs that are collected in one pass, and kept: less than usual, so that small models need
several passes."""

JOBS = ("run", "compress")

LARGE = 2**20
"""What is done for large models is done from so many bytes on."""


def child(model: str, job: str, epochs: int, width: int) -> None:
    """Compress or run the model, and print the peak up to each moment."""
    import onnxpq  # noqa: PLC0415 -- the parent needs neither
    from onnxpq import pipeline  # noqa: PLC0415
    from onnxpq.graph import files  # noqa: PLC0415
    from onnxpq.quantization import calibration  # noqa: PLC0415
    from onnxpq.runtime import sessions  # noqa: PLC0415

    sessions.HANDED_BYTES = files.LARGE_BYTES = LARGE
    calibration.MOMENT_BYTES = calibration.KEPT_BYTES = PASS_BYTES
    anonymous = Anonymous()

    def both(moment: str) -> dict[str, int]:
        return {f"{moment}, anonymous": anonymous.peak, f"{moment}, resident": peak()}

    time.sleep(10 * EVERY)
    peaks = both("start")
    data = {"x": np.random.default_rng(1).standard_normal((SAMPLES, width)).astype(np.float32)}
    if job == "run":
        session = sessions.session(files.load(model), use_library=False)
        sessions.run(session, {"x": data["x"][:8]})
        time.sleep(10 * EVERY)
        print(json.dumps(peaks | both("loaded and run")))
        return
    config = onnxpq.Config(training=onnxpq.TrainingConfig(epochs=epochs))

    def tell(stage: str, _done: int, _of: int) -> None:
        peaks.update(both(f"{stage} done"))

    pipeline.compress(model, data, config=config, progress=tell)
    print(json.dumps(peaks | both("timing done")))


def measure(layers: int, width: int, epochs: int) -> dict[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "m.onnx")
        build(model, layers, width)
        row = {"layers": layers, "model": model.stat().st_size}
        for job in JOBS:
            flags = ("--child", model, job, "--epochs", epochs, "--width", width)
            peaks = json.loads(processes.output("compress_memory", *flags))
            start = {kind: peaks.pop(f"start, {kind}") for kind in ("anonymous", "resident")}
            row |= {name: value - start[name.rsplit(", ", 1)[1]] for name, value in peaks.items()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 24, 48])
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child, options.epochs, options.width)
        return
    rows = []
    for layers in options.layers:
        row = measure(layers, options.width, options.epochs)
        rows.append(row)
        print(
            ", ".join(f"{name} {value / (1 if name == 'layers' else 1e6):g}" for name, value in row.items()), flush=True
        )
    first, last = rows[0], rows[-1]
    slope = {name: (last[name] - first[name]) / (last["model"] - first["model"]) for name in last}
    print("bytes more for each byte of model more:", {name: round(value, 2) for name, value in slope.items()})
    RESULTS.replace({"width": options.width, "epochs": options.epochs, "rows": rows, "slope": slope})

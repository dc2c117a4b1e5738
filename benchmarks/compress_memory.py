"""Peak memory of compressing models of more and more layers, which must not grow with the model.

    python benchmarks/compress_memory.py [--layers 8 24 48] [--width 512] [--epochs 0]

Each run is a process of its own, and so is one that loads a model and runs it once in onnxruntime as users do, to
compare with. Peaks up to the end of each stage are those of the anonymous memory, which was allocated, and of the
resident set, in which the system (Linux) counts pages of files, too, that it may drop at any time. The last stage,
which times the original as users run it, is left out where memory is short. The model is a chain of square layers in
float32 with random weights, the data are random; with --epochs 0 the layers are clustered for the smallest error of
their outputs and not trained. Printed are MB (10^6 bytes) above the start. Stored in results/compress_memory.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

from benchmarks.memory import EVERY, Anonymous, peak  # noqa: E402 -- a script is run with its own folder on the path, not the root

RESULTS = ROOT / "benchmarks" / "results" / "compress_memory.json"
SAMPLES = 2048
PASS_BYTES = 2**22
"""Moments of the layers' inputs that are collected in one pass, and kept: less than usual, so that small models need
several passes."""

JOBS = ("run", "compress")

LARGE = 2**20
"""What is done for large models is done from so many bytes on."""


def build(path: Path, layers: int, width: int) -> None:
    random = np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(layers):
        values = (random.standard_normal((width, width)) * (2 / width) ** 0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [f"a{i}" if i else "x", f"w{i}"], [f"m{i}"], name=f"fc{i}"))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [f"a{i + 1}" if i < layers - 1 else "y"], name=f"act{i}"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])
    graph = helper.make_graph(nodes, "chain", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


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
            command = [sys.executable, __file__, "--child", str(model), job]
            command += ["--epochs", str(epochs), "--width", str(width)]
            peaks = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
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
    RESULTS.write_text(
        json.dumps({"width": options.width, "epochs": options.epochs, "rows": rows, "slope": slope}, indent=1)
    )


if __name__ == "__main__":
    main()

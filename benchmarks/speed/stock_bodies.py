"""Compressed models on stock onnxruntime, without the operator library: float and int8 bodies against the original.

    python -m benchmarks stock_bodies

Four layers of 2048 x 2048 and a chain of 300 of 128 x 128, random weights, d = 8, K = 16. Each model is loaded and run
in a process of its own, one thread: bytes of the file, seconds to load, growth of the anonymous memory by the session,
and milliseconds a call, the median. `--folder` takes models of your own instead: NAME.onnx, NAME.float.onnx and
NAME.int8.onnx.
"""

import argparse
import json
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnxruntime

from benchmarks.common import processes
from benchmarks.common.chain import build
from benchmarks.common.memory import anonymous
from benchmarks.common.store import Results
from onnxpq import rewriting
from onnxpq.graph import files
from onnxpq.graph.normalising import normalise
from onnxpq.network import matrices
from onnxpq.operators import MAX_MAGNITUDE
from onnxpq.pq import Layout
from onnxpq.quantization import encoding

RESULTS = Results.of(__name__)
MODELS: Final = {"4 of 2048 x 2048": (4, 2048), "300 of 128 x 128": (300, 128)}
WAYS: Final = ("original", "float", "int8")
BATCHES: Final = (1, 64)
ROUNDS: Final = 31
SECONDS: Final = 4.0


def write(folder: Path, layers: int, width: int) -> None:
    """The chain, and its compressed forms."""
    build(folder / "m.onnx", layers, width)
    model = normalise(files.load(folder / "m.onnx"))
    found, _ = rewriting.find(model)
    layout = Layout(width, width, 8, 16, 1)
    tensors = {
        layer.weight: encoding.quantize(matrices.weight(model, layer), layout, seed=0, magnitude=MAX_MAGNITUDE).freeze()
        for layer in found
    }
    for way in ("float", "int8"):
        own = {name: replace(tensor, multiplies_int8=way == "int8") for name, tensor in tensors.items()}
        files.save(rewriting.rewrite(model, found, own), folder / f"m.{way}.onnx")


def measure(path: Path) -> dict[str, float]:
    """Of one model in this process."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    before, start = anonymous(), time.perf_counter()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    row = {"bytes": path.stat().st_size, "load": time.perf_counter() - start}
    given = session.get_inputs()[0]
    for batch in BATCHES:
        shape = [size if isinstance(size, int) else batch for size in given.shape]
        x = {given.name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)}
        session.run(None, x)
        times: list[float] = []
        while len(times) < 3 or (len(times) < ROUNDS and sum(times) < SECONDS):
            start = time.perf_counter()
            session.run(None, x)
            times.append(time.perf_counter() - start)
        row[f"batch {batch}"] = 1e3 * statistics.median(times)
    row["memory"] = anonymous() - before
    return row


def table(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A line for each model and way."""
    lines = [
        "| model | multiplies in | file, MB | load, s | memory, MB | batch 1, ms | batch 64, ms |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, own in rows.items():
        for way, row in own.items():
            numbers = (row["bytes"] / 1e6, row["load"], row["memory"] / 1e6, row["batch 1"], row["batch 64"])
            lines.append(f"| {name} | {way} | " + " | ".join(f"{number:.3g}" for number in numbers) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module's description."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--folder", type=Path, help="models of your own")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return 0
    rows: dict[str, dict[str, dict[str, Any]]] = {} if options.folder else RESULTS.rows()
    if options.folder:
        for path in sorted(options.folder.glob("*.onnx")):
            name, _, way = path.stem.partition(".")
            rows.setdefault(name, {})[way or "original"] = _apart(path)
    elif not options.table:
        for name, (layers, width) in MODELS.items():
            with tempfile.TemporaryDirectory() as scratch:
                write(Path(scratch), layers, width)
                for way in WAYS:
                    path = Path(scratch) / ("m.onnx" if way == "original" else f"m.{way}.onnx")
                    rows = RESULTS.add(_apart(path), name, way)
    print(table(rows))
    return 0


def _apart(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(processes.output("stock_bodies", "--measure", path))
    return found


if __name__ == "__main__":
    raise SystemExit(main())

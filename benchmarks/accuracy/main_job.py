"""The main job as a user runs it: both MNIST models through the command line, with and without labels.

    python -m benchmarks main_job            # runs what is not stored yet, then prints the table
    python -m benchmarks main_job --table    # only prints it

Each run is `onnxpq compress` in a process of its own, at the default settings, verified on all 10000 test images.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import datasets
from benchmarks.common.processes import ROOT
from benchmarks.common.store import Results

RESULTS = Results.of(__name__)
MODELS = ("mnist_lenet", "mnist_mlp")


def data_of(model: str) -> Path:
    """The folder with the `.npz` files that a model takes; written where it is not there yet."""
    folder = datasets.cache_folder() / ("mnist_flat" if model == "mnist_mlp" else "mnist")
    if not (folder / "mnist_test.npz").exists():
        datasets.export_dataset("mnist", folder, "input", flatten=model == "mnist_mlp")
    return folder


def run(model: str, *, labels: bool, data: Path) -> dict[str, object]:
    """One run of the command line; its report and wall time."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "onnxpq", "compress", str(ROOT / "models" / f"{model}.onnx")]
        command += ["-o", str(Path(scratch) / "out.onnx"), "--report", str(report)]
        command += ["--data", str(data / "mnist_train.npz"), "--test", str(data / "mnist_test.npz")]
        started = time.perf_counter()
        # By distillation the labels only serve to measure the test error; training does not look at them.
        subprocess.run([*command, "--labels", "y", *([] if labels else ["--loss", "distillation"])], check=True)
        seconds = time.perf_counter() - started
        return summary(json.loads(report.read_text()), seconds)


def summary(report: dict, seconds: float) -> dict[str, object]:
    """The figures of a report that the table shows; errors in per cent."""
    found = report["verification"]
    accuracy = found["accuracy"]
    return {
        "bytes": [found["bytes_before"], found["bytes_after"]],
        "file_ratio": report["ratio"],
        "layer_ratio": report["layer_ratio"],
        "agreement": found["outputs"][0]["agreement"],
        "relative_error": found["outputs"][0]["relative_error"],
        "errors": [100 * (1 - accuracy[side]["value"]) for side in ("original", "compressed")],
        "drop_interval": [100 * accuracy["drop"][side] for side in ("low", "high")],
        "native_against_stock": found["library_agreement"],
        "latency": found["latency"],
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print the table of stored results")
    options = parser.parse_args()
    results = RESULTS.rows()
    if not options.table:
        for model in MODELS:
            for labels in (True, False):
                key = f"{model}, {'labels' if labels else 'no labels'}"
                if key in results:
                    continue
                results = RESULTS.add(run(model, labels=labels, data=data_of(model)), key)
    print(table(results))


def table(results: dict) -> str:
    """The results as a Markdown table."""
    lines = ["| run | file | FC layers | test error | agreement | seconds |", "|---|---|---|---|---|---|"]
    for key, row in results.items():
        error = "{:.2f} % -> {:.2f} %".format(*row["errors"])
        ratios = f"{row['file_ratio']:.1f}x | {row['layer_ratio']:.1f}x"
        lines.append(f"| {key} | {ratios} | {error} | {100 * row['agreement']:.2f} % | {row['seconds']:.0f} |")
    return "\n".join(lines)

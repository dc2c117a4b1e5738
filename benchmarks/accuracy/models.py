"""Real models of other people's packages through the command line, as a user would do it.

    python -m benchmarks models                    # runs what is not stored yet, then prints the table
    python -m benchmarks models --only minilm      # only this one
    python -m benchmarks models --table            # only prints the table

Models and data come from `python -m benchmarks material`, in an environment of its own in the cache folder. Each run is
`onnxpq compress` in a process of its own, with no flags.
"""

import argparse
import collections
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from benchmarks.common.folders import material_of
from benchmarks.common.store import Results

RESULTS = Results.of(__name__)
MODELS: Final = ("surfaces", "minilm_int8", "silero", "minilm", "magika", "rapidocr")


def run(name: str) -> dict[str, Any]:
    """One run of the command line: what it found, or the error that it ended with."""
    folder = material_of(name)
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        command = [sys.executable, "-m", "onnxpq", "compress", str(folder / "model.onnx")]
        command += ["-o", str(Path(scratch) / "out.onnx"), "--report", str(report)]
        command += ["--data", str(folder / "train.npz"), "--test", str(folder / "test.npz")]
        started = time.perf_counter()
        # Not in the repository, whose sources have no operator library beside them.
        done = subprocess.run(command, cwd=scratch, stderr=subprocess.PIPE, text=True, check=False)
        seconds = time.perf_counter() - started
        row: dict[str, Any] = {"seconds": round(seconds, 1)}
        if done.returncode != 0:
            sentence, *reasons = done.stderr.strip().splitlines()
            return row | {"error": sentence, "skipped": _counted(line.partition(": ")[2] for line in reasons)}
        return row | summary(json.loads(report.read_text()))


def summary(report: dict[str, Any]) -> dict[str, Any]:
    """The figures of a report that the table shows."""
    found = report["verification"]
    ways = collections.Counter(_generic(layer["training"]) for layer in report["layers"])
    training = report["training"] or {}
    return {
        "layers": len(report["layers"]),
        "ways": dict(ways),
        "layer_ratio": report["layer_ratio"],
        "file_ratio": report["ratio"],
        "bytes": [found["bytes_before"], found["bytes_after"]],
        "outputs": found["outputs"],
        "samples": [training.get("samples"), found["samples"]],
        "loss": [training.get("quantized"), training.get("best")],
        "skipped": _counted(entry["reason"] for entry in report["skipped"]),
        "latency": found["latency"],
        "stages": report["seconds"],
    }


def _generic(sentence: str) -> str:
    """A sentence without the names in it, so that equal reasons count as one."""
    return re.sub(r"\s*'[^']*'", "", sentence)


def _counted(reasons: Any) -> dict[str, int]:
    return dict(collections.Counter(map(_generic, reasons)))


def table(results: dict[str, Any]) -> str:
    """The results as a Markdown table, and the reasons for what was left alone."""
    lines = [
        "| model | layers | trained | FC layers | file | relative error, same top-1 | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    reasons = ["", "Left alone:", ""]
    for name, row in results.items():
        if "error" in row:
            lines.append(f"| {name} | 0 | {row['error']} | | | | {row['seconds']:.0f} |")
        else:
            ways = ", ".join(f"{count} {way}" for way, count in row["ways"].items())
            ratios = f"{row['layer_ratio']:.1f}x | {row['file_ratio']:.2f}x"
            outputs = "; ".join(map(_output, row["outputs"]))
            lines.append(f"| {name} | {row['layers']} | {ways} | {ratios} | {outputs} | {row['seconds']:.0f} |")
        reasons += [f"* {name}: {count} times: {reason}" for reason, count in row["skipped"].items()]
    return "\n".join([*lines, *(reasons if len(reasons) > 3 else [])])


def _output(output: dict[str, Any]) -> str:
    same = "" if output["agreement"] is None else f", {100 * output['agreement']:.1f} %"
    error = "integers" if output["relative_error"] is None else f"{output['relative_error']:.3f}"
    return f"`{output['name']}` {error}{same}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print the table of stored results")
    parser.add_argument("--only", choices=MODELS, help="run only this model")
    options = parser.parse_args()
    results = RESULTS.rows()
    for name in [] if options.table else [options.only] if options.only else MODELS:
        if name not in results:
            results = RESULTS.add(run(name), name)
    print(table(results))

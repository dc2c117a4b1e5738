"""What measuring the layers brings before any training: layouts chosen for each against one layout for all.

    python -m benchmarks allocation                        # both MNIST models and digits
    python -m benchmarks allocation --material FOLDER...   # also: folders with model.onnx, train.npz, test.npz
    python -m benchmarks allocation --table                # only prints what is stored

For some settings of all layers (d, K) the file is made without training, and another of at most its bytes whose layouts
a target chose. Both are run on the test data: relative L2 error of the output, and the loss by the metric (accuracy
with labels, agreement without). `expected` is what the sensitivity pass foretold of the second. Seconds are CPU time of
the sensitivity pass. Results are stored under the name of the model (its folder's).
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, Final

import numpy as np

import onnxpq
from benchmarks.common.folders import mnist_folder
from benchmarks.common.processes import ROOT
from benchmarks.common.store import Results
from onnxpq.config.settings import Config, PQConfig, TrainingConfig
from onnxpq.config.target import TargetConfig
from onnxpq.report.run import Report
from onnxpq.targeting import stage

RESULTS = Results.of(__name__)
SETTINGS: Final = ((4, 16), (8, 16), (16, 16))
PLAIN: Final = TrainingConfig(epochs=0)
OUTPUTS: Final = {"minilm": "461"}
"""The output that a user of the model takes, where it is not the first."""

Arrays = dict[str, np.ndarray]
Row = dict[str, Any]


def digits() -> tuple[Path, Arrays, Arrays]:
    folder = ROOT / "models"
    return folder / "digits_mlp.onnx", *(_arrays(folder / f"digits_{part}.npz") for part in ("train", "test"))


def in_folder(folder: Path) -> tuple[Path, Arrays, Arrays]:
    return folder / "model.onnx", *(_arrays(folder / f"{part}.npz") for part in ("train", "test"))


def _arrays(path: Path) -> Arrays:
    with np.load(path) as found:
        return dict(found)


def measure(name: str, model: Path, train: Arrays, test: Arrays) -> list[Row]:
    """A row per setting."""
    seconds = [0.0]
    prepare = stage.prepare

    def timed(case: stage.Case) -> stage.Aim:
        started = time.process_time()
        try:
            return prepare(case)
        finally:
            seconds[0] = time.process_time() - started

    stage.prepare = timed
    rows = []
    for d, codewords in SETTINGS:
        plain = Config(pq=PQConfig(d, codewords), training=PLAIN, output=OUTPUTS.get(name))
        labels = "y" if "y" in train else None
        equal = onnxpq.compress(model, train, test=test, labels=labels, config=plain).report
        target = TargetConfig(size=equal.verification.bytes_after)
        config = Config(target=target, training=PLAIN, output=OUTPUTS.get(name))
        chosen = onnxpq.compress(model, train, test=test, labels=labels, config=config).report
        row = {"d": d, "K": codewords, "equal": figures(equal), "chosen": figures(chosen), "seconds": seconds[0]}
        row["expected"] = chosen.target.trials[chosen.target.chosen].expected_error
        print(name, json.dumps(row), flush=True)
        rows.append(row)
    stage.prepare = prepare
    return rows


def figures(report: Report) -> Row:
    """Bytes, error of the output that is looked at, and loss."""
    found = report.verification
    output = next(o for o in found.outputs if o.relative_error is not None)
    loss = None if output.agreement is None else 1 - output.agreement
    return {
        "bytes": found.bytes_after,
        "layers": sum(layer.bytes_after for layer in report.layers),
        "error": output.relative_error,
        "loss": loss if found.accuracy is None else found.accuracy.drop.value,
    }


def table(results: dict[str, list[Row]]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| model | one layout for all | bytes | error | chosen: bytes | expected | error | loss | seconds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in results.items():
        for row in rows:
            equal, chosen = row["equal"], row["chosen"]
            loss = "" if equal["loss"] is None else f"{100 * equal['loss']:.2f} -> {100 * chosen['loss']:.2f} %"
            lines.append(
                f"| {name} | d={row['d']}, K={row['K']} | {equal['bytes']} | {equal['error']:.3f} | "
                f"{chosen['bytes']} | {row['expected']:.3f} | {chosen['error']:.3f} | {loss} | {row['seconds']:.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--material", nargs="*", type=Path, default=[], help="folders of further models")
    parser.add_argument("--only", help="only this model")
    parser.add_argument("--table", action="store_true", help="only print the table of stored results")
    options = parser.parse_args()
    results = RESULTS.rows()
    cases = {"digits": digits}
    cases |= {name: lambda name=name: in_folder(mnist_folder(name)) for name in ("mnist_mlp", "mnist_lenet")}
    cases |= {folder.name: lambda folder=folder: in_folder(folder) for folder in options.material}
    for name, case in ({} if options.table else cases).items():
        if name not in results and options.only in (None, name):
            results = RESULTS.add(measure(name, *case()), name)
    print(table(results))

"""A classifier whose inputs are in different units, beside the same function with a scaler in front.

    python -m benchmarks units              # what is not stored yet, then the tables
    python -m benchmarks units --ordinary   # whether it would pay on models whose inputs are of one unit
    python -m benchmarks units --table

scikit-learn's breast-cancer data; an MLPClassifier behind a StandardScaler, exported by skl2onnx twice: as the pipeline
that it is, and with the scaler folded into the first weights, as pipelines are that are made fast, networks with a
`Normalization` layer, or MATLAB's z-score. Columns get standard deviations over `spread` decades, in random order, and
means of `offset` standard deviations; both at "own" are those that the data come with. Each row is the mean over
`SEEDS` splits of the data in halves: accuracy on the half that was not trained on, and the relative error of the
probabilities there. Nothing has labels but the test.

`--ordinary` gives every layer of other models a scale of its own for each input, or an origin, or both, whether it
pays by `onnxpq.quantization.scaling` or not: without training, and after a short one.
"""

import argparse
import copy
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np
import onnx
from numpy.typing import NDArray
from skl2onnx import to_onnx
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler

import onnxpq
from benchmarks.common import processes
from benchmarks.common.folders import material_of, mnist_folder
from benchmarks.common.store import Results, Rows
from onnxpq import runtime
from onnxpq.config.settings import Config, PQConfig, TrainingConfig
from onnxpq.errors import MissedError, OnnxpqError
from onnxpq.quantization import scaling

RESULTS: Final = Results.of(__name__)
SEEDS: Final = 3
HIDDEN: Final = (256, 64)
SPREADS: Final = ("own", "0", "2", "3", "4", "6", "8")
"""Decades."""

OFFSETS: Final = ("0", "10", "100", "1000", "10000")
LAYOUTS: Final = tuple(itertools.product((2, 4, 8), (16, 256)))
"""d, K."""

STEPS: Final = (0, 600)
OTHERS: Final = "other models"

MODELS: Final = processes.ROOT / "models"
ORDINARY: Final[dict[str, Callable[[], tuple[Path, ...]]]] = {
    "digits": lambda: (MODELS / "digits_mlp.onnx", MODELS / "digits_train.npz", MODELS / "digits_test.npz"),
    "mnist_lenet": lambda: files_of(mnist_folder("mnist_lenet")),
    "minilm": lambda: files_of(material_of("minilm")),
}
ORDINARY_LAYOUTS: Final = ((8, 16), (4, 256))
ORDINARY_STEPS: Final = (0, 200)
_ALL: Final = {"FEW": math.inf, "_pays": lambda *_: True}
WAYS: Final[dict[str, dict[str, Any]]] = {
    "as it is": {"SPREAD": math.inf, "OFFSET": math.inf, "FEW": 0.0},
    "scaled": {"SPREAD": 0.0, "OFFSET": math.inf, **_ALL},
    "centred": {"SPREAD": math.inf, "OFFSET": 0.0, **_ALL},
    "both": {"SPREAD": 0.0, "OFFSET": 0.0, **_ALL},
}
"""The settings of `onnxpq.quantization.scaling` that do so everywhere."""

Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class Case:
    """A model in both forms, and its data."""

    folded: onnx.ModelProto
    in_front: onnx.ModelProto
    train: Matrix
    test: Matrix
    labels: NDArray[np.int64]


@cache
def case(spread: str, offset: str, seed: int) -> Case:
    """The classifier of a split. What it learns does not depend on the units."""
    x, y = load_breast_cancer(return_X_y=True)
    own = x.std(0)
    units, rng = own, np.random.default_rng(seed)
    if spread != "own":
        units = np.logspace(-float(spread) / 2, float(spread) / 2, len(own))
        rng.shuffle(units)
    middle = x.mean(0) / own if offset == "own" else np.full(len(own), float(offset))
    x = (((x - x.mean(0)) / own + middle) * units).astype(np.float32)
    train, test, labels, wanted = train_test_split(x, y, test_size=0.5, random_state=seed, stratify=y)
    scaler = StandardScaler().fit(train.astype(np.float64))
    network = MLPClassifier(HIDDEN, random_state=seed, max_iter=300).fit(scaler.transform(train), labels)
    folded = copy.deepcopy(network)
    folded.coefs_[0] = network.coefs_[0] / scaler.scale_[:, None]
    folded.intercepts_[0] = network.intercepts_[0] - scaler.mean_ @ folded.coefs_[0]
    models = (
        to_onnx(model, train[:1], options={id(model): {"zipmap": False}}, target_opset=17)
        for model in (folded, Pipeline([("scaler", scaler), ("network", network)]))
    )
    return Case(*models, train, test, wanted)


def measure(given: Case, model: onnx.ModelProto, layout: tuple[int, int], steps: int) -> Rows:
    """What one model is after compression."""
    session = runtime.session(model, use_library=False)
    name, output = session.get_inputs()[0].name, session.get_outputs()[1].name
    config = Config(pq=PQConfig(*layout), training=TrainingConfig(steps=steps))
    expected = runtime.run(session, {name: given.test})[output]
    row: Rows = {"original": accuracy(expected, given.labels)}
    try:
        result = onnxpq.compress(model, {name: given.train}, test={name: given.test}, config=config)
    except MissedError as error:  # what is below the floor has its row, too
        result = error.result
        if not isinstance(result, onnxpq.Result):
            raise
    except OnnxpqError as error:
        return row | {"refused": str(error).partition(",")[0]}
    found = runtime.run(runtime.session(result.model), {name: given.test})[output]
    missed = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    row |= {"accuracy": accuracy(found, given.labels), "error": float(missed)}
    return row | {"layers": sum(layer.bytes_after for layer in result.report.layers)}


def files_of(folder: Path) -> tuple[Path, ...]:
    """Model, training and test data."""
    return folder / "model.onnx", folder / "train.npz", folder / "test.npz"


def accuracy(scores: Matrix, labels: NDArray[np.int64]) -> float:
    return float(np.mean(scores.argmax(1) == labels))


def missing(stored: Rows, *, quick: bool) -> Iterator[tuple[tuple[str, ...], tuple[Any, ...]]]:
    """The names of each row that is not stored, and what it is of."""
    settings = [(form, spread, "own") for form in ("folded", "in front") for spread in SPREADS]
    settings += [(form, "0", offset) for form in ("folded", "in front") for offset in OFFSETS]
    for steps, layout, (form, spread, offset) in itertools.product(STEPS, LAYOUTS, settings):
        if form == "in front" and (spread, offset) != ("0", "own"):
            continue  # the same function of the same values, whatever the units
        if quick and (layout not in ((4, 16), (8, 256)) or (steps and spread in ("2", "4"))):
            continue
        names = (form, f"d={layout[0]} K={layout[1]}", str(steps), f"spread {spread}, offset {offset}")
        place: Any = stored
        for name in names:
            place = place.get(name, {})
        if not place:
            yield names, (form, spread, offset, layout, steps)


def ordinary(stored: Rows) -> Iterator[tuple[tuple[str, ...], Rows]]:
    """Names and contents of the rows of other models that are not stored."""
    for name, layout, steps, way in itertools.product(ORDINARY, ORDINARY_LAYOUTS, ORDINARY_STEPS, WAYS):
        names = (name, f"d={layout[0]} K={layout[1]}", str(steps), way)
        if way in stored.get(name, {}).get(names[1], {}).get(names[2], {}):
            continue
        model, train, test = ORDINARY[name]()
        config = Config(pq=PQConfig(*layout, "auto"), training=TrainingConfig(steps=steps, batch_size=64))
        with mock.patch.multiple(scaling, **WAYS[way]):
            try:
                report = onnxpq.compress(model, train, test=test, config=config).report
            except MissedError as error:
                report = error.result.report
        errors = [output.relative_error for output in report.verification.outputs if output.relative_error is not None]
        yield names, {"error": errors[-1], "layers": sum(layer.bytes_after for layer in report.layers)}


def ordinary_table(stored: Rows) -> str:
    """Errors of each way, relative to those of the models as they are."""
    lines = [
        "",
        f"| model | layout | steps | as it is | {' | '.join(list(WAYS)[1:])} |",
        "|---" * (3 + len(WAYS)) + "|",
    ]
    for name, layouts in stored.items():
        for (layout, kinds), steps in itertools.product(layouts.items(), map(str, ORDINARY_STEPS)):
            errors = [kinds.get(steps, {}).get(way, {}).get("error", math.nan) for way in WAYS]
            relative = " | ".join(f"{100 * (error / errors[0] - 1):+.1f} %" for error in errors[1:])
            lines.append(f"| {name} | {layout} | {steps} | {errors[0]:.4f} | {relative} |")
    return "\n".join(lines)


def mean(rows: list[Rows]) -> Rows:
    """Of the splits; where one was refused, that is the row."""
    refused = [row for row in rows if "refused" in row]
    return refused[0] if refused else {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def table(stored: Rows) -> str:
    """All rows, a column for each layout."""
    lines = []
    for steps in STEPS:
        heads = [f"d={d} K={k}" for d, k in LAYOUTS]
        lines += ["", f"| {steps} steps | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
        rows: dict[str, list[str]] = {}
        for form in ("in front", "folded"):
            for index, head in enumerate(heads):
                for name, row in stored.get(form, {}).get(head, {}).get(str(steps), {}).items():
                    rows.setdefault(f"{form}, {name}", ["" for _ in heads])[index] = cell(row)
        lines += [f"| {name} | {' | '.join(cells)} |" for name, cells in rows.items()]
    return "\n".join(lines)


def cell(row: Rows) -> str:
    if "refused" in row:
        return "refused"
    return f"{100 * (row['accuracy'] - row['original']):+.1f}, {row['error']:.3f}, {row['layers']:.0f} B"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ordinary", action="store_true", help="other models, instead")
    parser.add_argument("--quick", action="store_true", help="two layouts, fewer spreads")
    parser.add_argument("--under", default="now", help="the name that rows are stored under, such as that of a commit")
    parser.add_argument("--table", action="store_true", help="only print the tables of what is stored")
    options = parser.parse_args()
    if not options.table:
        for names, row in rows_of(options):
            print(*names, row, flush=True)
            RESULTS.add(row, *names)
    for name, rows in RESULTS.rows().items():
        print(f"\n{name}:\n{ordinary_table(rows) if name == OTHERS else table(rows)}")


def rows_of(options: argparse.Namespace) -> Iterator[tuple[tuple[str, ...], Rows]]:
    """Names and contents of the rows that are asked for and not stored."""
    if options.ordinary:
        for names, row in ordinary(RESULTS.rows().get(OTHERS, {})):
            yield (OTHERS, *names), row
        return
    stored = RESULTS.rows().get(options.under, {})
    for names, (form, spread, offset, layout, steps) in missing(stored, quick=options.quick):
        cases = (case(spread, offset, seed) for seed in range(SEEDS))
        rows = [measure(it, it.folded if form == "folded" else it.in_front, layout, steps) for it in cases]
        yield (options.under, *names), mean(rows)

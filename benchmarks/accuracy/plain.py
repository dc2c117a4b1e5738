"""Accuracy of product quantization without data and without training, by sub-vector length and codewords.

It decides what `onnxpq compress` does where it is given no data: nothing repairs what is lost then, so codes have to be
gentle. Models: those of `models/` for MNIST and digits, and scikit-learn classifiers of tables that train in seconds.
"""

import argparse
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from sklearn import datasets as tables
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.common import datasets
from benchmarks.common.processes import ROOT
from benchmarks.common.store import Results
from onnxpq import rewriting, runtime
from onnxpq.config.settings import PQConfig
from onnxpq.graph import files
from onnxpq.graph.normalising import normalise
from onnxpq.graph.preparing import prepare
from onnxpq.network import matrices
from onnxpq.quantization import allocation, encoding

RESULTS = Results.of(__name__)
LAYOUTS: Final = ((8, 16), (4, 16), (2, 16), (1, 16), (8, 256), (4, 256), (3, 256), (2, 256), (1, 256))
"""d and K."""

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A model with test data and labels, made when it is asked for."""

    name: str
    make: Callable[[], tuple[Any, Arrays, np.ndarray]]


def _mnist(name: str, *, flat: bool) -> tuple[Any, Arrays, np.ndarray]:
    _, _, images, labels = datasets.mnist()
    return ROOT / "models" / f"{name}.onnx", {"input": images.reshape(len(images), -1) if flat else images}, labels


def _digits() -> tuple[Any, Arrays, np.ndarray]:
    with np.load(ROOT / "models" / "digits_test.npz") as test:
        return ROOT / "models" / "digits_mlp.onnx", {"X": test["X"]}, test["y"]


def _table(load: Callable[..., Any], hidden: tuple[int, ...], *, scaled: bool) -> tuple[Any, Arrays, np.ndarray]:
    from skl2onnx import to_onnx  # noqa: PLC0415 -- only this case needs it

    x, y = load(return_X_y=True)
    train, test, train_labels, labels = train_test_split(x, y, test_size=0.3, random_state=0, stratify=y)
    network = MLPClassifier(hidden, max_iter=400, random_state=0)
    model = (make_pipeline(StandardScaler(), network) if scaled else network).fit(train, train_labels)
    proto = to_onnx(model, test[:1].astype(np.float32), options={"zipmap": False}, target_opset=17)
    return proto, {"X": test.astype(np.float32)}, labels


CASES: Final = (
    Case("digits_mlp", _digits),
    Case("breast cancer 128-64", functools.partial(_table, tables.load_breast_cancer, (128, 64), scaled=True)),
    Case("wine 64-32", functools.partial(_table, tables.load_wine, (64, 32), scaled=True)),
    Case("iris 64-64", functools.partial(_table, tables.load_iris, (64, 64), scaled=True)),
    Case("digits 64-32, raw pixels", functools.partial(_table, tables.load_digits, (64, 32), scaled=False)),
    Case("mnist_mlp", functools.partial(_mnist, "mnist_mlp", flat=True)),
    Case("mnist_lenet", functools.partial(_mnist, "mnist_lenet", flat=False)),
)


def _accuracy(model: Any, inputs: Arrays, labels: np.ndarray) -> float:
    outputs = runtime.run(runtime.session(model), inputs)
    answers = [v.argmax(-1) if v.ndim == 2 else v for v in outputs.values()]
    return round(100 * max(float((answer == labels).mean()) for answer in answers), 2)


def rows_of(case: Case) -> Iterator[tuple[str, dict[str, Any]]]:
    """The original, and product quantization with each layout: points of accuracy and bytes of the file."""
    source, inputs, labels = case.make()
    original = files.load(source)
    yield "original", {"accuracy": _accuracy(original, inputs, labels), "bytes": len(files.to_bytes(original))}
    prepared, normal = prepare(original), normalise(original)
    layers, _ = rewriting.find(prepared)
    for d, codewords in LAYOUTS:
        tensors = {}
        for layer in layers:
            layout = allocation.layout_of(layer, PQConfig(d, codewords))
            tensors[layer.weight] = encoding.quantize(matrices.weight(normal, layer), layout, seed=0).freeze()
        compressed = rewriting.rewrite(prepared, layers, tensors)
        yield (
            f"{d}, {codewords}",
            {"accuracy": _accuracy(compressed, inputs, labels), "bytes": len(files.to_bytes(compressed))},
        )


def table(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    """Points of accuracy lost and times smaller, a line per layout."""
    rows = {name: own for name, own in rows.items() if "original" in own}
    lines = ["| d, K | " + " | ".join(rows) + " |", "|---|" + "---|" * len(rows)]
    for d, codewords in LAYOUTS:
        cells = []
        for own in rows.values():
            before, after = own["original"], own.get(f"{d}, {codewords}")
            if after is None:
                cells.append("")
                continue
            lost, ratio = before["accuracy"] - after["accuracy"], before["bytes"] / after["bytes"]
            cells.append(f"{lost:.1f} ({ratio:.1f}x)")
        lines.append(f"| {d}, {codewords} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module's description."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only print the table")
    parser.add_argument("--only", help="only this model")
    options = parser.parse_args(arguments)
    for case in CASES:
        known = len(RESULTS.rows().get(case.name, {})) > len(LAYOUTS)
        if not options.table and not known and options.only in (None, case.name):
            for name, row in rows_of(case):
                RESULTS.add(row, case.name, name)
    print(table(RESULTS.rows()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

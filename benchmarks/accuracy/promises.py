"""Whether the drop that a report promises is the one that other samples show, within the interval that it states.

For each model and seed: `onnxpq.compress` by product quantization alone, verified on some test images that the seed
draws; then both models on all other test images, in plain onnxruntime sessions, counted here. The report says a drop
with a 95 % interval; the other images have one of their own. Both are drawn from the same images, so their difference
is within the root of the sum of the squared half widths in 95 % of the runs, if the intervals are right.
"""

import argparse
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

import onnxpq
from benchmarks.common import datasets
from benchmarks.common.processes import ROOT
from benchmarks.common.store import Results

RESULTS = Results.of(__name__)
SEEDS: Final = range(20)
TRAIN, TEST = 2000, 1000
"""Images that statistics are taken from, and that the report verifies on; the others of the test set check it."""

MODELS: Final = {
    "mnist_mlp": (datasets.mnist, 8),
    "mnist_lenet": (datasets.mnist, 16),
    "cifar_quick": (datasets.cifar10, 8),
}
"""Where the images come from, and how long sub-vectors are: long enough that something is lost."""


def _shaped(images: NDArray[Any], shape: list[Any]) -> NDArray[Any]:
    return images.reshape(len(images), -1) if len(shape) == 2 else images


def _right(model: bytes | str, name: str, images: NDArray[Any], labels: NDArray[Any]) -> NDArray[np.bool_]:
    options = onnxruntime.SessionOptions()
    options.register_custom_ops_library(onnxpq.library_path())
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    parts = [session.run(None, {name: images[i : i + 500]})[0].argmax(-1) for i in range(0, len(images), 500)]
    return np.concatenate(parts) == labels


def run(name: str, seed: int) -> dict[str, float]:
    """One compression: the promised drop and its interval, and the drop on the other images, in points."""
    load, d = MODELS[name]
    train, known, images, labels = load()
    path = str(ROOT / "models" / f"{name}.onnx")
    given = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()[0]
    train, images = _shaped(train, given.shape), _shaped(images, given.shape)
    order = np.random.default_rng(seed).permutation(len(images))
    chosen, others = order[:TEST], order[TEST:]
    config = onnxpq.Config(pq=onnxpq.PQConfig(d), training=onnxpq.TrainingConfig(epochs=0), seed=seed, floor=1.0)
    result = onnxpq.compress(
        path,
        {given.name: train[:TRAIN], "y": known[:TRAIN]},
        test={given.name: images[chosen], "y": labels[chosen]},
        labels="y",
        config=config,
    )
    accuracy = result.report.verification.accuracy
    if accuracy is None:
        raise AssertionError("labels of classes have an accuracy")
    original, compressed = (
        _right(model, given.name, images[others], labels[others]) for model in (path, onnxpq_bytes(result))
    )
    lost = original.astype(float) - compressed
    return {
        "promised": 100 * accuracy.drop.value,
        "low": 100 * accuracy.drop.low,
        "high": 100 * accuracy.drop.high,
        "measured": 100 * float(lost.mean()),
        "standard_error": 100 * float(lost.std(ddof=1) / np.sqrt(len(lost))),
    }


def onnxpq_bytes(result: onnxpq.Result) -> bytes:
    """The compressed model as bytes."""
    from onnxpq.graph import files  # noqa: PLC0415 -- until results give out bytes

    return files.to_bytes(result.model)


def agrees(row: dict[str, float]) -> bool:
    """Whether promise and measurement differ by no more than both intervals together allow."""
    gap = row["measured"] - row["promised"]
    half = row["high"] - row["promised"] if gap > 0 else row["promised"] - row["low"]
    return abs(gap) <= float(np.hypot(half, 1.96 * row["standard_error"]))


def table(rows: dict[str, dict[str, dict[str, float]]]) -> str:
    """A line per model."""
    lines = [
        "| model | runs | promised drop, points | half interval | measured | within |",
        "|---|---|---|---|---|---|",
    ]
    for name, own in rows.items():
        found = list(own.values())
        mean = {key: float(np.mean([row[key] for row in found])) for key in found[0]}
        inside = sum(map(agrees, found))
        lines.append(
            f"| {name} | {len(found)} | {mean['promised']:.2f} | {(mean['high'] - mean['low']) / 2:.2f} | "
            f"{mean['measured']:.2f} | {inside} of {len(found)} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module's description."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args(arguments)
    for name in MODELS:
        for seed in SEEDS:
            if not options.table and str(seed) not in RESULTS.rows().get(name, {}):
                RESULTS.add(run(name, seed), name, str(seed))
    print(table(RESULTS.rows()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

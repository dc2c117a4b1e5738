"""Whether the drop that a report promises is the one that other samples show, within the interval that it states.

For each model and seed: `onnxpq.compress` by product quantization alone, verified on some test images that the seed
draws; then both models on all other test images, in plain onnxruntime sessions, counted here. The report says a drop
with a 95 % interval; the other images have one of their own. Both are drawn from the same images, so their difference
is within the root of the sum of the squared half widths in 95 % of the runs, if the intervals are right.

Sixty runs tell that share to 6 points. So the first model of each is looked at again on thousands of other draws of the
test images, which takes no more compressing: the report's interval is that of the class which works it out there.
"""

import argparse
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

import onnxpq
from benchmarks.common import datasets
from benchmarks.common.processes import ROOT
from benchmarks.common.store import Results
from onnxpq.support.figures import Interval
from onnxpq.verification.metrics import Correct

RESULTS = Results.of(__name__)
SEEDS: Final = range(20)
TRAIN, TEST = 2000, 1000
"""Images that statistics are taken from, and that the report verifies on; the others of the test set check it."""

DRAWS: Final = 5000
DRAWN: Final = "draws"
"""Of other images to verify on, and the name of that row."""

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


@dataclass(frozen=True)
class Answers:
    """A compression, and which images of the test set both models are right on.

    Attributes:
        promised: the drop that the report says.
        original: [N], in the order that the seed draws: the first `TEST` are those that the report verified on.
        compressed: likewise.
    """

    promised: Interval
    original: NDArray[np.bool_]
    compressed: NDArray[np.bool_]


def answers(name: str, seed: int) -> Answers:
    """One compression."""
    load, d = MODELS[name]
    train, known, images, labels = load()
    path = str(ROOT / "models" / f"{name}.onnx")
    given = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).get_inputs()[0]
    train, images = _shaped(train, given.shape), _shaped(images, given.shape)
    order = np.random.default_rng(seed).permutation(len(images))
    chosen = order[:TEST]
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
    return Answers(
        accuracy.drop,
        *(_right(model, given.name, images[order], labels[order]) for model in (path, onnxpq_bytes(result))),
    )


def row(promised: Interval, original: NDArray[np.bool_], compressed: NDArray[np.bool_]) -> dict[str, float]:
    """A promised drop with its interval, and the drop on other images, in points."""
    lost = original.astype(float) - compressed
    return {
        "promised": 100 * promised.value,
        "low": 100 * promised.low,
        "high": 100 * promised.high,
        "measured": 100 * float(lost.mean()),
        "standard_error": 100 * float(lost.std(ddof=1) / np.sqrt(len(lost))),
    }


def run(name: str, seed: int) -> dict[str, float]:
    """One compression: what its report promises, and what the other images show."""
    found = answers(name, seed)
    return row(found.promised, found.original[TEST:], found.compressed[TEST:])


def share_of_draws(name: str) -> float:
    """The share of `DRAWS` draws of the images to verify on whose interval agrees with the others."""
    found = answers(name, SEEDS[0])
    rng = np.random.default_rng(0)
    # A label of 1 and answers of 1 where they are right and 0 where not.
    one = np.ones(TEST, np.int64)
    agreeing = 0
    for _ in range(DRAWS):
        order = rng.permutation(len(found.original))
        chosen, others = order[:TEST], order[TEST:]
        counts = Correct()
        counts.add(one, found.original[chosen].astype(np.int64), found.compressed[chosen].astype(np.int64))
        agreeing += agrees(row(counts.report(name).drop, found.original[others], found.compressed[others]))
    return agreeing / DRAWS


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
        "| model | runs | promised drop, points | half interval | measured | within | of other draws |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, own in rows.items():
        found = [entry for key, entry in own.items() if key != DRAWN]
        mean = {key: float(np.mean([row[key] for row in found])) for key in found[0]}
        inside, drawn = sum(map(agrees, found)), own.get(DRAWN, {"share": np.nan})["share"]
        lines.append(
            f"| {name} | {len(found)} | {mean['promised']:.2f} | {(mean['high'] - mean['low']) / 2:.2f} | "
            f"{mean['measured']:.2f} | {inside} of {len(found)} | {100 * drawn:.1f} % |"
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
        if not options.table and DRAWN not in RESULTS.rows()[name]:
            RESULTS.add({"share": share_of_draws(name)}, name, DRAWN)
    print(table(RESULTS.rows()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

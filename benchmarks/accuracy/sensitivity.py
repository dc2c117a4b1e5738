"""Whether the error that is expected of a target is found, and whether the bytes that it allows are used.

    python -m benchmarks sensitivity            # what is not stored yet, then the table
    python -m benchmarks sensitivity --points   # how much codewords learn by heart, against the formula for it
    python -m benchmarks sensitivity --table

Hand-made models in which one weight is nearly all of the file, where no other can make up for what is expected of it
wrongly, and the digits. Nothing is trained. Errors are relative L2 errors of the output on the samples that decide;
"first" is the first choice, "chosen" the last one, if what was found corrected what was expected.
"""

import argparse
import itertools
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

import onnxpq
from benchmarks.common.processes import ROOT
from benchmarks.common.store import Results
from onnxpq.config.settings import Config, TrainingConfig
from onnxpq.config.target import TargetConfig
from onnxpq.pq import Layout, codec
from onnxpq.quantization import curves

RESULTS: Final = Results.of(__name__)
RATIOS: Final = (8, 16)
UNLIMITED: Final = 1e6
"""The floor: what is measured is the error, however large."""

CHAINS: Final = {
    "tall head": (64, 200, 120, 6625),
    "dominant layer": (784, 128, 4096, 512, 10),
}
"""Widths of fully-connected layers with a Relu between each two."""

Arrays = dict[str, np.ndarray]
Row = dict[str, Any]


def table_of_words() -> tuple[onnx.ModelProto, Arrays]:
    """A table [30000, 128] whose first rows are asked for most, the mean of 16 rows, and a layer."""
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gather", ["words", "ids"], ["vectors"], name="table"),
        helper.make_node("ReduceMean", ["vectors"], ["mean"], axes=[1], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["y"], name="head"),
    ]
    weights = {"words": random.standard_normal((30000, 128)), "weight": 0.1 * random.standard_normal((128, 50))}
    ids = (30000 * random.random((1500, 16)) ** 2).astype(np.int64)
    return _model(nodes, ("ids", TensorProto.INT64, 16), 50, weights), {"ids": ids}


def chain(widths: tuple[int, ...]) -> tuple[onnx.ModelProto, Arrays]:
    """Layers and inputs of low rank and some noise, as trained ones are."""
    random = np.random.default_rng(0)
    nodes, weights, last = [], {}, len(widths) - 2
    for i, (columns, rows) in enumerate(itertools.pairwise(widths)):
        weights[f"w{i}"] = 1.4 * _low_rank(random, rows, columns, min(rows, columns) // 6) / columns**0.5
        made = "y" if i == last else f"h{i}"
        nodes.append(helper.make_node("Gemm", [f"a{i}" if i else "x", f"w{i}"], [made], name=f"fc{i}", transB=1))
        if i < last:
            nodes.append(helper.make_node("Relu", [made], [f"a{i + 1}"], name=f"relu{i}"))
    x = _low_rank(random, 1200, widths[0], widths[0] // 4).astype(np.float32)
    return _model(nodes, ("x", TensorProto.FLOAT, widths[0]), widths[-1], weights), {"x": x}


def _low_rank(random: np.random.Generator, rows: int, columns: int, rank: int) -> np.ndarray:
    rank = max(rank, 4)
    parts = random.standard_normal((rows, rank)) @ random.standard_normal((rank, columns)) / rank**0.5
    return parts + 0.3 * random.standard_normal((rows, columns))


def _model(nodes: list[onnx.NodeProto], given: tuple[str, int, int], wide: int, weights: Arrays) -> onnx.ModelProto:
    name, kind, size = given
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info(name, kind, ["N", size])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", wide])],
        [numpy_helper.from_array(values.astype(np.float32), weight) for weight, values in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def digits() -> tuple[onnx.ModelProto, Arrays]:
    with np.load(ROOT / "models" / "digits_train.npz") as found:
        return onnx.load(ROOT / "models" / "digits_mlp.onnx"), {"X": found["X"]}


def cases() -> Iterator[tuple[str, onnx.ModelProto, Arrays]]:
    yield "table of words", *table_of_words()
    yield from ((name, *chain(widths)) for name, widths in CHAINS.items())
    yield "digits", *digits()


def measure(model: onnx.ModelProto, data: Arrays, ratio: int) -> Row:
    config = Config(target=TargetConfig(ratio=ratio), training=TrainingConfig(epochs=0), floor=UNLIMITED)
    report = onnxpq.compress(model, data, config=config).report
    target = report.target
    if target is None:
        raise AssertionError("a target was given")
    errors = [(trial.expected_error, trial.relative_error) for trial in target.trials]
    return {"used": ratio / report.ratio, "first": errors[0], "chosen": errors[target.chosen], "trials": len(errors)}


def table(results: dict[str, dict[str, Row]]) -> str:
    lines = [
        "| model | ratio | bytes used | first: expected | found | chosen: expected | found | trials |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, rows in results.items():
        for ratio, row in rows.items():
            errors = " | ".join(f"{error:.3f}" for error in (*row["first"], *row["chosen"]))
            lines.append(f"| {name} | {ratio} | {100 * row['used']:.0f} % | {errors} | {row['trials']} |")
    return "\n".join(lines)


def points() -> str:
    """The error on what codewords were learned from, of that with 256 sub-vectors for each, by their number."""
    counts = (1, 2, 4, 8, 16, 32, 64)
    lines = ["| sub-vectors | d | K | " + " | ".join(map(str, counts)) + " |", "|---" * (3 + len(counts)) + "|"]
    random = np.random.default_rng(0)
    for d in (2, 8, 32):
        for codewords in (16, 256):
            normal = random.standard_normal((256 * codewords, d))
            near = random.standard_normal((2 * codewords, d))[np.arange(len(normal)) % (2 * codewords)]
            kinds = {
                "normal": normal,
                "low rank": _low_rank(random, len(normal), d, 4),
                "clusters": near + 0.3 * normal,
            }
            for kind, values in kinds.items():
                whole, *some = (_error(values[: count * codewords], codewords) for count in (256, *counts))
                shares = " | ".join(f"{error / whole:.2f}" for error in some)
                lines.append(f"| {kind} | {d} | {codewords} | {shares} |")
    expected = " | ".join(f"{curves.optimism(count):.2f}" for count in counts)
    return "\n".join([*lines, f"| expected | | | {expected} |"])


def _error(values: np.ndarray, codewords: int) -> float:
    """Relative squared error of sub-vectors [n, d] on codewords learned from them."""
    matrix = torch.from_numpy(values.astype(np.float32))
    layout = Layout(*matrix.shape, matrix.shape[1], codewords, 1)
    found = codec.decode(*codec.encode(matrix, layout, generator=torch.Generator().manual_seed(0)), layout)
    return float((found - matrix).square().sum() / matrix.square().sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", action="store_true", help="how much is learned by heart, by sub-vectors a codeword")
    parser.add_argument("--table", action="store_true", help="only print the table of stored results")
    options = parser.parse_args()
    if options.points:
        print(points())
        return
    results = RESULTS.rows()
    for name, model, data in () if options.table else cases():
        for ratio in RATIOS:
            if str(ratio) not in results.get(name, {}):
                results = RESULTS.add(measure(model, data, ratio), name, str(ratio))
    print(table(results))

"""The quantizer on real layers, step by step and against onnxruntime's 2-bit form; and its speed against faiss's.

    python -m benchmarks quantizer                               # both MNIST models
    python -m benchmarks quantizer --material FOLDER...          # also: folders with model.onnx, train.npz, test.npz
    python -m benchmarks quantizer --quick                       # one layer of each model, two layouts; not the model
    python -m benchmarks quantizer --rows                        # error by the number of rows that were looked at
    python -m benchmarks quantizer --orders                      # error by the order of the inputs
    python -m benchmarks quantizer --speed --faiss-python PATH   # PATH: a Python with the package faiss-cpu
    python -m benchmarks quantizer --table                       # only prints what is stored

The one layer is the first large one. The error of a layer is that of its outputs on inputs that the quantizer has not
seen, relative to the outputs: ``sqrt(tr(E H E^T) / tr(W H W^T))`` with H of the test data. Nothing is trained here.
Results are stored under the name of the model (its folder's).
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper

import onnxpq
from benchmarks.common import processes
from benchmarks.common.folders import mnist_folder
from benchmarks.common.store import Results
from onnxpq import rewriting, runtime
from onnxpq.config.settings import Config, PQConfig, TrainingConfig
from onnxpq.data import Dataset, input_specs
from onnxpq.data.reading import Reading, load
from onnxpq.graph import files
from onnxpq.graph.layers import Layer
from onnxpq.graph.normalising import normalise
from onnxpq.network import matrices
from onnxpq.pq import calibrated, codec
from onnxpq.pq.layout import Layout
from onnxpq.pq.statistics import InputStatistics
from onnxpq.quantization import allocation, calibration, encoding, ordering

RESULTS = Results.of(__name__)
LAYOUTS = {
    "d=8, K=16": PQConfig(8, 16),
    "d=4, K=16": PQConfig(4, 16),
    "d=8, K=256, one codebook": PQConfig(8, 256, "layer"),
    "d=4, K=256, one codebook": PQConfig(4, 256, "layer"),
}
QUICK = ("d=8, K=16", "d=4, K=256, one codebook")
LARGE = 10_000
"""Weights of the smallest layer that is looked at."""

ROW_COUNTS = (200, 500, 2000, 8000)
SPEED_SIZE, SPEED_D, SPEED_K, SPEED_THREADS = 4096, 4, 16, 2

Matrix = torch.Tensor
Row = dict[str, Any]


def relative(matrix: Matrix, approximation: Matrix, moment: Matrix) -> float:
    """Relative error of the outputs."""
    missed, whole = (torch.einsum("oi,oi->", m @ moment, m) for m in (matrix - approximation, matrix))
    return float((missed / whole).sqrt())


def two_bit(matrix: Matrix) -> tuple[Matrix, int]:
    """What onnxruntime's MatMulNBits of 2 bits, block 128, makes of a weight [out, in], and its bytes."""
    from onnxruntime.quantization.matmul_nbits_quantizer import (  # noqa: PLC0415 -- it loads slowly
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    out, columns = matrix.shape
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [None, s]) for n, s in (("x", columns), ("y", out)))
    weight = numpy_helper.from_array(matrix.T.contiguous().numpy(), "W")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "W"], ["y"], name="fc")], "fc", [x], [y], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    config = DefaultWeightOnlyQuantConfig(block_size=128, is_symmetric=False, bits=2)
    quantizer = MatMulNBitsQuantizer(model, bits=2, block_size=128, is_symmetric=False, algo_config=config)
    quantizer.process()
    quantized = quantizer.model.model
    size = sum(numpy_helper.to_array(tensor).nbytes for tensor in quantized.graph.initializer)
    identity = np.eye(columns, dtype=np.float32)
    decoded = runtime.run(runtime.session(quantized, use_library=False), {"x": identity})["y"]
    return torch.from_numpy(decoded.T.copy()), size


def steps(matrix: Matrix, layout: Layout, known: InputStatistics) -> Iterator[tuple[str, Callable[[], Matrix]]]:
    """The quantizer with more and more of its parts, by name."""
    moment = torch.from_numpy(known.regularized())

    def plain() -> Matrix:
        return encoding.quantize(matrix, layout, seed=0).matrix()

    def partly(rounds: int, *, feedback: bool) -> Matrix:
        whole, fed = calibrated.ROUNDS, calibrated.feedback
        calibrated.ROUNDS = rounds
        if not feedback:
            calibrated.feedback = lambda _, state: state
        try:
            parts = calibrated.encode(matrix, layout, moment, generator=torch.Generator().manual_seed(0))
        finally:
            calibrated.ROUNDS, calibrated.feedback = whole, fed
        return codec.decode(*parts, layout)

    def start() -> Matrix:
        problem = calibrated._padded(matrix, layout, moment)
        state = calibrated.start(problem, torch.Generator().manual_seed(0))
        return state.matrix(layout)

    yield "k-means", plain
    yield "weighted k-means, scales", start
    yield "+ codebooks by least squares", lambda: partly(0, feedback=False)
    yield "+ feedback", lambda: partly(0, feedback=True)
    yield "+ rounds (all)", lambda: partly(calibrated.ROUNDS, feedback=True)
    yield "all but feedback", lambda: partly(calibrated.ROUNDS, feedback=False)


def layer_rows(folder: Path, *, quick: bool) -> Iterator[Row]:
    """A row per layer and layout."""
    for layer, matrix, seen, new in _large_layers(folder, quick=quick):
        approximation, size = two_bit(matrix)
        moment = torch.from_numpy(new.second_moment).float()
        baseline = {"bytes": size, "error": relative(matrix, approximation, moment)}
        for name in QUICK if quick else LAYOUTS:
            settings = LAYOUTS[name]
            layout = allocation.layout_of(layer, settings)
            row: Row = {"layer": layer.node, "shape": list(matrix.shape), "layout": name, "bytes": layout.nbytes}
            row |= {"rows": seen.rows, "2 bits": baseline, "errors": {}}
            for step, run in steps(matrix, layout, seen):
                row["errors"][step] = relative(matrix, run(), moment)
            yield row


def row_rows(folder: Path) -> Iterator[Row]:
    """The error by the number of rows that were looked at, for the first large layer."""
    for layer, matrix, seen, new in _large_layers(folder, quick=True):
        layout = allocation.layout_of(layer, LAYOUTS["d=8, K=16"])
        moment = torch.from_numpy(new.second_moment).float()
        row: Row = {"layer": layer.node, "shape": list(matrix.shape), "by rows": {}}
        for count in (*(count for count in ROW_COUNTS if count < seen.rows), calibration.MAX_ROWS):
            whole, calibration.MAX_ROWS = calibration.MAX_ROWS, count
            try:
                few = dict(_collect(folder, [layer], "train"))[layer.weight]
            finally:
                calibration.MAX_ROWS = whole
            found = encoding.quantize(matrix, layout, seed=0, statistics=few).matrix()
            row["by rows"][few.rows] = relative(matrix, found, moment)
        yield row


def orders(matrix: Matrix, moment: Matrix, d: int) -> dict[str, Matrix]:
    """Orders of a layer's inputs that might quantize better than the given one: permutations [in], by name."""
    power, weight = moment.diagonal(), matrix.square().sum(0)
    return {
        "given": torch.arange(len(power)),
        "interleaved": _interleaved(len(power), d),
        "dealt by power": _dealt(power, d),
        "dealt by power and weights": _dealt(power * weight, d),
        "random": torch.randperm(len(power), generator=torch.Generator().manual_seed(0)),
        "power of the input": torch.argsort(power),
        "squared weights": torch.argsort(weight),
        "their product": torch.argsort(power * weight),
        "correlated inputs together": _chain(moment),
        "correlated weights together": _chain(matrix.T @ matrix),
    }


def _interleaved(count: int, d: int) -> Matrix:
    """Sub-vectors of inputs that are far apart: of M of them, the m-th has the inputs m, m + M, m + 2 M, ..."""
    sub_vectors = -(-count // d)
    order = torch.arange(d * sub_vectors).reshape(d, sub_vectors).T.flatten()
    return order[order < count]


def _dealt(size: Matrix, d: int) -> Matrix:
    """The order of `--reorder`."""
    return torch.from_numpy(ordering.dealt(size.numpy(), d))


def _chain(products: Matrix) -> Matrix:
    """From the largest on, always the one that is most correlated with the last, of those that are left."""
    norm = products.diagonal().clamp_min(1e-30).sqrt()
    likeness = (products / norm / norm.unsqueeze(1)).abs()
    chain = [int(norm.argmax())]
    for _ in range(len(norm) - 1):
        likeness[:, chain[-1]] = -1
        chain.append(int(likeness[chain[-1]].argmax()))
    return torch.tensor(chain)


def order_rows(folder: Path) -> Iterator[Row]:
    """The error by the order of the inputs, for the first large layer."""
    for layer, matrix, seen, new in _large_layers(folder, quick=True):
        moment = torch.from_numpy(new.second_moment).float()
        known = torch.from_numpy(seen.regularized())
        for name in QUICK:
            layout = allocation.layout_of(layer, LAYOUTS[name])
            row: Row = {"layer": layer.node, "shape": list(matrix.shape), "layout": name, "errors": {}}
            for order, index in orders(matrix, known, layout.sub_vector).items():
                parts = calibrated.encode(
                    matrix[:, index], layout, known[index][:, index], generator=torch.Generator().manual_seed(0)
                )
                found = torch.empty_like(matrix)
                found[:, index] = codec.decode(*parts, layout)
                row["errors"][order] = relative(matrix, found, moment)
            yield row


def _large_layers(folder: Path, *, quick: bool) -> Iterator[tuple[Layer, Matrix, InputStatistics, InputStatistics]]:
    model = normalise(files.load(folder / "model.onnx"))
    layers = rewriting.find(model, min_weights=LARGE)[0][: 1 if quick else None]
    seen, new = (dict(_collect(folder, layers, part)) for part in ("train", "test"))
    for layer in layers:
        weight = model.graph.initializers[layer.weight].const_value
        yield layer, matrices.matrix_of(weight.numpy(), layer), seen[layer.weight], new[layer.weight]


def _collect(folder: Path, layers: list[Layer], part: str) -> Iterator[tuple[str, InputStatistics]]:
    model = files.load(folder / "model.onnx")
    data = load(folder / f"{part}.npz", Reading(input_specs(model)))
    yield from calibration.collect(normalise(model), layers, Dataset(data.inputs), seed=0)


def model_rows(folder: Path) -> Iterator[Row]:
    """The whole model without training: k-means, and what the data bring."""
    for name, data in (("k-means", None), ("all", folder / "train.npz")):
        labels = "y" if "y" in np.load(folder / "test.npz").files else None
        config = Config(training=TrainingConfig(epochs=0))
        started = time.perf_counter()
        report = onnxpq.compress(
            folder / "model.onnx", data, test=folder / "test.npz", labels=labels, config=config
        ).report
        found = report.verification
        row: Row = {"start": name, "bytes": found.bytes_after, "error": found.outputs[0].relative_error}
        if found.accuracy is not None:
            row["wrong"] = [1 - found.accuracy.original.value, 1 - found.accuracy.compressed.value]
        yield row | {"seconds": time.perf_counter() - started}


def speed_rows(faiss_python: str) -> Iterator[Row]:
    """Ours and faiss's on the same matrix, and ours with statistics of inputs, each in a process of its own."""
    for name, python in (("onnxpq", sys.executable), ("faiss", faiss_python), ("weighted", sys.executable)):
        threads = {"OMP_NUM_THREADS": str(SPEED_THREADS), "MKL_NUM_THREADS": str(SPEED_THREADS)}
        printed = processes.output("quantizer_speed", name, python=python, environment=threads)
        yield {"quantizer": name, "threads": SPEED_THREADS, **json.loads(printed)}


def table(results: dict[str, Any]) -> str:
    """The stored results as Markdown tables."""
    lines = ["| model, layer | layout | bytes | 2 bits: bytes | 2 bits | k-means | weighted | + least squares"]
    lines[0] += " | + feedback | all | all but feedback |"
    lines.append("|---" * 11 + "|")
    for model, kinds in results.items():
        for row in kinds.get("layers", []):
            out, columns = row["shape"]
            errors = " | ".join(f"{error:.3f}" for error in row["errors"].values())
            base = f"{row['2 bits']['bytes']} | {row['2 bits']['error']:.3f}"
            name = f"{model} {row['layer'].split('/')[-2] if '/' in row['layer'][1:] else row['layer']} {columns}x{out}"
            lines.append(f"| {name} | {row['layout']} | {row['bytes']} | {base} | {errors} |")
    lines += ["", "| model | quantizer | file bytes | relative error of the outputs | wrong |", "|---" * 5 + "|"]
    for model, kinds in results.items():
        for row in kinds.get("model", []):
            wrong = " -> ".join(f"{100 * share:.2f} %" for share in row.get("wrong", []))
            lines.append(f"| {model} | {row['start']} | {row['bytes']} | {row['error']:.3f} | {wrong} |")
    return "\n".join(["\n".join(lines), *sentences(results)])


def sentences(results: dict[str, Any]) -> Iterator[str]:
    """What is stored of rows, orders and times; an empty line before each."""
    for model, kinds in results.items():
        for row in kinds.get("rows", []):
            found = ", ".join(f"{count} rows {error:.3f}" for count, error in row["by rows"].items())
            yield f"\n{model}, {row['layer']}: {found}"
        for row in kinds.get("orders", []):
            found = ", ".join(f"{order} {error:.4f}" for order, error in row["errors"].items())
            yield f"\n{model}, {row['layer']}, {row['layout']}: {found}"
    for row in results.get("speed", {}).get("runs", []):
        found = f"{row['seconds']:.1f} s, error {row['error']:.4f}, {row['MB']:.0f} MB"
        if "output error" in row:
            found += f", of the outputs {row['output error']:.3f} ({row['output error of onnxpq']:.3f} by k-means)"
        yield f"\n{row['quantizer']}: {found}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--material", nargs="*", type=Path, default=[], help="folders of other models and their data")
    parser.add_argument("--only-material", action="store_true", help="leave the MNIST models out")
    parser.add_argument("--quick", action="store_true", help="one layer of each model, two layouts")
    parser.add_argument("--rows", action="store_true", help="error by rows looked at, instead")
    parser.add_argument("--orders", action="store_true", help="error by the order of the inputs, instead")
    parser.add_argument("--speed", action="store_true", help="time against faiss, instead")
    parser.add_argument("--faiss-python", help="an interpreter that has faiss-cpu")
    parser.add_argument("--table", action="store_true", help="only print the table of stored results")
    options = parser.parse_args()
    if options.speed:
        if options.faiss_python is None:
            parser.error("--speed needs --faiss-python")
        RESULTS.add(list(speed_rows(options.faiss_python)), "speed", "runs")
    elif not options.table:
        mnist = [] if options.only_material else [mnist_folder(name) for name in ("mnist_mlp", "mnist_lenet")]
        for folder in (*mnist, *options.material):
            if options.rows:
                RESULTS.add(list(row_rows(folder)), folder.name, "rows")
            elif options.orders:
                RESULTS.add(list(order_rows(folder)), folder.name, "orders")
            else:
                RESULTS.add(list(layer_rows(folder, quick=options.quick)), folder.name, "layers")
                if not options.quick:
                    RESULTS.add(list(model_rows(folder)), folder.name, "model")
    print(table(RESULTS.rows()))

"""Tables that are looked up: what they lose at a size, by what their errors are taken to cost, and how long it takes.

    python -m benchmarks lookups            # MiniLM's table of words, the largest part of its file
    python -m benchmarks lookups --speed    # a table of random numbers, against the Gather of floats

The first prints, for some layouts of MiniLM's table alone (all layers as they are, no training), the relative error of
the sentence vectors and the two tasks of `benchmarks/common/tasks.py`: with all rows counting the same, by how often
each is looked up, and by the gradients of the output (`onnxpq.quantization.lookups`). The second prints the median
time of a call of a model that does nothing but look rows up, in turns with the original; onnxruntime with one thread,
on the operator library and on stock operators.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from benchmarks.common import tasks
from benchmarks.common.folders import material_of
from onnxpq import rewriting, runtime
from onnxpq.data import input_specs
from onnxpq.data.reading import Reading, load
from onnxpq.graph import files
from onnxpq.graph.normalising import normalise
from onnxpq.network import matrices
from onnxpq.pq.layout import Layout
from onnxpq.pq.reference import decode
from onnxpq.pq.tensor import PQTensor
from onnxpq.quantization import calibration, encoding, lookups
from onnxpq.quantization.lookups import Lookups

OUTPUT: Final = "461"
"""MiniLM's sentence vectors."""

LAYOUTS: Final = ((4, 256), (5, 256), (8, 256), (2, 16))
"""d, K; one codebook."""

WORDS: Final = 30_000
COLUMNS: Final = 384
ROUNDS: Final = 200


def losses() -> None:
    folder = material_of("minilm")
    model = files.load(folder / "model.onnx")
    normal = normalise(model)
    layers, _ = rewriting.find(model, tables=True)
    table = max((layer for layer in layers if layer.is_table), key=lambda layer: layer.weight_bytes)
    data = load(folder / "train.npz", Reading(input_specs(model)))
    counts = calibration.lookups(normal, [table], data, seed=0)[table.weight]
    uses = {
        "all the same": Lookups(),
        "by use": Lookups(lookups.importance_of(counts)),
        "by gradients": lookups.observe(normal, [table], OUTPUT, data, seed=0)[table.weight],
    }
    matrix = matrices.weight(normal, table)
    print(f"{table.node}: {table.out_features} x {table.in_features}, {table.weight_bytes:,} bytes")
    print("| d | K | times smaller | errors count | error of the rows | relative error | reviews | Lee |")
    print("|---|---|---|---|---|---|---|---|")
    original = tasks.measure("minilm", folder, folder / "model.onnx")
    print(f"| - | - | 1 | - | 0 | 0 | {100 * original['reviews']:.1f} % | {original['lee']:.3f} |")
    with tempfile.TemporaryDirectory() as scratch:
        for d, codewords in LAYOUTS:
            layout = Layout(table.out_features, table.in_features, d, codewords, 1)
            for name, use in uses.items():
                quantized = encoding.quantize(
                    matrix, layout, seed=0, statistics=use.statistics, importance=use.importance
                )
                frozen = quantized.freeze()
                decoded = decode(frozen.codebooks, frozen.codes, frozen.scales, frozen.in_features)
                stored = matrices.constant_of(normal, table, decoded)
                missed = np.linalg.norm(stored - matrix.numpy()) / np.linalg.norm(matrix.numpy())
                target = Path(scratch) / "small.onnx"
                files.save(rewriting.rewrite(model, [table], {table.weight: quantized.freeze()}), target)
                found = tasks.measure("minilm", folder, target)
                print(
                    f"| {d} | {codewords} | {table.weight_bytes / layout.nbytes:.1f} | {name} | {missed:.3f} "
                    f"| {found['relative_error']:.3f} | {100 * found['reviews']:.1f} % | {found['lee']:.3f} |",
                    flush=True,
                )


def speed() -> None:
    rng = np.random.default_rng(0)
    weight = numpy_helper.from_array(rng.standard_normal((WORDS, COLUMNS)).astype(np.float32), "words")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["words", "ids"], ["vectors"], name="table")],
        "lookup",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["N"])],
        [helper.make_tensor_value_info("vectors", TensorProto.FLOAT, ["N", COLUMNS])],
        [weight],
    )
    proto: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = files.load(proto)
    ((table,), _) = rewriting.find(model, tables=True)
    sessions = {"float32": session_of(model)}
    for d, codewords in LAYOUTS:
        sub_vectors = -(-COLUMNS // d)
        tensor = PQTensor(
            codebooks=rng.standard_normal((1, 1, codewords, d)).astype(np.float16),
            codes=rng.integers(0, codewords, (WORDS, 1, sub_vectors), np.uint8),
            scales=np.ones(WORDS, np.float32),
            in_features=COLUMNS,
        )
        small = rewriting.rewrite(model, [table], {table.weight: tensor})
        sessions[f"d={d} K={codewords}"] = session_of(small)
        sessions[f"d={d} K={codewords}, stock"] = session_of(small, use_library=False)
    print("| rows | table | microseconds |")
    print("|---|---|---|")
    for count in (48, 64 * 48):
        ids = rng.integers(0, WORDS, count)
        times: dict[str, list[float]] = {name: [] for name in sessions}
        for _ in range(ROUNDS):
            for name, session in sessions.items():
                started = time.perf_counter()
                session.run(None, {"ids": ids})
                times[name].append(time.perf_counter() - started)
        for name, found in times.items():
            print(f"| {count} | {name} | {1e6 * statistics.median(found):.0f} |")


def session_of(model: ir.Model, *, use_library: bool = True) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return runtime.session(model, use_library=use_library, options=options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", action="store_true", help="how long a lookup takes")
    speed() if parser.parse_args().speed else losses()

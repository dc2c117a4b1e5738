"""`PQMatMul` against the fully-connected layers that onnxruntime has: float32, dynamic int8, 4 and 2 bits.

    python -m benchmarks operator_speed                          # all sizes and batches, one and two threads
    python -m benchmarks operator_speed --sizes 4096x4096 500x10 --batches 1 64 --threads 1
    python -m benchmarks operator_speed --table                  # only prints what is stored
    python -m benchmarks operator_speed --table --plot speed.svg # and draws it (pip install matplotlib)

Sizes are inputs x outputs. All layers of a size are timed in turns, many short rounds each, so that what else runs on
the machine hits all of them; a figure is the median of its rounds, of whole `session.run` calls. "nothing" is a model
that copies X, what every call costs. Hot: the same buffers in every call of a round, the first three of which are not
counted. Cold: 64 MB of other memory are read before every call. Results are added to what is stored, which
says what processor and what onnxruntime they are of and takes those of no other.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

import onnxpq
from benchmarks.common.store import Times
from onnxpq.operators import body
from onnxpq.operators.schema import DOMAIN, OP_TYPE
from onnxpq.pq.packing import pack_codes

RESULTS = Times.of(__name__)
SIZES = ["256x256", "1024x1024", "1024x4096", "4096x4096"]
BATCHES = [1, 4, 16, 128]
FLUSH_BYTES = 64 << 20
ROUND_SECONDS = 0.004
MIN_CALLS = 3
"""Counted calls of a round at least, and calls before them: caches and threads have settled then."""
SPIN_SECONDS = 0.03
"""For so long at most the threads of a session keep a core busy after a call, in the hope of another one."""

Arrays = dict[str, np.ndarray]
Results = dict[str, dict[str, dict[str, float]]]
"""Case "INxOUT, batch, threads", layer, hot and cold: microseconds of a call."""
Layer = tuple[str, str, Arrays, list[onnx.AttributeProto]]
"""Domain, operator, constant inputs in order, attributes."""


def pq_layer(rng: np.random.Generator, size: tuple[int, int], d: int, codewords: int, *, fast: bool = False) -> Layer:
    in_features, out = size
    sub_vectors = -(-in_features // d)
    codes = rng.integers(0, codewords, (out, 1, sub_vectors)).astype(np.uint8)
    constants = {
        "codebooks": rng.standard_normal((1, sub_vectors, codewords, d)).astype(np.float16),
        "codes": pack_codes(codes, codewords),
        "scales": np.ones(out, np.float32),
        "bias": np.zeros(out, np.float32),
    }
    sizes = body.Sizes(out, in_features, 1, sub_vectors, codewords, d)
    dialect = body.Dialect.of(17, [sizes], has_fast=True)
    attributes = body.attributes(OP_TYPE, sizes, dialect, fast=fast)
    return DOMAIN, OP_TYPE, constants, [ir.to_proto(attribute) for attribute in attributes]


def bits_layer(rng: np.random.Generator, size: tuple[int, int], bits: int, block: int) -> Layer:
    in_features, out = size
    blocks = -(-in_features // block)
    constants = {
        "B": rng.integers(0, 256, (out, blocks, block * bits // 8)).astype(np.uint8),
        "scales": np.full((out, blocks), 0.01, np.float32),
    }
    # accuracy_level 4 (int8 activations) is the fast path; without it, weights are first widened to float32.
    attributes = {"K": in_features, "N": out, "bits": bits, "block_size": block, "accuracy_level": 4}
    return "com.microsoft", "MatMulNBits", constants, [helper.make_attribute(*pair) for pair in attributes.items()]


def int8_layer(rng: np.random.Generator, size: tuple[int, int]) -> Layer:
    constants = {
        "B": rng.integers(-127, 128, size).astype(np.int8),
        "scale": np.array(0.01, np.float32),
        "zero": np.array(0, np.int8),
    }
    return "com.microsoft", "DynamicQuantizeMatMul", constants, []


LAYERS: dict[str, Callable[[np.random.Generator, tuple[int, int]], Layer]] = {
    "nothing": lambda _rng, _size: ("", "Identity", {}, []),
    "float32": lambda rng, size: ("", "MatMul", {"B": rng.standard_normal(size).astype(np.float32)}, []),
    "int8": int8_layer,
    "4 bits": lambda rng, size: bits_layer(rng, size, 4, 32),
    "2 bits": lambda rng, size: bits_layer(rng, size, 2, 64),
    "pq d=4 K=16": lambda rng, size: pq_layer(rng, size, 4, 16),
    "pq d=4 K=16 fast": lambda rng, size: pq_layer(rng, size, 4, 16, fast=True),
    "pq d=2 K=16": lambda rng, size: pq_layer(rng, size, 2, 16),
    "pq d=8 K=256": lambda rng, size: pq_layer(rng, size, 8, 256),
}


def session_of(layer: Layer, size: tuple[int, int], threads: int) -> Any:
    import onnxruntime  # noqa: PLC0415 -- OMP_NUM_THREADS is set first

    domain, op_type, constants, attributes = layer
    node = helper.make_node(op_type, ["X", *constants], ["Y"], name="fc", domain=domain)
    node.attribute.extend(attributes)
    x = helper.make_tensor_value_info("X", TensorProto.FLOAT, ["N", size[0]])
    y = helper.make_tensor_value_info("Y", TensorProto.FLOAT, ["N", "out"])
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    imports = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    model = helper.make_model(
        helper.make_graph([node], "fc", [x], [y], initializers), opset_imports=imports, ir_version=8
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    return onnxpq.session(model, options=options)


def call_seconds(session: Any, x: np.ndarray, calls: int) -> float:
    """Mean of some calls in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        session.run(None, {"X": x})
    return (time.perf_counter() - start) / calls


def measure(size: tuple[int, int], batch: int, threads: int, rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds of a call, by layer: hot and cold."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((batch, size[0])).astype(np.float32)
    sessions = {name: session_of(make(rng, size), size, threads) for name, make in LAYERS.items()}
    for session in sessions.values():
        call_seconds(session, x, MIN_CALLS)
    calls = {name: max(MIN_CALLS, round(ROUND_SECONDS / call_seconds(s, x, MIN_CALLS))) for name, s in sessions.items()}
    flush = np.ones(FLUSH_BYTES // 8)
    hot: dict[str, list[float]] = {name: [] for name in sessions}
    cold: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            if threads > 1:
                time.sleep(SPIN_SECONDS)
            call_seconds(session, x, MIN_CALLS)
            hot[name].append(call_seconds(session, x, calls[name]))
            flush.sum()
            cold[name].append(call_seconds(session, x, 1))
    return {
        name: {"hot": 1e6 * statistics.median(hot[name]), "cold": 1e6 * statistics.median(cold[name])}
        for name in sessions
    }


def table(results: Results) -> str:
    """Microseconds hot / cold, one line for each size, batch and number of threads."""
    lines = ["| in x out, batch, threads | " + " | ".join(LAYERS) + " |", "|---" * (len(LAYERS) + 1) + "|"]
    for case, layers in results.items():
        cells = [f"{layers[name]['hot']:.0f} / {layers[name]['cold']:.0f}" for name in LAYERS]
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratios(results: Results) -> str:
    """How many times as fast `pq d=4 K=16` is, hot / cold, against other layers and against itself on one thread."""
    lines = [
        "| in x out, batch, threads | float32 | int8 | best of 4 and 2 bits | one thread | d=2: times d=4 |",
        "|---|---|---|---|---|---|",
    ]
    for case, layers in results.items():
        ours, cells = layers["pq d=4 K=16"], []
        for others in (["float32"], ["int8"], ["4 bits", "2 bits"]):
            best = {key: min(layers[name][key] for name in others) / ours[key] for key in ("hot", "cold")}
            cells.append(f"{best['hot']:.1f} / {best['cold']:.1f}")
        alone = results.get(f"{case.rpartition(', ')[0]}, 1", layers)["pq d=4 K=16"]
        cells.append(f"{alone['hot'] / ours['hot']:.2f} / {alone['cold'] / ours['cold']:.2f}")
        cells.append(f"{layers['pq d=2 K=16']['hot'] / ours['hot']:.2f}")
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def plot(results: Results, path: Path) -> None:
    """Microseconds for one row, hot, by batch: a panel for each size, one thread."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 -- only who wants a picture needs it

    sizes = list(dict.fromkeys(case.split(", ")[0] for case in results))
    figure, axes = plt.subplots(1, len(sizes), figsize=(4 * len(sizes), 4), squeeze=False)
    for axis, size in zip(axes[0], sizes, strict=True):
        batches = sorted(int(b) for s, b, t in (case.split(", ") for case in results) if s == size and t == "1")
        for name in LAYERS:
            times = [results[f"{size}, {batch}, 1"][name]["hot"] / batch for batch in batches]
            axis.plot(batches, times, marker="o", label=name, linestyle="--" if name == "nothing" else "-")
        axis.set(title=size, xlabel="batch", xscale="log", yscale="log", xticks=batches, xticklabels=batches)
    axes[0][0].set_ylabel("microseconds for one row, one thread")
    axes[0][-1].legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.02, 1))
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=SIZES, help="inputs x outputs, as 4096x1024")
    parser.add_argument("--batches", nargs="+", type=int, default=BATCHES)
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--table", action="store_true", help="only print the tables of stored results")
    parser.add_argument("--plot", type=Path, help="also draw the stored results to this file")
    options = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not options.table:
        RESULTS.check()
        for size in options.sizes:
            in_features, out = (int(part) for part in size.split("x"))
            for batch in options.batches:
                for threads in options.threads:
                    case = f"{size}, {batch}, {threads}"
                    found = measure((in_features, out), batch, threads, options.rounds)
                    print(case, {name: round(times["hot"]) for name, times in found.items()}, flush=True)
                    RESULTS.add(found, case)
    results = RESULTS.rows()
    print(table(results), ratios(results), sep="\n\n")
    if options.plot is not None:
        plot(results, options.plot)

"""One timing of `quantizer --speed`: product quantization of a random matrix, by onnxpq or by faiss.

    python -m benchmarks quantizer_speed onnxpq|weighted|faiss

Prints JSON: seconds of training and encoding, the mean squared error of a sub-vector, and the MB by which the process
grew at its largest over what it had with libraries loaded and the matrix made (Linux). It runs in an environment of
its own for faiss, so that it imports nothing of ours before it knows which it is. "weighted" is onnxpq with the
statistics of the layer's inputs, which it is given: it prints the relative error of the outputs, too, and that of the
outputs that "onnxpq" gives.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import numpy as np

SIZE, D, K = 4096, 4, 16

Figures = dict[str, float]


def onnxpq_quantize(matrix: np.ndarray, *, weighted: bool = False) -> Figures:
    """By `onnxpq.quantization.encoding.quantize`; `weighted`: by second moments of inputs that depend on each other."""
    import torch  # noqa: PLC0415 -- only one of the two is installed where this runs

    from onnxpq.pq.layout import Layout  # noqa: PLC0415
    from onnxpq.pq.statistics import InputStatistics  # noqa: PLC0415
    from onnxpq.quantization.encoding import quantize  # noqa: PLC0415

    few = torch.from_numpy(matrix[:64, :64].copy())
    quantize(few, Layout(64, 64, D, K, 16), seed=0)
    weight, layout = torch.from_numpy(matrix), Layout(SIZE, SIZE, D, K, SIZE // D)
    statistics = None
    if weighted:
        rng = np.random.default_rng(1)
        mixture = rng.standard_normal((SIZE // 4, SIZE), np.float32) / np.float32(np.sqrt(SIZE // 4))
        statistics = InputStatistics(SIZE)
        for _ in range(8):
            rows = rng.standard_normal((1024, SIZE // 4), np.float32) @ mixture
            statistics.add(rows + rng.standard_normal(rows.shape, np.float32) / 2, "x")
    before = resident()
    started = time.perf_counter()
    found = quantize(weight, layout, seed=0, statistics=statistics)
    figures: Figures = {"seconds": time.perf_counter() - started, "MB": peak() - before}
    decoded = found.matrix().numpy()
    if statistics is not None:
        moment = statistics.second_moment.astype(np.float32)
        plain = quantize(weight, layout, seed=0).matrix().numpy()
        figures["output error"], figures["output error of onnxpq"] = (
            output_error(matrix, approximation, moment) for approximation in (decoded, plain)
        )
    return figures | {"error": squared_error(matrix, decoded)}


def faiss_quantize(matrix: np.ndarray) -> Figures:
    """The same by faiss's ProductQuantizer at its defaults."""
    import faiss  # noqa: PLC0415

    quantizer = faiss.ProductQuantizer(SIZE, SIZE // D, int(np.log2(K)))
    before = resident()
    started = time.perf_counter()
    quantizer.train(matrix)
    codes = quantizer.compute_codes(matrix)
    figures: Figures = {"seconds": time.perf_counter() - started, "MB": peak() - before}
    return figures | {"error": squared_error(matrix, quantizer.decode(codes))}


def squared_error(matrix: np.ndarray, decoded: np.ndarray) -> float:
    """Mean of a sub-vector."""
    return float(np.square(decoded - matrix).sum() / (matrix.size / D))


def output_error(matrix: np.ndarray, decoded: np.ndarray, moment: np.ndarray) -> float:
    """Relative L2 error of the outputs for inputs of that second moment."""
    missed, whole = (np.sum(part @ moment * part, dtype=np.float64) for part in (matrix - decoded, matrix))
    return float((missed / whole) ** 0.5)


def resident() -> float:
    """MB of this process now; from here on `peak` looks at what comes."""
    Path("/proc/self/clear_refs").write_text("5")
    return _megabytes("VmRSS")


def peak() -> float:
    """Largest MB since `resident` was called."""
    return _megabytes("VmHWM")


def _megabytes(entry: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(entry)) / 1024


def main() -> None:
    run = {"onnxpq": onnxpq_quantize, "weighted": partial(onnxpq_quantize, weighted=True), "faiss": faiss_quantize}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("quantizer", choices=run)
    quantizer = parser.parse_args().quantizer
    matrix = np.random.default_rng(0).standard_normal((SIZE, SIZE), np.float32)
    print(json.dumps(run[quantizer](matrix) | {"matrix MB": matrix.nbytes / 2**20}))

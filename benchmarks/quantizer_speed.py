"""One timing of `benchmarks/quantizer.py --speed`: product quantization of a random matrix, by onnxpq or by faiss.

    python benchmarks/quantizer_speed.py onnxpq|faiss

Prints JSON: seconds of training and encoding, the mean squared error of a sub-vector, and the MB by which the process
grew at its largest over what it had with libraries loaded and the matrix made. It runs in an environment of its own
for faiss, so that it imports nothing of ours before it knows which it is.
"""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

SIZE, D, K = 4096, 4, 16


def onnxpq_quantize(matrix: np.ndarray) -> tuple[float, float, np.ndarray]:
    """Seconds, MB and the decoded matrix, by `onnxpq.quantization.quantize`."""
    import torch  # noqa: PLC0415 -- only one of the two is installed where this runs

    sys.path.append(str(Path(__file__).resolve().parent.parent))
    from onnxpq.pq.layout import Layout  # noqa: PLC0415
    from onnxpq.quantization import quantize  # noqa: PLC0415

    few = torch.from_numpy(matrix[:64, :64].copy())
    quantize(few, Layout(64, 64, D, K, 16), seed=0)
    weight, layout = torch.from_numpy(matrix), Layout(SIZE, SIZE, D, K, SIZE // D)
    before = peak()
    started = time.perf_counter()
    quantized = quantize(weight, layout, seed=0)
    seconds = time.perf_counter() - started
    return seconds, peak() - before, quantized.matrix().numpy()


def faiss_quantize(matrix: np.ndarray) -> tuple[float, float, np.ndarray]:
    """The same by faiss's ProductQuantizer at its defaults."""
    import faiss  # noqa: PLC0415

    quantizer = faiss.ProductQuantizer(SIZE, SIZE // D, int(np.log2(K)))
    before = peak()
    started = time.perf_counter()
    quantizer.train(matrix)
    codes = quantizer.compute_codes(matrix)
    seconds = time.perf_counter() - started
    return seconds, peak() - before, quantizer.decode(codes)


def peak() -> float:
    """Largest resident size of this process so far in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    matrix = np.random.default_rng(0).standard_normal((SIZE, SIZE), np.float32)
    seconds, grown, decoded = {"onnxpq": onnxpq_quantize, "faiss": faiss_quantize}[sys.argv[1]](matrix)
    error = float(np.square(decoded - matrix).sum() / (matrix.size / D))
    print(json.dumps({"seconds": seconds, "error": error, "MB": grown, "matrix MB": matrix.nbytes / 2**20}))


if __name__ == "__main__":
    main()

"""How far the operator library's outputs are from the function body's in models of more and more layers.

    python -m benchmarks chains [--layers 6 18 36 72] [--width 512]

Chains of square layers with random weights and a Relu after each, which is the worst that there is: nothing passes a
layer by. Compressed without data (d = 8, K = 16), and run on random inputs. Printed are the relative L2 difference of
the output and what it is by the square root of the number of layers, with the usual tables and with fast ones:
`onnxpq.verification.proof` takes its budgets from that.
"""

import argparse
import math
import tempfile
from pathlib import Path

import onnxpq
from benchmarks.common.chain import build
from onnxpq.verification import proof


def difference(model: Path, fast: bool) -> float:
    found = onnxpq.compress(model, config=onnxpq.Config(pq=onnxpq.PQConfig(fast=fast))).report.verification
    if found.library_agreement is None:
        raise SystemExit("onnxpq was installed without its operator library: there is nothing to compare.")
    return found.library_agreement


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[6, 18, 36, 72])
    parser.add_argument("--width", type=int, default=512)
    options = parser.parse_args()
    # What is measured here is what they are chosen by.
    proof.LIBRARY_BUDGET = proof.FAST_LIBRARY_BUDGET = math.inf
    print("| layers | usual tables | by the root | fast tables | by the root |\n|---|---|---|---|---|")
    for layers in options.layers:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder, "m.onnx")
            build(model, layers, options.width)
            found = [difference(model, fast) for fast in (False, True)]
        cells = [f"{value:.1e} | {value / math.sqrt(layers):.1e}" for value in found]
        print(f"| {layers} | {' | '.join(cells)} |", flush=True)

"""Does the regularization term earn its place? `mnist_mlp` at the same bytes, without a term and with each.

    python benchmarks/regularization.py [--seeds 0 1 2] [--epochs 10] [--terms codebook l1]
    python benchmarks/regularization.py --table

Everything but the term is the same: layout, epochs, schedule, seeds. Runs that are already in
results/regularization.json are not repeated, so it can be stopped and started again. Verified on all 10000 test images,
which nothing was chosen by.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import onnxpq  # noqa: E402 -- a script is run with its own folder on the path, not the root
from benchmarks import datasets  # noqa: E402
from onnxpq.config import REGULARIZERS, Config, PQConfig, TrainingConfig  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "regularization.json"


def run(term: str, alpha: float | None, seed: int, epochs: int, sub_vector: int) -> dict[str, float]:
    """Compress mnist_mlp; errors in per cent."""
    train, train_labels, test, test_labels = datasets.mnist()
    config = Config(
        pq=PQConfig(sub_vector=sub_vector),
        training=TrainingConfig(epochs=epochs, regularizer=term, alpha=alpha),
        seed=seed,
    )
    started = time.perf_counter()
    report = onnxpq.compress(
        ROOT / "models" / "mnist_mlp.onnx",
        {"input": train.reshape(-1, 784), "y": train_labels},
        test={"input": test.reshape(-1, 784), "y": test_labels},
        labels="y",
        config=config,
        cache_dir=datasets.cache_folder() / "activations",
    ).report
    accuracy, training = report.verification.accuracy, report.training
    if accuracy is None or training is None:
        raise SystemExit("The report has no accuracy or no training: that is a defect of onnxpq.")
    return {
        "bytes": report.verification.bytes_after,
        "error": 100 * (1 - accuracy.compressed.value),
        "original": 100 * (1 - accuracy.original.value),
        "validation": training.best,
        "seconds": time.perf_counter() - started,
    }


def table(results: dict[str, dict[str, float]]) -> str:
    """Mean and range over the seeds per setting, as a Markdown table."""
    groups: dict[str, list[dict[str, float]]] = {}
    for key, row in results.items():
        groups.setdefault(key.rpartition(", seed")[0], []).append(row)
    lines = [
        "| setting | seeds | bytes | test error | lowest to highest | validation loss |",
        "|---|---|---|---|---|---|",
    ]
    for name, rows in groups.items():
        errors = [row["error"] for row in rows]
        loss = statistics.mean(row["validation"] for row in rows)
        lines.append(
            f"| {name} | {len(rows)} | {rows[0]['bytes']:.0f} | {statistics.mean(errors):.2f} % "
            f"| {min(errors):.2f} to {max(errors):.2f} % | {loss:.4f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--terms", nargs="+", default=list(REGULARIZERS), choices=REGULARIZERS)
    parser.add_argument("--alpha", type=float, help="other than the default of the term")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--sub-vector", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="only print the table of stored results")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not options.table:
        torch.set_num_threads(options.threads)
        for seed in options.seeds:
            for term in options.terms:
                alpha = "" if options.alpha is None else f", alpha {options.alpha:g}"
                key = f"{term}{alpha}, d {options.sub_vector}, {options.epochs} epochs, seed {seed}"
                if key not in results:
                    results[key] = run(term, options.alpha, seed, options.epochs, options.sub_vector)
                    print(key, results[key], flush=True)
                    RESULTS.parent.mkdir(exist_ok=True)
                    RESULTS.write_text(json.dumps(results, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()

"""What each choice of the fine-tuning brings: `mnist_mlp` at the same bytes, one choice changed at a time.

    python benchmarks/ablation.py                                     # the terms, three seeds; the other choices, one
    python benchmarks/ablation.py --only "no term" "term l1" --seeds 3
    python benchmarks/ablation.py --table                             # only prints what is stored

The loss is distillation of the class scores alone (`distillation = 1`), so that labels only measure. Layout, epochs,
schedule and seeds are the same for all. Runs that are already in results/ablation.json are not
repeated, so it can be stopped and started again. Errors are those of all 10000 test images, by which nothing was
chosen.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))

import onnxpq  # noqa: E402 -- a script is run with its own folder on the path, not the root
from benchmarks import datasets  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "ablation.json"
EPOCHS = 6

TERMS = {
    "default: term codebook": {},
    "no term (alpha = 0)": {"regularizer": "none"},
    "term murray-ng": {"regularizer": "murray-ng"},
    "term l1": {"regularizer": "l1"},
    "term l2": {"regularizer": "l2"},
    "term quartic": {"regularizer": "quartic"},
}
CHOICES = {
    "alpha 10": {"alpha": 10.0},
    "alpha 0.1": {"alpha": 0.1},
    "term murray-ng, alpha 0.1": {"regularizer": "murray-ng", "alpha": 0.1},
    "term l1, alpha 0.1": {"regularizer": "l1", "alpha": 0.1},
    "term l2, alpha 0.1": {"regularizer": "l2", "alpha": 0.1},
    "term quartic, alpha 0.1": {"regularizer": "quartic", "alpha": 0.1},
    "codes never move": {"regularized": 0.0},
    "half of the epochs regularized": {"regularized": 0.5},
    "no mixup": {"mixup": 0.0},
    "latent rate 2": {"latent_rate": 2.0},
    "labels: 0.3 cross-entropy": {"distillation": 0.7},
}


def run(choice: dict[str, object], seed: int) -> dict[str, float]:
    """Compress mnist_mlp with some settings changed; errors in per cent."""
    train, train_labels, test, test_labels = datasets.mnist()
    settings = {"epochs": EPOCHS, "distillation": 1.0, **choice}
    config = onnxpq.Config(training=onnxpq.TrainingConfig(**settings), seed=seed)
    started = time.perf_counter()
    report = onnxpq.compress(
        ROOT / "models" / "mnist_mlp.onnx",
        {"input": train.reshape(-1, 784), "y": train_labels},
        test={"input": test.reshape(-1, 784), "y": test_labels},
        labels="y",
        config=config,
        cache_dir=datasets.cache_folder() / "activations",
    ).report
    accuracy = report.verification.accuracy
    if accuracy is None:
        raise SystemExit("The report has no accuracy: that is a defect of onnxpq.")
    return {
        "bytes": report.verification.bytes_after,
        "error": 100 * (1 - accuracy.compressed.value),
        "original": 100 * (1 - accuracy.original.value),
        "seconds": time.perf_counter() - started,
    }


def table(results: dict[str, dict[str, dict[str, float]]]) -> str:
    """Mean and range over the seeds per setting, as a Markdown table."""
    lines = ["| setting | seeds | bytes | test error | lowest to highest |", "|---" * 5 + "|"]
    for name, rows in results.items():
        errors = [row["error"] for row in rows.values()]
        size = max(row["bytes"] for row in rows.values())
        lines.append(
            f"| {name} | {len(rows)} | {size:.0f} | {statistics.mean(errors):.2f} % "
            f"| {min(errors):.2f} to {max(errors):.2f} % |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[*TERMS, *CHOICES], help="these settings and no others")
    parser.add_argument("--seeds", type=int, help="number of seeds; three for the terms, one for the rest by default")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--table", action="store_true", help="only print the table of stored results")
    options = parser.parse_args()
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not options.table:
        torch.set_num_threads(options.threads)
        for seed in range(options.seeds or 3):
            for name, choice in (TERMS | CHOICES).items():
                wanted = options.only is None or name in options.only
                enough = options.seeds is None and name in CHOICES and seed > 0
                if not wanted or enough or str(seed) in results.get(name, {}):
                    continue
                results.setdefault(name, {})[str(seed)] = run(choice, seed)
                print(name, seed, results[name][str(seed)], flush=True)
                RESULTS.parent.mkdir(exist_ok=True)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()

"""What each choice of the fine-tuning brings: three models at the same bytes, one choice changed at a time.

    python -m benchmarks ablation                                            # three models, three seeds
    python -m benchmarks ablation --only "no term" --models digits --seeds 1
    python -m benchmarks ablation --table                                    # only prints what is stored

A network of images, a transformer's head for text in images, and a small classifier, each from the codes of the
quantizer that are the same for all settings of a seed. The loss is distillation alone, so that labels only measure; but
for the network of images at fine codes, trained on its labels, too. Models, layouts, steps and batch sizes are in
`CASES`: short trainings, as users without a GPU have them. Runs that are stored already are not repeated, so it can be
stopped and started again.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

import onnxpq
from benchmarks.common import datasets, folders
from benchmarks.common.processes import ROOT
from benchmarks.common.store import Results
from onnxpq import rewriting, runtime
from onnxpq.data import first, input_specs
from onnxpq.data.datasets import split_rows
from onnxpq.data.inputs import fixed_batch
from onnxpq.data.reading import Reading, load
from onnxpq.graph import files, preparing
from onnxpq.graph.normalising import normalise
from onnxpq.network import matrices
from onnxpq.pq.quantized import Quantized
from onnxpq.quantization import allocation, calibration, encoding
from onnxpq.training import finetuning, jobs
from onnxpq.training.finetuning import Problem, Samples
from onnxpq.training.student import TUNED, Student
from onnxpq.verification import metrics

RESULTS = Results.of(__name__)

TEST_BATCH = 64

CHOICES: dict[str, dict[str, object]] = {
    "default": {},
    "codes never move": {"regularized": 0.0},
    "codes move for 0.9 of the steps": {"regularized": 0.9},
    "no term (alpha = 0)": {"regularizer": "none"},
    "alpha 0.1": {"alpha": 0.1},
    "term quartic": {"regularizer": "quartic"},
    "the layers' outputs in the loss": {"features": 1.0},
    "no mixup": {"mixup": 0.0},
    "every batch mixed": {"UNLABELLED_MIXING": 1.0},
    # The rate of the float weights is a multiple of the learning rate: these leave it as it is.
    "learning rate 3e-3": {"learning_rate": 3e-3, "latent_rate": 12.0},
    "learning rate 2e-2": {"learning_rate": 2e-2, "latent_rate": 1.8},
    "float weights 3.3 times as fast": {"latent_rate": 12.0},
    "float weights a quarter as fast": {"latent_rate": 0.9},
}

MIXING_CHOICES: dict[str, dict[str, object]] = {
    name: CHOICES[name] for name in ("default", "no mixup", "every batch mixed")
}

LABELLED_CHOICES: dict[str, dict[str, object]] = {
    "default": {},
    "float weights in proportion to the error of the codes": {"LABELLED_RATE": 0.0},
    "float weights at least at 0.3 of the learning rate": {"LABELLED_RATE": 0.3},
    "float weights at least at 3 times the learning rate": {"LABELLED_RATE": 3.0},
    "codes never move": {"regularized": 0.0},
}
"""Names in capitals are constants of `onnxpq.finetuning`, the others settings of a training."""


@dataclass(frozen=True)
class Case:
    """A model, its data and how it is compressed.

    Attributes:
        load: path of the model, samples to train on, samples to test on.
        labels: key of the labels that measure, or None.
        pq: how weights are cut.
        steps: of the training.
        batch_size: of a step.
        choices: settings to try.
        on_labels: whether they are trained on, too.
        samples: to train on; None for all.
        base: what all choices begin with, where it is not the default.
    """

    load: Callable[[], tuple[Path, Mapping[str, Any], Mapping[str, Any]]]
    labels: str | None
    pq: onnxpq.PQConfig
    steps: int
    batch_size: int
    choices: Mapping[str, Mapping[str, object]] = field(default_factory=lambda: CHOICES)
    on_labels: bool = False
    samples: int | None = None
    base: Mapping[str, object] = field(default_factory=dict)


def _mnist() -> tuple[Path, Mapping[str, Any], Mapping[str, Any]]:
    train, train_labels, test, test_labels = datasets.mnist()
    data = {"input": train.reshape(-1, 784), "y": train_labels}
    return ROOT / "models" / "mnist_mlp.onnx", data, {"input": test.reshape(-1, 784), "y": test_labels}


def _digits() -> tuple[Path, Mapping[str, Any], Mapping[str, Any]]:
    parts = (dict(np.load(ROOT / "models" / f"digits_{part}.npz")) for part in ("train", "test"))
    return ROOT / "models" / "digits_mlp.onnx", *parts


def _rapidocr() -> tuple[Path, Mapping[str, Any], Mapping[str, Any]]:
    folder = folders.material_of("rapidocr")
    return folder / "model.onnx", *(dict(np.load(folder / f"{part}.npz")) for part in ("train", "test"))


RAPIDOCR_LAYOUT = onnxpq.PQConfig(sub_vector=4, codewords=256, codebooks="layer")

CASES = {
    "mnist_mlp": Case(_mnist, "y", onnxpq.PQConfig(), 600, 256),
    "rapidocr": Case(_rapidocr, None, RAPIDOCR_LAYOUT, 150, 16, MIXING_CHOICES),
    "digits": Case(_digits, "y", onnxpq.PQConfig(), 600, 64),
    "mnist_mlp, labels": Case(
        _mnist,
        "y",
        onnxpq.PQConfig(sub_vector=3, codewords=256, codebooks="layer"),
        600,
        256,
        LABELLED_CHOICES,
        on_labels=True,
    ),
    # The other choices were measured when this was the default; together they take an hour of a core.
    "rapidocr, every batch mixed": Case(
        _rapidocr,
        None,
        RAPIDOCR_LAYOUT,
        150,
        16,
        {name: choice for name, choice in CHOICES.items() if name not in ("no mixup", "every batch mixed")},
        base=CHOICES["every batch mixed"],
    ),
    # 100 and 250 passes.
    "mnist_mlp, 1500 samples": Case(_mnist, "y", onnxpq.PQConfig(), 600, 256, MIXING_CHOICES, samples=1500),
    "digits, 150 samples": Case(_digits, "y", onnxpq.PQConfig(), 600, 64, MIXING_CHOICES, samples=150),
}


@dataclass(frozen=True, eq=False)
class Start:
    """What all settings of a model and a seed have in common.

    Attributes:
        problem: what is trained.
        quantized: the quantizer's result.
        samples: to train on, to choose the best state by, to test on.
    """

    problem: Problem
    quantized: dict[str, Quantized]
    samples: tuple[Samples, Samples, Samples]


def start(case: Case, seed: int) -> Start:
    """Quantize a model, and let onnxruntime compute what is not trained, for all samples."""
    path, train, test = case.load()
    config = onnxpq.Config(pq=case.pq, seed=seed)
    original = files.load(path)
    prepared, normal = preparing.prepare(original), normalise(original)
    layers, _ = rewriting.find_layers(prepared, config)
    inputs = input_specs(original)
    learn, prove = (load(part, Reading(inputs, case.labels)) for part in (train, test))
    whole = load(
        {name: np.concatenate([train[name], test[name]]) for name in train if name in test},
        Reading(inputs, case.labels),
    )
    quantized = {}
    of_weight = {layer.weight: layer for layer in layers}
    for weight, moments in calibration.collect(normal, layers, learn, seed=seed):
        layer = of_weight[weight]
        matrix = matrices.matrix_of(normal.graph.initializers[weight].const_value.numpy(), layer)
        quantized[weight] = encoding.quantize(
            matrix, allocation.layout_of(layer, case.pq), seed=seed, statistics=moments
        )
    session = runtime.session(original, use_library=False)
    output = metrics.choose_output(runtime.run(session, first(prove, fixed_batch(inputs), 8)), None)
    folder = datasets.cache_folder() / "activations"
    constants = rewriting.constant_names(prepared)
    job = jobs.Job(normal, layers, output, whole, config, folder, (), lambda _: None, constants=constants)
    part, samples = (work := jobs.prepare(job)).plan.part, work.samples
    if part is None or samples is None:
        raise SystemExit(f"{path.name} cannot be trained end to end: that is a defect of onnxpq.")
    fit, choose = split_rows(len(learn), config.training.validation, seed)
    parts = (fit[: case.samples], choose, np.arange(len(learn), len(whole)))
    labels = whole.labels if case.on_labels else None
    rows = tuple(replace(samples[0], rows=rows, labels=labels) for rows in parts)
    problem = Problem(part.network, part.layers, output, jobs.vectors(job, part), part.fixed_batch, part.places)
    return Start(problem, quantized, (*rows[:2], replace(rows[2], labels=whole.labels)))


def run(case: Case, begin: Start, choice: Mapping[str, Any], seed: int) -> dict[str, float]:
    """Train with some settings changed; losses on validation samples, and on test samples the errors in per cent."""
    wanted = {**case.base, **choice}
    constants = {name: value for name, value in wanted.items() if name.isupper()}
    changed = {name: value for name, value in wanted.items() if name not in constants}
    settings = onnxpq.TrainingConfig(**{"steps": case.steps, "batch_size": case.batch_size, **changed})
    started = time.process_time()
    with mock.patch.dict(vars(finetuning), constants):
        tuned = finetuning.finetune(begin.problem, begin.quantized, begin.samples[:2], settings, seed=seed)
    seconds = time.process_time() - started
    return {"start": tuned.start, "loss": tuned.best, "cpu_seconds": seconds} | errors(begin, tuned)


@torch.no_grad()
def errors(begin: Start, tuned: finetuning.Finetuned) -> dict[str, float]:
    """On the test samples: relative L2 error of the output, and wrong classes where there are labels."""
    student = Student(begin.problem.network, begin.problem.layers, tuned.quantized, begin.problem.vectors)
    weights = student.weights(TUNED) | {name: torch.from_numpy(value) for name, value in tuned.values.items()}
    squared = power = wrong = 0.0
    test = begin.samples[2]
    for begun in range(0, len(test), TEST_BATCH):
        inputs, _, teacher, labels = test.batches(np.arange(begun, min(begun + TEST_BATCH, len(test))))[0]
        found = begin.problem.network(inputs, weights=weights)[begin.problem.output]
        squared += float((found - teacher).square().sum())
        power += float(teacher.square().sum())
        wrong += 0 if labels is None else float((found.argmax(-1) != labels).sum())
    result = {"relative_error": 100 * (squared / power) ** 0.5}
    return result if test.labels is None else result | {"error": 100 * wrong / len(test)}


def table(results: Mapping[str, Mapping[str, Mapping[str, Mapping[str, float]]]]) -> str:
    """Per model and setting the means over the seeds, and the range of the loss, as a Markdown table."""
    head = "| model | setting | seeds | loss before -> after | lowest to highest | relative error | error | CPU s |"
    lines = [head, "|---" * 8 + "|"]
    for model, settings in results.items():
        for name, runs in settings.items():
            mean = {key: statistics.mean(run[key] for run in runs.values()) for key in next(iter(runs.values()))}
            losses = [run["loss"] for run in runs.values()]
            error = f"{mean['error']:.2f} %" if "error" in mean else ""
            lines.append(
                f"| {model} | {name} | {len(runs)} | {mean['start']:.4f} -> {mean['loss']:.4f} "
                f"| {min(losses):.4f} to {max(losses):.4f} | {mean['relative_error']:.2f} % | {error} "
                f"| {mean['cpu_seconds']:.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(CHOICES | LABELLED_CHOICES)
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="these settings")
    parser.add_argument("--models", nargs="+", choices=CASES, default=list(CASES), help="these models")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--table", action="store_true", help="only print the table of stored results")
    options = parser.parse_args()
    results = RESULTS.rows()
    if not options.table:
        torch.set_num_threads(options.threads)
        for seed, model in itertools.product(range(options.seeds), options.models):
            stored = results.get(model, {})
            case = CASES[model]
            wanted = [name for name in case.choices if name in options.only]
            missing = [name for name in wanted if str(seed) not in stored.get(name, {})]
            begin = start(case, seed) if missing else None
            for name in missing:
                found = run(case, begin, case.choices[name], seed)
                print(model, name, seed, found, flush=True)
                results = RESULTS.add(found, model, name, str(seed))
    print(table(results))

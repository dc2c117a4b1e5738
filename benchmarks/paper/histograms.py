"""Weights before, during and after training under each term: how the term works.

Rows are stored like results: the counts of ``u = W / mean |W| of its row``, the value that the terms look at, of the
largest layer.
"""

from typing import Final

import numpy as np
from torch import Tensor

from benchmarks.paper import tasks, terms
from benchmarks.paper.methods import codebooks_of
from benchmarks.paper.store import Key, Store
from benchmarks.paper.tasks import Task
from benchmarks.paper.tuning import TUNED_STEPS

NAME: Final = "histograms"
EDGES: Final = np.linspace(-3, 3, 121)
SHOWN: Final = (0.0, 0.5, 1.0)
"""Shares of the training that are shown."""

FACTOR: Final = 32.0
"""Size of the codebooks that the codebook term pulls to."""


def run(network: str, store: Store | None = None, *, steps: int = TUNED_STEPS, quick: bool = False) -> None:
    """Store the histograms of every term that are not stored yet."""
    store = store or Store()
    task = tasks.load(network, quick=quick)
    for term in terms.ALPHA:
        key = Key(NAME, f"{network}/{term}", FACTOR, 0)
        if key not in store.rows(NAME):
            row = {"network": key.network, "method": key.method, "factor": key.factor, "seed": key.seed}
            store.add(row | {"counts": counts(task, term, steps)})
            print(f"{network} {term}", flush=True)


def counts(task: Task, term: str, steps: int) -> dict[str, list[int]]:
    """By the share of the training that is done, how many weights of the largest layer lie between `EDGES`."""
    largest = max(task.layers, key=lambda layer: layer.weight_bytes)
    found = {f"{SHOWN[0]:g}": histogram(task.matrix(largest))}
    middle = round(SHOWN[1] * steps) / steps

    def watch(done: float, matrices: dict[str, Tensor]) -> None:
        if abs(done - middle) < 0.5 / steps:
            found[f"{SHOWN[1]:g}"] = histogram(matrices[largest.weight])

    coded = codebooks_of(task, FACTOR, 0) if term == "codebook" else None
    trained = terms.regularize(task, term, steps=steps, seed=0, coded=coded, watch=watch)
    found[f"{SHOWN[2]:g}"] = histogram(trained.matrices[largest.weight])
    return found


def histogram(matrix: Tensor) -> list[int]:
    """Counts of a matrix's values, each row scaled to a mean absolute value of 1; those outside `EDGES` at its ends."""
    scale = matrix.abs().mean(1, keepdim=True).clamp_min(1e-30)
    return np.histogram(np.clip((matrix / scale).numpy(), EDGES[0], EDGES[-1]), EDGES)[0].tolist()

"""How strong each term is to be in `terms`: the held-out loss after PQ, by the weight of the term at its end.

One network, one factor, one seed, as many steps as the rows have: a long training bears less of a term than a short
one. The test images are not looked at. The held-out ones are taken as they are: nothing has been tuned after PQ, and
nothing is near the original.
"""

from typing import Final

from benchmarks.paper import tasks, terms, tuning
from benchmarks.paper.methods import codebooks_of
from benchmarks.paper.store import Key, Store
from benchmarks.paper.tasks import Task
from benchmarks.paper.tuning import TUNED_STEPS, Student

NAME: Final = "alphas"
NETWORK: Final = "mnist_mlp"
FACTOR: Final = 16.0
TRIED: Final = (10.0, 100.0, 1e3, 1e4)


def run(store: Store | None = None, *, steps: int = TUNED_STEPS) -> None:
    """Store the losses that are not stored yet, and print all."""
    store = store or Store()
    task = tasks.load(NETWORK, quick=False)
    for term in terms.ALPHA:
        for alpha in TRIED if term != "none" else (0.0,):
            # The place of the factor in a row's key is taken by the weight of the term.
            key = Key(NAME, f"{NETWORK}/{term}/{steps} steps", alpha, 0)
            found = store.loss(key, lambda term=term, alpha=alpha: loss(task, term, alpha, steps))
            print(f"{term} alpha {alpha:g}: held-out loss {found:.4f}", flush=True)


def loss(task: Task, term: str, alpha: float, steps: int) -> float:
    """Loss on the held-out images after training under the term and PQ."""
    coded = codebooks_of(task, FACTOR, 0)
    if coded is None:
        raise SystemExit(f"{task.name}: PQ has no setting of {FACTOR:g}x.")
    forms, biases = terms.then_pq(task, term, coded, steps=steps, seed=0, alpha=alpha)
    return tuning.held_out_loss(Student(task, forms, dict(biases)), mixed=False)

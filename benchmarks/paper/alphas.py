"""How strong each term is to be in `terms`: the held-out loss after PQ, by the weight of the term at its end.

One network, one factor, one seed; an eighth of the steps for all weights, then all steps for the best three of each
term: a long training bears less of a term than a short one. The test images are not looked at. The held-out ones are
taken as they are: nothing has been tuned after PQ, and nothing is near the original. `terms.ALPHA` holds what came out
best.
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
TRIED: Final = (1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
STEPS: Final = TUNED_STEPS
SHORT: Final = 8
KEPT: Final = 3


def run(store: Store | None = None, *, steps: int = STEPS) -> None:
    """Store the losses that are not stored yet, and print all."""
    store = store or Store()
    task = tasks.load(NETWORK, quick=False)

    def found(term: str, alpha: float, steps: int, name: str) -> float:
        # The place of the factor in a row's key is taken by the weight of the term.
        key = Key(NAME, f"{NETWORK}/{name}", alpha, 0)
        value = store.loss(key, lambda: loss(task, term, alpha, steps))
        print(f"{name} alpha {alpha:g}: held-out loss {value:.4f}", flush=True)
        return value

    for term in terms.ALPHA:
        tried = TRIED if term != "none" else (0.0,)
        short = {alpha: found(term, alpha, steps // SHORT, term) for alpha in tried}
        for alpha in sorted(short, key=short.__getitem__)[:KEPT]:
            found(term, alpha, steps, f"{term}, all steps")


def loss(task: Task, term: str, alpha: float, steps: int) -> float:
    """Loss on the held-out images after training under the term and PQ."""
    coded = codebooks_of(task, FACTOR, 0)
    if coded is None:
        raise SystemExit(f"{task.name}: PQ has no setting of {FACTOR:g}x.")
    forms, biases = terms.then_pq(task, term, coded, steps=steps, seed=0, alpha=alpha)
    return tuning.held_out_loss(Student(task, forms, dict(biases)), mixed=False)

"""How fast each kind of form learns: the held-out loss after a short training, by its learning rate.

One network, one factor, one seed; the test images are not looked at. `tuning.RATES` holds what came out best.
"""

from typing import Final

from benchmarks.paper import methods, tasks, tuning
from benchmarks.paper.store import Key, Store
from benchmarks.paper.tasks import Task
from benchmarks.paper.tuning import Student

NAME: Final = "rates"
NETWORK: Final = "mnist_mlp"
FACTOR: Final = 32.0
TRIED: Final = (1e-2, 3e-2, 1e-1, 3e-1)
STEPS: Final = 500


def run(store: Store | None = None, *, steps: int = STEPS) -> None:
    """Store the losses that are not stored yet, and print all."""
    store = store or Store()
    task = tasks.load(NETWORK, quick=False)
    for kind in methods.STARTS:
        for rate in TRIED:
            # The place of the factor in a row's key is taken by the rate.
            key = Key(NAME, f"{NETWORK}/{kind}", rate, 0)
            found = store.loss(key, lambda kind=kind, rate=rate: loss(task, kind, rate, steps))
            print(f"{kind} rate {rate:g}: held-out loss {found:.4f}", flush=True)


def loss(task: Task, kind: str, rate: float, steps: int) -> float:
    """Loss on the held-out images after training forms of a kind from where the method begins."""
    forms = methods.STARTS[kind](task, FACTOR, 0)
    if forms is None:
        raise SystemExit(f"{task.name}: {kind} has no setting of {FACTOR:g}x.")
    student = Student.of(task, forms)
    tuning.tune(student, steps, rate=rate, seed=0)
    return tuning.held_out_loss(student)

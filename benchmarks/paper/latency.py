"""What each method's file runs at: a call of one image in onnxruntime, one thread.

A file's speed depends on its form and not on the values, so files are made without training. The files of a network are
timed in turns, so that what else runs on the machine hits all of them; a figure is the median of its rounds.
"""

import statistics
import time
from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from benchmarks.paper import tasks, tuning
from benchmarks.paper.methods import METHODS
from benchmarks.paper.store import Row, Store
from benchmarks.paper.tasks import NETWORKS, Task
from onnxpq import runtime

FACTORS: Final = {"original": 1.0, "int8": 4.0, "int4": 8.0, "int2": 16.0, "kmeans": 16.0, "sign": 32.0}
FACTOR: Final = 32.0
"""The factor at which methods that have no factor of their own are timed."""

TIMED: Final = (*FACTORS, "svd", "residual", "pq", "smaller", "hashed", "onnxpq")
ROUNDS: Final = 60
ROUND_SECONDS: Final = 0.01
NAME: Final = "latency"


def run(networks: Sequence[str], store: Store | None = None) -> None:
    """Time the files of some networks and store the figures, a row per method."""
    store = store or Store()
    for network in NETWORKS if "*" in networks else networks:
        for row in measure(tasks.load(network, quick=True)):
            store.add(row | {"network": NAME, "method": f"{network}/{row['method']}", "seed": 0})
            print(f"{network} {row['method']}: {row['microseconds']:.0f} us", flush=True)


def measure(task: Task, rounds: int = ROUNDS) -> list[Row]:
    """Microseconds of a call of one image, by method."""
    sessions: dict[str, Any] = {}
    for name in TIMED:
        made = METHODS[name].make(task, FACTORS.get(name, FACTOR), 0, tuning.NONE)
        if made is not None:
            sessions[name] = runtime.session(made.model, options=tasks.options(1))
    image = {task.input: np.ascontiguousarray(task.test[0][:1])}
    calls = {name: max(1, round(ROUND_SECONDS / _seconds(s, image, 3))) for name, s in sessions.items()}
    found: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(rounds):
        for name, session in sessions.items():
            found[name].append(_seconds(session, image, calls[name]))
    return [
        {"method": name, "factor": FACTORS.get(name, FACTOR), "microseconds": round(1e6 * statistics.median(times), 1)}
        for name, times in found.items()
    ]


def _seconds(session: Any, image: dict[str, np.ndarray], calls: int) -> float:
    """Mean of some calls in a row; the first one is not counted."""
    session.run(None, image)
    start = time.perf_counter()
    for _ in range(calls):
        session.run(None, image)
    return (time.perf_counter() - start) / calls

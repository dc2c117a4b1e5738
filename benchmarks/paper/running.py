"""The runs: which rows there are, and what is measured of each."""

import os
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Final

import onnx
import torch

from benchmarks.common import machine
from benchmarks.paper import tasks
from benchmarks.paper.graph import model_bytes
from benchmarks.paper.methods import METHODS, Made
from benchmarks.paper.store import Key, Row, Store
from benchmarks.paper.tasks import NETWORKS, Task
from benchmarks.paper.tuning import Effort

QUICK_FACTORS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
"""What a smoke run looks at: 64x, and the methods that have a factor of their own."""


def keys(patterns: Sequence[str] = ("*",), *, quick: bool = False) -> list[Key]:
    """The rows that there are to be, in the order in which they run.

    Args:
        patterns: globs over "network/method/factor/seed"; a row that matches one is taken.
        quick: one seed, and one factor a method.
    """
    found = [key for key in _all(quick=quick) if any(_matches(key, pattern) for pattern in patterns)]
    if not found:
        raise SystemExit(
            f"No row matches {' '.join(patterns)}; a row is NETWORK/METHOD/FACTOR/SEED, e.g. */hashed/64/0."
        )
    return found


def _matches(key: Key, pattern: str) -> bool:
    name = f"{key.network}/{key.method}/{key.factor:g}/{key.seed}"
    return fnmatchcase(name, pattern) or fnmatchcase(name, pattern.rstrip("/") + "/*")


def _all(*, quick: bool) -> Iterator[Key]:
    # What trains nothing first: those rows take seconds.
    for trained in (False, True):
        for network in NETWORKS:
            for name, method in METHODS.items():
                if method.trained != trained:
                    continue
                runs = [(max(f for f in method.factors if f in QUICK_FACTORS), 0)] if quick else method.runs()
                yield from (Key(network, name, factor, seed) for factor, seed in runs)


def measure(task: Task, key: Key, effort: Effort) -> Row:
    """One row: the method's file, and its test error in onnxruntime on all test images."""
    wall, cpu = time.perf_counter(), _cpu_seconds()
    made = METHODS[key.method].make(task, key.factor, key.seed, effort)
    seconds = {"cpu_seconds": round(_cpu_seconds() - cpu, 1), "wall_seconds": round(time.perf_counter() - wall, 1)}
    row = {"network": key.network, "method": key.method, "factor": key.factor, "seed": key.seed}
    if made is None:
        return row | {"error": None, "reason": "no setting of the method is so small"}
    return row | {"error": round(tasks.error_of(made.model, task), 4)} | sizes(task, made) | seconds | _origin()


def sizes(task: Task, made: Made) -> Row:
    """Bytes and factors of the layers and of the file.

    The layers' bytes are those of all constants that the file holds beyond what it held of other things: codes,
    codebooks, scales, and the small constants of the nodes that decode them.
    """
    others = model_bytes(task.proto()) - task.weight_bytes
    layer_bytes = model_bytes(onnx.load_from_string(made.model)) - others
    file_bytes = task.path.stat().st_size
    return {
        "layer_bytes": layer_bytes,
        "file_bytes": len(made.model),
        "layer_factor": round(task.weight_bytes / layer_bytes, 2),
        "file_factor": round(file_bytes / len(made.model), 2),
        "formula_factor": None if made.formula is None else round(made.formula, 2),
        "settings": made.settings,
    }


def _cpu_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system


def _origin() -> Row:
    """What the row was made with."""
    return {"commit": machine.commit(), "torch": torch.__version__, "threads": torch.get_num_threads()}


def run(store: Store, wanted: Sequence[Key], effort: Effort, *, quick: bool, progress: object = None) -> None:
    """Measure what is not stored yet; rows that another process works on are left to it.

    Args:
        store: where rows go.
        wanted: the rows.
        effort: how long is trained.
        quick: few images.
        progress: is called with (done, all, key or None) before each row and in the end.
    """
    loaded: dict[str, Task] = {}
    for number, key in enumerate(wanted):
        if callable(progress):
            progress(number, len(wanted), key)
        with store.claim(key) as is_mine:
            if not is_mine:
                continue
            if key.network not in loaded:
                # One network's data at a time.
                loaded = {key.network: tasks.load(key.network, quick=quick)}
            store.add(measure(loaded[key.network], key, effort))
    if callable(progress):
        progress(len(wanted), len(wanted), None)

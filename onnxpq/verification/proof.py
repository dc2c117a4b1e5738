"""The original against the compressed model in onnxruntime: on the native operator and on the function body."""

import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq import data, runtime
from onnxpq.config import Config
from onnxpq.data import Dataset, Evidence, InputSpec
from onnxpq.errors import VerificationError
from onnxpq.graph import Forms, files
from onnxpq.report import Latency, SquaredError, Verification
from onnxpq.support import memory
from onnxpq.verification.floor import LEAST_FLOOR, Kind, Loss, judge, kind_of
from onnxpq.verification.metrics import Correct, Difference, check_classes, check_numbers, name_classes
from onnxpq.workspace import Run

Outputs: TypeAlias = Mapping[str, NDArray[Any]]
Progress: TypeAlias = Callable[[int, int], None]
Sessions: TypeAlias = dict[str, Any]
"""The ways to run: the user's model ("original"), the compressed one on stock operators ("stock") and with the operator
library ("library"), where it was built. The type of onnxruntime's sessions is one that only `runtime` may name."""

BATCH = 256
LATENCY_BATCHES = (1, 64)
LATENCY_ROUNDS = 51
LATENCY_SECONDS = 2.0
"""Each batch size is timed for at most this long (but at least for three rounds)."""

TIMED_ROOM = 3
"""To time a large model takes a session that holds its weights, as users have it: up to so many times its bytes, where
these are in half precision, as onnxruntime turns them into float32 when it loads them."""

LIBRARY_BUDGET = 1e-2
"""Largest relative L2 difference of an output between native operator and function body that is not a defect: the
operator's tables are within 2e-3 of a layer's output, and a few layers follow one another."""

FAST_LIBRARY_BUDGET = 1e-1
"""The same with fast tables, which are within 2 % (3 % where a few inputs are 40 times the others)."""

FEW_LAYERS = 11
"""From more layers on the budgets grow as the square root of their number, as the differences of layers that follow one
another do: they are at most 2.0e-3 times it, fast 8e-3 (`python -m benchmarks chains`)."""


@dataclass
class _Sums:
    """What is added up over the batches."""

    outputs: dict[str, Difference] = field(default_factory=dict)
    losses: dict[str, Loss] = field(default_factory=dict)
    library: dict[str, Difference] = field(default_factory=dict)
    correct: Correct | None = None
    squared_original: float = 0.0
    squared_compressed: float = 0.0
    values: int = 0


def prove(  # noqa: PLR0913 -- as for `verify`
    run: Run,
    forms: Forms,
    compressed: ir.Model,
    evidence: Evidence,
    inputs: Sequence[InputSpec],
    *,
    kinds: Mapping[str, Kind],
    output: str,
    layers: int,
) -> Verification:
    """Write the compressed model to a scratch folder and verify that very file.

    Args:
        run: takes notes, time and progress.
        forms: of the original.
        compressed: the model that came of it.
        evidence: samples to verify on.
        inputs: of the model.
        kinds: what each output is.
        output: the output that counts.
        layers: how many were compressed.

    Raises:
        OnnxpqError: see `verify`.
    """
    if not runtime.library_available():
        run.notes.append(runtime.LIBRARY_MISSING)
    before = forms.bytes_before
    with (
        run.stage("verification"),
        tempfile.TemporaryDirectory(prefix="onnxpq-", ignore_cleanup_errors=True) as scratch,
    ):
        path = Path(scratch) / "compressed.onnx"
        files.save(compressed, path)
        return verify(
            forms.as_it_runs,
            path,
            evidence.dataset,
            inputs,
            kinds=kinds,
            output=output,
            floor=_floor(run.config),
            description=evidence.description,
            held_out=evidence.held_out,
            file_bytes=(before, files.file_bytes(path)),
            library_budget=budget_of(layers, fast=run.config.pq.fast),
            is_timed=_has_room(run, before),
            libraries=run.libraries,
            progress=run.ticker("verification"),
        )


def _floor(config: Config) -> float | None:
    """The largest loss that may be written: whoever allows a larger drop than the floor has said so."""
    asked = config.target.max_drop
    return config.floor if config.floor is not None or asked is None or asked <= LEAST_FLOOR else asked


def _has_room(run: Run, before: int) -> bool:
    """Whether there is memory for a model of so many bytes as users run it: nothing else takes all its weights."""
    needed, room = TIMED_ROOM * before, memory.available()
    if before <= files.LARGE_BYTES or room is None or needed <= room:
        return True
    run.notes.append(
        f"The time of a call was not measured: to run the original as users do may take {needed:,} bytes of memory, "
        f"and {room:,} are left."
    )
    return False


def verify(  # noqa: PLR0913 -- each is a fact of the run that only the caller knows
    original: str | PathLike[str] | ir.Model,
    compressed: str | PathLike[str],
    dataset: Dataset,
    inputs: Sequence[InputSpec],
    *,
    output: str,
    kinds: Mapping[str, Kind] | None = None,
    floor: float | None = None,
    description: str,
    held_out: bool,
    file_bytes: tuple[int, int],
    library_budget: float = LIBRARY_BUDGET,
    is_timed: bool = True,
    libraries: runtime.Libraries = (),
    progress: Progress | None = None,
) -> Verification:
    """Run both models over the data set and compare.

    Of a large model the outputs come from sessions that leave its weights in their file. Then it is timed in others, as
    users have them, but not on stock operators: constant folding of the function body takes nine times the layers'
    bytes while it loads (`python -m benchmarks operator_memory`), more than all else together.

    Args:
        original: the user's model.
        compressed: the file to be verified.
        dataset: samples, with labels where there is a task metric to be computed.
        inputs: of the model.
        output: the output that is compared with the labels, and that the floor is for.
        kinds: what each output is (`onnxpq.verification.floor`); by default what its values look like.
        floor: the largest loss of it that may be written; None for that of its kind.
        description: what the samples are, for the report.
        held_out: whether none of them was used for training.
        file_bytes: of the original and of the compressed file.
        library_budget: largest relative L2 difference of an output between native operator and function body.
        is_timed: False leaves `latency` empty.
        libraries: custom-operator libraries that the model needs.
        progress: is told the samples that are done and their number.

    Returns:
        All that was measured. Outputs are judged on the native operator where the library was built.

    Raises:
        VerificationError: a model gives NaN or infinite values, the compressed one's two forms disagree, or its file
            is no smaller than the original.
        DataError: labels do not fit the output.
        RuntimeLibraryError, ModelError: onnxruntime refuses a model.
    """
    is_large = file_bytes[0] > files.LARGE_BYTES
    open_sessions = partial(_open, original, compressed, libraries)
    sessions = open_sessions(hold_weights=not is_large, stock=True)
    fixed = data.fixed_batch(inputs)
    sums = _Sums()
    done = 0
    if dataset.labels is not None:
        check_labels(dataset.labels, runtime.run(sessions["original"], data.first(dataset, fixed, 1))[output])
    for part, count in data.batches(dataset, fixed or BATCH, exact=fixed is not None):
        _add(sums, sessions, part, count, output, kinds or {})
        done += count
        if progress is not None:
            progress(done, len(dataset))
    _require(sums, file_bytes, library_budget)
    library = max((entry.relative for entry in sums.library.values()), default=0.0)
    if is_timed and is_large:
        sessions.clear()
        sessions = open_sessions(hold_weights=True, stock=False)
    accuracy = None if sums.correct is None else sums.correct.report(output)
    drop = None if accuracy is None else accuracy.drop.value
    return Verification(
        data=description,
        samples=len(dataset),
        held_out=held_out,
        bytes_before=file_bytes[0],
        bytes_after=file_bytes[1],
        outputs=tuple(difference.report(name) for name, difference in sums.outputs.items()),
        library_agreement=library if "library" in sessions else None,
        accuracy=accuracy,
        squared_error=_squared_error(sums, output),
        latency=tuple(_latency(sessions, dataset, size) for size in _batch_sizes(dataset, fixed) if is_timed),
        floor=judge(sums.losses, output, drop, floor=floor, held_out=held_out),
    )


def budget_of(layers: int, *, fast: bool) -> float:
    """Largest relative L2 difference of an output between native operator and function body that is not a defect.

    Args:
        layers: that are compressed.
        fast: whether their tables are.
    """
    return (FAST_LIBRARY_BUDGET if fast else LIBRARY_BUDGET) * math.sqrt(max(1.0, layers / FEW_LAYERS))


def check_labels(labels: NDArray[Any], output: NDArray[Any]) -> None:
    """Check that an output can be judged by labels, which is cheap and can be done before hours of training.

    Args:
        labels: [N, ...]; integers are classes where the output has scores of them, else numbers are compared.
        output: the output for some samples, [n, ...].

    Raises:
        DataError: labels of another shape or out of range.
    """
    if name_classes(labels, output):
        check_classes(labels, output)
    else:
        check_numbers(labels, output)


def _open(
    original: str | PathLike[str] | ir.Model,
    compressed: str | PathLike[str],
    libraries: runtime.Libraries,
    *,
    hold_weights: bool,
    stock: bool,
) -> Sessions:
    session = partial(
        runtime.session, fold_constants=hold_weights, prepack=hold_weights, custom_ops_libraries=libraries
    )
    found = {"original": session(original, use_library=False)}
    if stock:
        found["stock"] = session(compressed, use_library=False)
    if runtime.library_available():
        found["library"] = session(compressed)
    return found


def _add(sums: _Sums, sessions: Sessions, part: Dataset, count: int, output: str, kinds: Mapping[str, Kind]) -> None:
    outputs: dict[str, Outputs] = {}
    for way, session in sessions.items():
        every = runtime.run(session, part.inputs)
        outputs[way] = every if part.is_call else {name: array[:count] for name, array in every.items()}
    expected, stock = outputs["original"], outputs["stock"]
    found = outputs.get("library", stock)
    for name, reference in expected.items():
        sums.outputs.setdefault(name, Difference()).add(reference, found[name])
        sums.losses.setdefault(name, Loss(kinds.get(name) or kind_of(reference))).add(reference, found[name])
        if "library" in outputs:
            sums.library.setdefault(name, Difference()).add(stock[name], found[name])
    if part.labels is not None:
        _add_labels(sums, part.labels[:count], expected[output], found[output])


def _add_labels(sums: _Sums, labels: NDArray[Any], expected: NDArray[Any], found: NDArray[Any]) -> None:
    if name_classes(labels, expected):
        sums.correct = sums.correct or Correct()
        sums.correct.add(labels, expected, found)
        return
    target = labels.reshape(expected.shape).astype(np.float64)
    sums.squared_original += float(np.square(expected - target).sum())
    sums.squared_compressed += float(np.square(found - target).sum())
    sums.values += target.size


def _squared_error(sums: _Sums, output: str) -> SquaredError | None:
    if not sums.values:
        return None
    return SquaredError(output, sums.squared_original / sums.values, sums.squared_compressed / sums.values)


def _require(sums: _Sums, file_bytes: tuple[int, int], library_budget: float) -> None:
    for name, difference in sums.outputs.items():
        if not difference.finite_reference:
            raise VerificationError(
                f"Output '{name}' of the original model holds NaN or infinite values on the verification data, so that "
                "nothing can be compared with it. Nothing was written. Leave out the samples that cause them."
            )
        if not difference.finite:
            raise VerificationError(
                f"Output '{name}' of the compressed model holds NaN or infinite values on the verification data, the "
                "original's does not. Nothing was written. Lower --learning-rate, or exclude the layers before it."
            )
    for name, difference in sums.library.items():
        # Written so that NaN, which is above and below nothing, is refused.
        if not difference.relative <= library_budget:
            raise VerificationError(
                f"Output '{name}': native operator and function body differ by {difference.relative:.2e} "
                f"(relative L2), at most {library_budget:.0e} is expected. Nothing was written. Please report this "
                "with the model."
            )
    before, after = file_bytes
    if after >= before:
        raise VerificationError(
            f"The compressed file would have {after} bytes, the original has {before}: nothing was gained and nothing "
            "was written. The layers are too small for these settings; try a larger --sub-vector."
        )


def _batch_sizes(dataset: Dataset, fixed: int | None) -> Sequence[int]:
    if dataset.is_call:
        return [1]
    return [fixed] if fixed else LATENCY_BATCHES


def _latency(sessions: Sessions, dataset: Dataset, size: int) -> Latency:
    """Median time of a call, the models taking turns so that a slow moment of the machine hits all of them."""
    index = np.resize(np.arange(len(dataset)), size)
    inputs = dataset.take(index).inputs
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for session in sessions.values():
        runtime.run(session, inputs)
    started = time.perf_counter()
    for round_number in range(LATENCY_ROUNDS):
        if round_number >= 3 and time.perf_counter() - started > LATENCY_SECONDS:
            break
        for name, session in sessions.items():
            begin = time.perf_counter()
            runtime.run(session, inputs)
            times[name].append(1e3 * (time.perf_counter() - begin))
    found = {name: median(row) for name, row in times.items()}
    return Latency(size, found["original"], found.get("library"), found.get("stock"))

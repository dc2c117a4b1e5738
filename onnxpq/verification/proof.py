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
from onnxpq.data import Alignment, Dataset, Evidence, InputSpec
from onnxpq.errors import DataError, VerificationError
from onnxpq.graph import Forms, files
from onnxpq.report import Latency, SquaredError, Verification
from onnxpq.support import memory
from onnxpq.verification import layerwise
from onnxpq.verification.floor import LEAST_FLOOR, Kind, Loss, judge, kind_of
from onnxpq.verification.metrics import (
    Correct,
    Difference,
    check_classes,
    check_numbers,
    flattened,
    name_classes,
    of_call,
)
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

LIBRARY_ABSOLUTE = 2.5e-7
"""Root mean square difference of an output between the two that is no defect, however small the output is: that of
onnxruntime's sigmoid near 0 (`onnxpq.network.importing.FORWARD_ABSOLUTE`)."""

FAST_LIBRARY_BUDGET = 1e-1
"""The same with fast tables, which are within 2 % (3 % where a few inputs are 40 times the others)."""

INTEGER_LIBRARY_BUDGET = 1.5e-1
"""The same where bodies multiply in int8, each within 2 % of a layer's output (`onnxpq.quantization.bodies`)."""

WITHOUT_LIBRARY = "without the operator library"

FEW_NUMBERS, FEW_NUMBERS_FACTOR = 100, 10
"""Of outputs of so few numbers, such as a loss, the budget is so many times larger: what is left of a sum of many
numbers may be small beside each of them, and so beside their error."""

FEW_LAYERS = 11
"""From more layers on the budgets grow as the square root of their number, as the differences of layers that follow one
another do: they are at most 2.0e-3 times it, fast 8e-3 (`python -m benchmarks chains`)."""


@dataclass
class _Sums:
    """What is added up over the batches.

    Attributes:
        kinds: what each output is, as far as that is known.
    """

    kinds: Mapping[str, Kind]
    outputs: dict[str, Difference] = field(default_factory=dict)
    losses: dict[str, Loss] = field(default_factory=dict)
    library: dict[str, Difference] = field(default_factory=dict)
    correct: Correct | None = None
    stock_losses: dict[str, Loss] = field(default_factory=dict)
    stock_correct: Correct | None = None
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
    integer_layers: int,
    aligned: Alignment,
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
        integer_layers: how many of them runtimes without the operator library multiply in int8.
        aligned: where the samples lie in the original's outputs.

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
            made_up=evidence.made_up,
            aligned=aligned,
            description=evidence.description,
            held_out=evidence.held_out,
            file_bytes=(before, files.file_bytes(path)),
            library_budget=budget_of(layers, fast=run.config.pq.fast, integer=integer_layers > 0),
            differs_on_stock=integer_layers > 0,
            is_timed=_has_room(run, before),
            libraries=run.libraries,
            note=run.notes.append,
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
    aligned: Alignment,
    kinds: Mapping[str, Kind] | None = None,
    floor: float | None = None,
    description: str,
    held_out: bool,
    made_up: bool = False,
    file_bytes: tuple[int, int],
    library_budget: float = LIBRARY_BUDGET,
    differs_on_stock: bool = False,
    is_timed: bool = True,
    libraries: runtime.Libraries = (),
    note: Callable[[str], None] | None = None,
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
        aligned: where the samples lie in the original's outputs (`onnxpq.runtime.alignment`).
        description: what the samples are, for the report.
        held_out: whether none of them was used for training.
        made_up: whether they are random numbers.
        file_bytes: of the original and of the compressed file.
        library_budget: largest relative L2 difference of an output between native operator and function body.
        differs_on_stock: whether the function body means to give other outputs than the operator, and is judged by
            itself.
        is_timed: False leaves `latency` empty.
        libraries: custom-operator libraries that the model needs.
        note: is told what the user should know.
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
    fixed = data.batch_of(dataset, inputs)
    aligned = Alignment() if dataset.whole else aligned
    sums = _Sums(kinds or {})
    done = 0
    if dataset.labels is not None and not dataset.whole:
        few = runtime.run(sessions["original"], data.first(dataset, fixed, 1))
        check_labels(dataset.labels, aligned.fronted(few, fixed or 1)[output])
    compare = _Comparison(sums, sessions, output, aligned, can_split=fixed is None and not dataset.whole)
    for part, count in data.batches(dataset, fixed or BATCH, exact=fixed is not None):
        compare.add(part, count)
        done += count
        if progress is not None:
            progress(done, len(dataset))
    _require(sums, file_bytes)
    if differing := _differing(sums, library_budget):
        is_finite = all(math.isfinite(gap) for gap in differing.values())
        worst = layerwise.worst(compressed, dataset, libraries) if is_finite else None
        explanation = _explained(differing, worst, library_budget)
        if note is not None:
            note(explanation)
    # Not of what differs by rounding near 0.
    library = max((one.relative for one in sums.library.values() if one.mean > LIBRARY_ABSOLUTE), default=0.0)
    if is_timed and is_large:
        sessions.clear()
        sessions = open_sessions(hold_weights=True, stock=False)
    accuracy = None if sums.correct is None else sums.correct.report(output)
    drop = None if accuracy is None else accuracy.drop.value
    stock_floor = None
    if differs_on_stock and sums.stock_losses:
        stock_drop = None if sums.stock_correct is None else sums.stock_correct.report(output).drop.value
        stock_floor = judge(sums.stock_losses, output, stock_drop, floor=floor, made_up=made_up, way=WITHOUT_LIBRARY)
    return Verification(
        data=description,
        samples=len(dataset),
        of_calls=dataset.whole,
        held_out=held_out,
        bytes_before=file_bytes[0],
        bytes_after=file_bytes[1],
        outputs=tuple(difference.report(name) for name, difference in sums.outputs.items()),
        library_agreement=library if "library" in sessions else None,
        accuracy=accuracy,
        squared_error=_squared_error(sums, output),
        latency=tuple(_latency(sessions, dataset, size) for size in _batch_sizes(dataset, fixed) if is_timed),
        floor=judge(sums.losses, output, drop, floor=floor, made_up=made_up),
        stock_floor=stock_floor,
    )


def budget_of(layers: int, *, fast: bool, integer: bool) -> float:
    """Largest relative L2 difference of an output between native operator and function body that is not a defect.

    Args:
        layers: that are compressed.
        fast: whether their tables are.
        integer: whether bodies multiply in int8.
    """
    budgets = (INTEGER_LIBRARY_BUDGET if integer else 0.0, FAST_LIBRARY_BUDGET if fast else LIBRARY_BUDGET)
    return max(budgets) * math.sqrt(max(1.0, layers / FEW_LAYERS))


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


def without_samples(name: str, value: NDArray[Any], samples: int) -> DataError:
    """The error of labels for an output that is not of single samples.

    Args:
        name: of the output.
        value: what it is for some samples.
        samples: number of them.
    """
    return DataError(
        f"Output '{name}' has shape {list(value.shape)} for {samples} samples: it has no entry for each of them that "
        "labels could be compared with. Name another output with --output-name, or leave --labels out."
    )


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


@dataclass(frozen=True, eq=False)
class _Comparison:
    """Runs all models on samples and adds up what is different.

    Attributes:
        sums: where to.
        sessions: the models.
        output: that labels are compared with.
        aligned: where the samples lie in the outputs.
        can_split: whether samples can be run one by one.
    """

    sums: _Sums
    sessions: Sessions
    output: str
    aligned: Alignment
    can_split: bool

    def add(self, part: Dataset, count: int) -> None:
        """Compare all outputs for the first `count` samples of a batch."""
        odd = self._add(part, count, None, may_put_off=self.can_split and len(part) > 1)
        # Of what a threshold lets through, in a batch some is always different; so it is told for single samples.
        for index in range(count if odd else 0):
            self._add(part.take(slice(index, index + 1)), 1, odd, may_put_off=False)

    def _add(self, part: Dataset, count: int, names: list[str] | None, *, may_put_off: bool) -> list[str]:
        """The names of outputs that were put off, as they are not of the size that so many samples should have."""
        found = {way: runtime.run(session, part.feeds) for way, session in self.sessions.items()}
        odd = []
        for name in names or list(found["original"]):
            values = {way: outputs[name] for way, outputs in found.items()}
            fronts = self.aligned.samples(name, len(part), *values.values())
            is_odd = name in self.aligned.places or len({value.shape for value in values.values()}) > 1
            if fronts is None and is_odd and may_put_off:
                odd.append(name)
                continue
            if fronts is not None:
                values = {way: value[:count] for way, value in zip(values, fronts, strict=True)}
            _add_values(self.sums, name, values, is_whole=fronts is None)
            if name == self.output and part.labels is not None:
                if fronts is None and not part.whole:
                    raise without_samples(name, values["original"], len(part))
                labels = of_call(part.labels[0], values["original"]) if part.whole else part.labels[:count]
                original = values["original"]
                _add_labels(self.sums, labels, original, values.get("library", values["stock"]))
                if "library" in values and name_classes(labels, original):
                    self.sums.stock_correct = self.sums.stock_correct or Correct()
                    self.sums.stock_correct.add(labels, original, values["stock"])
        return odd


def _add_values(sums: _Sums, name: str, values: Outputs, *, is_whole: bool) -> None:
    judged = values.get("library", values["stock"])
    original = values["original"]
    difference = sums.outputs.setdefault(name, Difference())
    difference.is_whole |= is_whole
    difference.add(original, judged)
    exact = flattened(original)
    kind = sums.kinds.get(name) or kind_of(exact)
    sums.losses.setdefault(name, Loss(kind)).add(exact, flattened(judged))
    if "library" in values:
        sums.stock_losses.setdefault(name, Loss(kind)).add(exact, flattened(values["stock"]))
        sums.library.setdefault(name, Difference()).add(values["stock"], judged)


def _add_labels(sums: _Sums, labels: NDArray[Any], expected: NDArray[Any], found: NDArray[Any]) -> None:
    if found.shape != expected.shape:
        # Whole calls only: samples of other shapes are refused before.
        found = np.full_like(expected, np.nan if expected.dtype.kind == "f" else 0)
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


def _require(sums: _Sums, file_bytes: tuple[int, int]) -> None:
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
    before, after = file_bytes
    if after >= before:
        raise VerificationError(
            f"The compressed file would have {after} bytes, the original has {before}: nothing was gained and nothing "
            "was written. The layers are too small for these settings; try a larger --sub-vector."
        )


def _differing(sums: _Sums, budget: float) -> dict[str, float]:
    """Outputs in which native operator and function body differ by more than usual, and by how much."""
    found = {}
    for name, difference in sums.library.items():
        own = budget * (FEW_NUMBERS_FACTOR if difference.numbers <= FEW_NUMBERS else 1)
        # Written so that NaN, which is above and below nothing, counts.
        if not (difference.relative <= own or difference.mean <= LIBRARY_ABSOLUTE):
            found[name] = difference.relative
    return found


def _explained(differing: Mapping[str, float], worst: layerwise.Gap | None, budget: float) -> str:
    """What to tell of a model in which the two differ, each layer of which does as it should.

    Raises:
        VerificationError: a layer does not, or nothing is known of any.
    """
    name, relative = next(iter(differing.items()))
    found = f"Output '{name}': native operator and function body differ by {relative:.2e} (relative L2)"
    # Written so that NaN, which is below nothing, is one.
    if worst is None or not worst.relative <= budget:
        alone = "" if worst is None else f" Node '{worst.node}' alone differs by {worst.relative:.2e}."
        raise VerificationError(
            f"{found}, at most {budget:.0e} is expected.{alone} Nothing was written. Please report this with the model."
        )
    return (
        f"{found}. No layer by itself differs by more than {worst.relative:.2e}; what follows makes more of it, as "
        "rounding, comparing and choosing the largest do. So another processor may change the outputs as much."
    )


def _batch_sizes(dataset: Dataset, fixed: int | None) -> Sequence[int]:
    if dataset.whole:
        return [1]
    return [fixed] if fixed else LATENCY_BATCHES


def _latency(sessions: Sessions, dataset: Dataset, size: int) -> Latency:
    """Median time of a call, the models taking turns so that a slow moment of the machine hits all of them."""
    index = np.resize(np.arange(len(dataset)), size)
    inputs = dataset.take(index).feeds
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

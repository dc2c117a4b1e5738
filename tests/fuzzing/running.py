"""One run of a case: inspect, compress, then the whole outputs of the result against the original's, by itself.

What is wrong is a sentence. What onnxpq refuses with an error of its own is no fault, unless it should have worked.
"""

import json
import math
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias
from unittest import mock

import numpy as np
import onnx
import onnx_ir
import onnxruntime
from fuzzing import comparing, decoding
from fuzzing.cases import Arrays, Case, draw
from fuzzing.comparing import Array, Output, Pair, is_near
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors

import onnxpq
from onnxpq import errors
from onnxpq.data import datasets, sizes
from onnxpq.graph import files
from onnxpq.quantization import inspection
from onnxpq.report import OutputReport, Report
from onnxpq.verification import proof

Outputs: TypeAlias = dict[str, Output]

LIBRARY_BUDGET, FAST_BUDGET, INT8_BUDGET, FEW_LAYERS = 1e-2, 1e-1, 1.5e-1, 11
"""docs: native operator against function body, and from how many layers on it grows."""

FEW_NUMBERS, FEW_FACTOR, ABSOLUTE = 100, 10, 2.5e-7
RANDOM_SAMPLES = 256
OTHER_ANSWERS = 0.25
"""Share of integers that may differ between the operator library and stock operators: of near ties, all differ."""

REFUSALS = {
    errors.NothingToCompressError: "",
    errors.FloorError: "",
    errors.TargetError: "",
    errors.VerificationError: "nothing was gained",
    errors.DataError: "does not run|too few|no entry for each of them|no random samples|is not of single samples",
    # Defects of onnxruntime's own: its optimizer of quantized activations makes originals fail as well. And it gives
    # what functions compute the same names in a branch and in an If within it, and then mixes them up where the outer
    # condition is a constant.
    errors.ModelError: "output_dtype INT8 does not match y_zero_point type UINT8|_inlfunc_PQ",
    errors.ConfigError: "has no gradient|can have at most that many codebooks",
}
"""Errors that are answers, and what they say then."""


@dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        seed: of the case.
        mode: of the case.
        answer: "compressed", the class of the error, or "no model" where onnxruntime does not run the original.
        faults: what is wrong, in sentences; none is as it should be.
        layers: how many were compressed.
        seconds: of processor time that it took.
    """

    seed: int
    mode: str
    answer: str
    faults: tuple[str, ...] = ()
    layers: int = 0
    seconds: float = 0.0


def run(seed: int) -> Outcome:
    """The run of a seed."""
    started = time.process_time()
    case = draw(seed)
    with (
        tempfile.TemporaryDirectory(prefix="onnxpq-fuzz-", ignore_cleanup_errors=True) as folder,
        warnings.catch_warnings(),
        # Times say nothing of models so small.
        mock.patch.object(proof, "LATENCY_ROUNDS", 1),
    ):
        warnings.simplefilter("error")
        found = _run(case, Path(folder))
    return Outcome(**{**vars(found), "seconds": round(time.process_time() - started, 3)})


def described(outcome: Outcome) -> str:
    """What is wrong with a run, and how to see it again."""
    faults = "\n  ".join(outcome.faults)
    return f"python -m benchmarks fuzz --seed {outcome.seed}   # {outcome.mode}: {outcome.answer}\n  {faults}"


def _run(case: Case, folder: Path) -> Outcome:
    source, path = _given(case, folder)
    try:
        original = _Model(path, library=False)
        if case.test is not None:
            original.calls(_features(case.test, case), case.batch)
    except _ORT_ERRORS:
        return Outcome(case.seed, case.mode, "no model")
    config = onnxpq.Config.from_dict(case.settings)
    try:
        listing = inspection.describe(source, config)
        result = onnxpq.compress(source, case.data, test=case.test, labels=case.labels, config=config)
        answer, raised = "compressed", None
    except errors.OnnxpqError as error:
        answer, raised, result = type(error).__name__, error, getattr(error, "result", None)
        if result is None:
            return Outcome(case.seed, case.mode, answer, tuple(_refused(case, error)))
    except Exception:
        return Outcome(case.seed, case.mode, "traceback", (traceback.format_exc(limit=-6),))
    with np.errstate(all="ignore"):
        faults = _Check(case, path, original, result.report, folder, raised).faults(result, listing)
    return Outcome(case.seed, case.mode, answer, tuple(faults), len(result.report.layers))


def _given(case: Case, folder: Path) -> tuple[Any, Path]:
    """The original as it is passed, and as a file."""
    path = folder / "model.onnx"
    if case.source == "external":
        onnx.save(case.model, path, save_as_external_data=True, location="model.data", size_threshold=256)
        # What was saved is changed: it refers to the file.
        return path, path
    path.write_bytes(case.model.SerializeToString())
    if case.source == "ir":
        return onnx_ir.from_proto(case.model), path
    return {"proto": case.model, "bytes": path.read_bytes(), "file": path}[case.source], path


def _refused(case: Case, error: errors.OnnxpqError) -> list[str]:
    """What is wrong with an error without a result."""
    words = REFUSALS.get(type(error))
    text = str(error)
    if words is not None and any(part in text for part in words.split("|")):
        return []
    return [f"{type(error).__name__}: {text}"]


_ORT_ERRORS = tuple(
    kind for kind in vars(ort_errors).values() if isinstance(kind, type) and issubclass(kind, Exception)
)


def _features(samples: Mapping[str, Array], case: Case) -> Arrays:
    return {name: array for name, array in samples.items() if name != case.labels}


class _Model:
    """A model in a session of its own."""

    def __init__(self, path: Path, *, library: bool) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if library:
            options.register_custom_ops_library(onnxpq.library_path())
        self.session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.names = [output.name for output in self.session.get_outputs()]

    def calls(self, samples: Arrays, size: int | None) -> list[Outputs]:
        """What it gives for samples, so many in a call, or all."""
        count = len(next(iter(samples.values())))
        size = size or count
        found = []
        for start in range(0, count, size):
            feeds = {name: array[start : start + size] for name, array in samples.items()}
            values = self.session.run(self.names, feeds)
            found.append({name: _as_arrays(value) for name, value in zip(self.names, values, strict=True)})
        return found


def _as_arrays(value: Any) -> Output:
    return [np.asarray(part) for part in value] if isinstance(value, list) else np.asarray(value)


@dataclass
class _Check:
    """Compares a result with the original and the report with both."""

    case: Case
    path: Path
    original: _Model
    report: Report
    folder: Path
    raised: errors.OnnxpqError | None

    def faults(self, result: onnxpq.Result, listing: str) -> list[str]:
        found: list[str] = []
        # The name of a file of external data counts among the model's bytes: that of the one which was verified.
        target = self.folder / "result" / "compressed.onnx"
        target.parent.mkdir()
        result.save(target)
        found += self._file(target, listing)
        samples, labels = self._samples()
        try:
            models = {"original": self.original, "stock": _Model(target, library=False)}
            if onnxpq.library_available():
                models["library"] = _Model(target, library=True)
            ways = {way: model.calls(samples, self.case.batch) for way, model in models.items()}
        except _ORT_ERRORS as error:
            return [*found, f"the result does not run: {error}"]
        singles: dict[str, list[Outputs]] = {}
        if self.case.batch is None:
            with suppress(*_ORT_ERRORS):
                singles = {way: model.calls(samples, 1) for way, model in models.items()}
        for output in self.report.verification.outputs:
            found += self._output(output, ways, singles)
        found += self._floor(ways, singles)
        found += self._library(ways, singles)
        found += self._accuracy(ways, labels)
        if self.case.mode in ("plain", "test", "plain ratio"):
            found += decoding.faults(self.path, target, self.report, samples, self.case.batch) or []
        return found

    def _samples(self) -> tuple[Arrays, Array | None]:
        """What the report says that it was measured on."""
        case = self.case
        if case.test is not None:
            return _features(case.test, case), case.test.get(case.labels or "")
        model = files.load(self.path)
        config = onnxpq.Config.from_dict(case.settings)
        if case.data is None:
            session = onnxpq.session(str(self.path), use_library=False)
            names = [output.name for output in session.get_outputs()]
            specs, _ = sizes.found(model, _quiet(session, names), config.seed)
            samples = datasets.random_inputs(specs, RANDOM_SAMPLES, config.seed)
            return dict(samples.inputs), None
        count = len(next(iter(case.data.values())))
        _, aside = datasets.split_rows(count, config.held_out, config.seed)
        taken = {name: array[aside] for name, array in case.data.items()}
        return _features(taken, case), taken.get(case.labels or "")

    def _file(self, target: Path, listing: str) -> list[str]:
        """Validity, interface, sizes and layers."""
        found, verified = [], self.report.verification
        for full in (False, True):
            if _is_valid(self.path, full) and not _is_valid(target, full):
                found.append(f"ONNX's checker (full {full}) takes the original and not the result")
        bytes_of = {"original": _bytes(self.path), "result": _bytes(target)}
        if self.case.source == "ir":
            # Nobody wrote it yet.
            bytes_of["original"] = verified.bytes_before
        if bytes_of["original"] != verified.bytes_before or bytes_of["result"] != verified.bytes_after:
            found.append(f"sizes: {bytes_of}, the report says {verified.bytes_before}, {verified.bytes_after}")
        one, two = (onnx.load(path, load_external_data=False).graph for path in (self.path, target))
        if [v.name for v in one.output] != [v.name for v in two.output]:
            found.append("the outputs have other names or another order")
        found += [
            f"output '{a.name}' has another type"
            for a, b in zip(one.output, two.output, strict=True)
            if a.type != b.type
        ]
        given = {v.name: v.type for v in one.input if v.name not in {t.name for t in one.initializer}}
        if given != {v.name: v.type for v in two.input if v.name not in {t.name for t in two.initializer}}:
            found.append("the inputs differ")
        found += [
            f"layer '{layer.node}' is not in what inspect lists"
            for layer in self.report.layers
            if layer.node not in listing
        ]
        own = {t.name: len(t.raw_data) or _external_bytes(t) for t in one.initializer}
        for layer in self.report.layers:
            wanted = own.get(layer.weight)
            if wanted and layer.bytes_before not in (0, wanted):
                found.append(f"weight '{layer.weight}' has {wanted} bytes, the report says {layer.bytes_before}")
        json.loads(self.report.to_json())
        if not self.report.to_text():
            found.append("the report is empty")
        return found

    def _pairs(self, name: str, calls: dict[str, list[Outputs]], way: str, of: str = "original") -> list[Pair]:
        return [(one[name], two[name]) for one, two in zip(calls[of], calls[way], strict=True)]

    def _counted(
        self, name: str, ways: dict[str, list[Outputs]], singles: dict[str, list[Outputs]]
    ) -> dict[str, list[Outputs]]:
        """The calls that the report says it compared: of all samples, or of one each where shapes depend on values."""
        report = next(output for output in self.report.verification.outputs if output.name == name)
        return singles if singles and report.values > len(ways["original"]) else ways

    def _axes(self, name: str) -> list[int | None]:
        """Where the samples may lie: nothing in a file with a fixed batch tells."""
        shape = next(v.shape for v in self.case.outputs if v.name == name)
        if self.case.batch is not None:
            return [None, *range(len(shape))]
        return [shape.index("N") if "N" in shape else None]

    def _judged(self, ways: Mapping[str, Any]) -> str:
        return "library" if "library" in ways else "stock"

    def _output(
        self, report: OutputReport, ways: dict[str, list[Outputs]], singles: dict[str, list[Outputs]]
    ) -> list[str]:
        name, found = report.name, []
        calls = self._counted(name, ways, singles)
        pairs = self._pairs(name, calls, self._judged(ways))
        if report.values != len(pairs):
            found.append(f"output '{name}': {report.values} calls in the report, {len(pairs)} here")
        expected = [comparing.figures(pairs, axis) for axis in self._axes(name)]
        for what in ("relative_error", "max_error", "agreement", "reshaped"):
            figures = [getattr(entry, what) for entry in expected]
            if self.case.batch == 1 and what == "agreement":
                # A call is a sample: [C] may be taken for the scores of one.
                figures.append(_as_one(pairs))
            if not is_near(getattr(report, what), figures):
                found.append(f"output '{name}': {what} {getattr(report, what)} in the report, {figures} here")
        shape = next(v.shape for v in self.case.outputs if v.name == name)
        is_open = any(isinstance(dim, str) and dim[0] == "?" for dim in shape) or isinstance(pairs[0][0], list)
        has_samples = any(isinstance(dim, str) and dim[0] == "N" for dim in shape)
        if self.case.batch is None and not is_open and 0 not in shape and report.is_whole is has_samples:
            found.append(f"output '{name}' {shape}: is_whole is {report.is_whole}")
        dtypes = {way: {str(part.dtype) for call in calls[way] for part in _flat(call[name])} for way in calls}
        if len({frozenset(kinds) for kinds in dtypes.values()}) > 1:
            found.append(f"output '{name}' has other types: {dtypes}")
        return found

    def _floor(self, ways: dict[str, list[Outputs]], singles: dict[str, list[Outputs]]) -> list[str]:
        floor, found = self.report.verification.floor, []
        pairs = self._pairs(floor.output, self._counted(floor.output, ways, singles), self._judged(ways))
        if floor.measure == "loss of accuracy":
            accuracy = self.report.verification.accuracy
            losses = [None if accuracy is None else accuracy.drop.value]
        else:
            losses = [comparing.loss(floor.measure, pairs, axis) for axis in self._axes(floor.output)]
            if self.case.batch == 1:
                losses.append(comparing.loss(floor.measure, [(_row(one), _row(two)) for one, two in pairs]))
        if not is_near(floor.loss, losses):
            found.append(f"floor: {floor.measure} {floor.loss} of '{floor.output}' in the report, {losses} here")
        limit = self.case.settings["floor"]
        made_up = self.case.mode in ("plain", "plain ratio")
        wanted = comparing.FLOORS[floor.measure] * (4 if made_up else 1) if limit is None else limit
        if not is_near(floor.limit, [wanted]):
            found.append(f"floor: limit {floor.limit} in the report, {wanted} expected")
        still = {
            name
            for name in self.original.names
            if _all_floats(ways["original"], name)
            and comparing.stands_still(self._pairs(name, self._counted(name, ways, singles), self._judged(ways)))
        }
        if not still <= {entry.output for entry in floor.still}:
            found.append(f"floor: {still} stand still, the report says {floor.still}")
        kept = floor.loss <= floor.limit and not floor.still
        if kept is isinstance(self.raised, errors.FloorError):
            found.append(f"floor: kept is {kept}, and the answer is {self.raised!r}")
        return found

    def _library(self, ways: dict[str, list[Outputs]], singles: dict[str, list[Outputs]]) -> list[str]:
        """Operator library against stock operators."""
        if "library" not in ways:
            return []
        found, largest = [], 0.0
        # Then each layer was compared by itself; what the model makes of small differences is its own affair.
        is_told = any("native operator and function body differ" in note for note in self.report.notes)
        fast = self.case.settings["pq"]["fast"]
        int8 = any(layer.body == "int8" for layer in self.report.layers)
        budget = INT8_BUDGET if int8 else FAST_BUDGET if fast else LIBRARY_BUDGET
        budget *= math.sqrt(max(1.0, len(self.report.layers) / FEW_LAYERS))
        for name in self.original.names:
            # In a batch, what a threshold lets through is another row for one that is left out.
            figures = comparing.figures(self._pairs(name, self._counted(name, ways, singles), "library", "stock"))
            own = budget * (FEW_FACTOR if figures.numbers <= FEW_NUMBERS else 1)
            error = figures.relative_error
            if error is not None and error > own and not is_told and figures.mean > ABSOLUTE:
                found.append(f"output '{name}': library against stock {error:.2e}, at most {own:.0e}")
            if (
                error is None
                and figures.agreement is not None
                and figures.agreement < 1 - OTHER_ANSWERS
                and not figures.reshaped
            ):
                found.append(f"output '{name}': library and stock agree in {figures.agreement} only")
            if figures.mean > ABSOLUTE:
                largest = max(largest, figures.relative_error if figures.relative_error is not None else 0.0)
        reported = self.report.verification.library_agreement
        if all(_all_floats(ways["original"], name) for name in self.original.names) and not is_near(
            reported, [largest]
        ):
            found.append(f"library against stock: {reported} in the report, {largest} here")
        return found

    def _accuracy(self, ways: dict[str, list[Outputs]], labels: Array | None) -> list[str]:
        verified = self.report.verification
        if labels is None or self.case.labels is None:
            return [] if verified.accuracy is None and verified.squared_error is None else ["figures without labels"]
        name = self.case.settings["output"]
        before, after = (np.concatenate([call[name] for call in ways[way]]) for way in ("original", self._judged(ways)))
        if np.issubdtype(labels.dtype, np.integer):
            expected = [comparing.top_accuracy(scores, labels) for scores in (before, after)]
            accuracy = verified.accuracy
            found = None if accuracy is None else [accuracy.original.value, accuracy.compressed.value]
            drop = None if accuracy is None else accuracy.drop.value
            if not is_near(drop, [expected[0] - expected[1]]):
                return [f"drop of accuracy: {drop} in the report, {expected[0] - expected[1]} here"]
        else:
            expected = [
                float(np.square(scores.reshape(labels.shape).astype(np.float64) - labels).mean())
                for scores in (before, after)
            ]
            error = verified.squared_error
            found = None if error is None else [error.original, error.compressed]
        if found is None or not all(is_near(a, [b]) for a, b in zip(found, expected, strict=True)):
            return [f"by labels: {found} in the report, {expected} here"]
        return []


def _quiet(session: Any, names: list[str]) -> Callable[[Mapping[str, Array]], dict[str, Array]]:
    """A function that runs the original, for onnxpq's own choice of sizes."""
    options = onnxruntime.RunOptions()
    options.log_severity_level = 4

    def call(feeds: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return dict(zip(names, session.run(names, dict(feeds), options), strict=True))
        except _ORT_ERRORS as error:
            raise errors.ModelError(str(error)) from error

    return call


def _is_valid(path: Path, full: bool) -> bool:
    try:
        onnx.checker.check_model(str(path), full_check=full)
    # The checker raises several classes without a common base.
    except Exception:
        return False
    return True


def _bytes(path: Path) -> int:
    names = {
        entry.value
        for tensor in onnx.load(path, load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in names)


def _external_bytes(tensor: onnx.TensorProto) -> int:
    return next((int(entry.value) for entry in tensor.external_data if entry.key == "length"), 0)


def _row(output: Output) -> Output:
    return output if isinstance(output, list) else output[None]


def _as_one(pairs: list[Pair]) -> float | None:
    return comparing.figures([(_row(one), _row(two)) for one, two in pairs]).agreement


def _flat(output: Output) -> list[Array]:
    return output if isinstance(output, list) else [output]


def _all_floats(calls: list[Outputs], name: str) -> bool:
    return all(np.issubdtype(part.dtype, np.floating) for call in calls for part in _flat(call[name]))

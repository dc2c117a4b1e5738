"""What a run did and found: records that the stages fill in, and their text and JSON forms.

Units are in the names or the docstrings: bytes, milliseconds, shares in [0, 1]; errors are relative L2 (0 is exact)
unless said.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from onnxpq.report.floor import FloorReport
from onnxpq.report.target import TargetReport
from onnxpq.support.figures import Interval, LeftAlone, left_alone, table

END_TO_END = "end to end"
LAYER_WISE = "layer-wise"
NOT_PROVEN = "Nothing was proven"
"""How a report begins whose samples are not real, were trained on, or show nothing of the output that counts."""

NOT_TRAINED = "not trained"
"""How a layer was trained; the latter two are followed by a colon and the reason."""


@dataclass(frozen=True)
class LayerReport:
    """One compressed layer.

    Attributes:
        node: its node.
        weight: its initializer.
        shape: (out, in).
        sub_vector: d.
        codewords: K.
        groups: G.
        bytes_before: of the weight; 0 where a layer above that shares it already counts them.
        bytes_after: of codes, codebooks, scales and the order of the inputs; 0 where a layer above in the same graph
            already counts them. Each subgraph that shares a weight has its own copy of these.
        weight_error: relative L2 difference between the final weight and the user's.
        place: the subgraph that the node lies in; empty for the main graph.
        training: how it was trained and, unless end to end, why not end to end; "" without training.
        body: how runtimes without the operator library multiply, "int8" or "float"; "" where rows are looked up.
        input_error: what int8 adds to its outputs there, relative to them, as far as data tell.
    """

    node: str
    weight: str
    shape: tuple[int, int]
    sub_vector: int
    codewords: int
    groups: int
    bytes_before: int
    bytes_after: int
    weight_error: float
    place: str = ""
    training: str = ""
    body: str = ""
    input_error: float | None = None


@dataclass(frozen=True)
class SkippedReport:
    """A node that was left alone, why, and the bytes of its constants (0 where a node before it counts them)."""

    node: str
    op_type: str
    reason: str
    nbytes: int = 0


@dataclass(frozen=True)
class OutputReport:
    """How far one output of the compressed model is from the original's.

    Attributes:
        name: of the output.
        max_error: largest absolute difference where the shapes are the same; None where the output holds no floats, or
            all shapes differ.
        relative_error: relative L2 difference over all samples; likewise.
        agreement: share of rows with the same largest entry (for integer outputs: of entries with the same value), with
            none where the shapes differ; None where that means nothing (one column).
        values: arrays compared, one for each call.
        reshaped: those of them that have other shapes.
        shapes: the first such shapes: the original's, and the compressed model's.
        is_empty: whether the original gave nothing at all.
        is_whole: whether the output is compared as it is in a call, as it has no entry for each sample.
    """

    name: str
    max_error: float | None
    relative_error: float | None
    agreement: float | None
    values: int = 0
    reshaped: int = 0
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    is_empty: bool = False
    is_whole: bool = False


@dataclass(frozen=True)
class Accuracy:
    """Share of samples whose label is the largest score, before and after.

    Attributes:
        output: the scores looked at.
        original: Wilson score interval.
        compressed: likewise.
        drop: original - compressed, with an interval for paired samples.
    """

    output: str
    original: Interval
    compressed: Interval
    drop: Interval


@dataclass(frozen=True)
class SquaredError:
    """Mean squared error against numeric labels, before and after."""

    output: str
    original: float
    compressed: float


@dataclass(frozen=True)
class Latency:
    """Median milliseconds of one call, measured in turns in one process.

    Attributes:
        batch: samples per call.
        original: the user's model.
        library: the compressed one on the native operator; None where the library was not built.
        stock: the compressed one on the function body; None where the model is large (`graph.files.LARGE_BYTES`).
    """

    batch: int
    original: float
    library: float | None
    stock: float | None


@dataclass(frozen=True)
class Verification:
    """The original against the compressed model in onnxruntime.

    Attributes:
        data: what it was measured on, in words.
        samples: number of them, or of whole calls.
        held_out: none of them was used to train or to choose.
        bytes_before: of the original file, external data included.
        bytes_after: of the compressed one.
        outputs: per output, on the native operator where there is one, else on the function body.
        library_agreement: largest relative L2 difference of an output between native operator and function body; None
            without the library.
        accuracy: where there are class labels.
        squared_error: where there are numeric labels.
        latency: per batch size.
        floor: what the output that counts has lost, and what it may lose.
        of_calls: whether `samples` are whole calls.
        stock_floor: the same for runtimes without the operator library, where those multiply in int8.
    """

    data: str
    samples: int
    held_out: bool
    bytes_before: int
    bytes_after: int
    outputs: tuple[OutputReport, ...]
    library_agreement: float | None
    accuracy: Accuracy | None
    squared_error: SquaredError | None
    latency: tuple[Latency, ...]
    floor: FloorReport
    of_calls: bool = False
    stock_floor: FloorReport | None = None

    @property
    def floors(self) -> tuple[FloorReport, ...]:
        """All that have to be kept."""
        return (self.floor,) if self.stock_floor is None else (self.floor, self.stock_floor)

    @property
    def count(self) -> str:
        """How many samples or calls there were, in words."""
        return f"{self.samples} {'call' if self.of_calls else 'sample'}{'' if self.samples == 1 else 's'}"


@dataclass(frozen=True)
class Epoch:
    """The training from one validation to the next.

    Attributes:
        phase: "regularized" (float weights under the term) or "tuned" (what is stored, with the codes in place).
        loss: mean training loss, the term left out.
        validation: validation loss of the quantized network.
        alpha: weight of the term at the end.
    """

    phase: str
    loss: float
    validation: float
    alpha: float


@dataclass(frozen=True)
class Training:
    """How the fine-tuning went.

    Attributes:
        loss: what was minimised, in words.
        samples: trained on.
        validation_samples: held out to choose the best epoch.
        prefix: how many nodes were run once by onnxruntime because nothing before them is trained.
        forward_error: largest relative difference of a value between torch and onnxruntime before training.
        forward_node: the node where it is.
        before: validation loss of the original.
        quantized: validation loss after product quantization alone.
        best: validation loss of the network that was kept.
        batch: samples per step.
        steps: as planned; with this batch size they repeat the run on any machine.
        epochs: in order.
        of_calls: whether samples are whole calls.
    """

    loss: str
    samples: int
    validation_samples: int
    prefix: int
    forward_error: float
    forward_node: str
    before: float
    quantized: float
    best: float
    batch: int
    steps: int
    epochs: tuple[Epoch, ...]
    of_calls: bool = False


@dataclass(frozen=True)
class LayerTraining:
    """A layer that was trained by itself, against the original layer's outputs.

    Attributes:
        node: its node.
        reason: why the gradient of the model's output could not be used.
        rows: inputs of the layer that it was trained on, as captured in onnxruntime.
        validation_rows: others, held out to choose the best epoch.
        quantized: relative squared error of the layer's outputs after product quantization alone.
        best: that of the state that was kept.
        epochs: in order.
    """

    node: str
    reason: str
    rows: int
    validation_rows: int
    quantized: float
    best: float
    epochs: tuple[Epoch, ...]


@dataclass(frozen=True)
class Report:
    """All that is known of a run.

    Attributes:
        layers: compressed.
        skipped: left alone.
        training: of the layers that were trained end to end; None where there were none.
        verification: in onnxruntime.
        notes: sentences that the user should read.
        settings: the configuration as plain values.
        made_from: the manifest: hashes of model and data, versions, machine (`onnxpq.workspace.manifest`).
        seconds: by stage.
        layer_wise: of the layers that were trained each by itself. Without training of either kind it is plain product
            quantization.
        target: what was to be reached, tried and reached; None without a target.
    """

    layers: tuple[LayerReport, ...]
    skipped: tuple[SkippedReport, ...]
    training: Training | None
    verification: Verification
    notes: tuple[str, ...] = ()
    settings: dict[str, object] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    made_from: dict[str, object] = field(default_factory=dict)
    layer_wise: tuple[LayerTraining, ...] = ()
    target: TargetReport | None = None

    @property
    def ratio(self) -> float:
        """Bytes of the original file over those of the compressed one."""
        return self.verification.bytes_before / self.verification.bytes_after

    @property
    def layer_ratio(self) -> float:
        """Bytes of the compressed layers' weights before over after."""
        return sum(layer.bytes_before for layer in self.layers) / max(
            1, sum(layer.bytes_after for layer in self.layers)
        )

    def to_json(self) -> str:
        """The report as JSON, with the two ratios added; what is infinite or NaN becomes null, as JSON has neither."""
        values = {"ratio": self.ratio, "layer_ratio": self.layer_ratio, **dataclasses.asdict(self)}
        return json.dumps(_finite(values), indent=2, allow_nan=False)

    def to_text(self) -> str:
        """The report as a person reads it."""
        skipped = left_alone(LeftAlone(entry.node, entry.op_type, entry.reason, entry.nbytes) for entry in self.skipped)
        sections = [_not_proven(self.verification)]
        sections += [_layers(self.layers), skipped]
        if self.training is not None:
            sections.append(_training(self.training))
        sections.append(_layer_wise(self.layers, self.layer_wise))
        sections.append(self._verification())
        sections.append("\n".join(floor.to_text() for floor in self.verification.floors))
        if self.target is not None:
            sections.append(self.target.to_text())
        sections.extend(f"Note: {note}" for note in self.notes)
        return "\n\n".join(section for section in sections if section)

    def _verification(self) -> str:
        found = self.verification
        lines = [
            f"Verified on {found.count}: {found.data}",
            f"  file           {_bytes(found.bytes_before)} -> {_bytes(found.bytes_after)}, "
            f"{self.ratio:.1f} times smaller",
            f"  layers         {self.layer_ratio:.1f} times smaller",
        ]
        for output in found.outputs:
            lines.append(f"  output         {output.name}: {_output(output)}")
        if found.accuracy is not None:
            lines.append(f"  accuracy       {_accuracy(found.accuracy)}")
        if found.squared_error is not None:
            error = found.squared_error
            lines.append(f"  squared error  {error.original:.6g} -> {error.compressed:.6g} ({error.output})")
        if found.library_agreement is not None:
            lines.append(f"  native against stock operators: relative difference {found.library_agreement:.1e}")
        lines += ["", *_latency(found.latency)]
        return "\n".join(lines)


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _layers(layers: Sequence[LayerReport]) -> str:
    head = ("layer", "weight", "out x in", "d", "K", "G", "bytes before", "after", "ratio", "change of weights")
    rows = [
        (
            f"{layer.node} in {layer.place}" if layer.place else layer.node,
            layer.weight,
            f"{layer.shape[0]} x {layer.shape[1]}",
            str(layer.sub_vector),
            str(layer.codewords),
            str(layer.groups),
            str(layer.bytes_before),
            str(layer.bytes_after),
            f"{layer.bytes_before / layer.bytes_after:.1f}" if layer.bytes_before and layer.bytes_after else "-",
            f"{layer.weight_error:.3f}",
        )
        for layer in layers
    ]
    return "Compressed layers\n" + table([head, *rows])


def _training(training: Training) -> str:
    phases: dict[str, int] = {}
    for epoch in training.epochs:
        phases[epoch.phase] = phases.get(epoch.phase, 0) + 1
    samples = "calls" if training.of_calls else "samples"
    passes = ", ".join(f"{count} {phase}" for phase, count in phases.items()) or "none"
    return "\n".join(
        [
            f"Fine-tuned on {training.samples} {samples} by {training.loss}, in {training.steps} steps of "
            f"{training.batch} {samples} (--steps {training.steps} --batch-size {training.batch}); validations: "
            f"{passes}",
            f"  torch against onnxruntime before training: relative difference {training.forward_error:.1e} "
            f"(node {training.forward_node}); {training.prefix} nodes run once and cached",
            f"  loss on {training.validation_samples} validation {samples}: original {training.before:.4g}, "
            f"product quantization alone {training.quantized:.4g}, fine-tuned {training.best:.4g}",
        ]
    )


def _layer_wise(layers: Sequence[LayerReport], trained: Sequence[LayerTraining]) -> str:
    lines = [
        f"  {entry.node}: relative squared error {entry.quantized:.4g} by product quantization alone, {entry.best:.4g} "
        f"fine-tuned on {entry.rows} rows, {len(entry.epochs)} epochs; because {entry.reason}"
        for entry in trained
    ]
    if lines:
        lines.insert(0, "Fine-tuned layer by layer, each against the original layer's outputs")
    untrained = [f"  {layer.node}: {layer.training}" for layer in layers if layer.training.startswith(NOT_TRAINED)]
    return "\n".join([*lines, *(["Not fine-tuned", *untrained] if untrained else [])])


def _not_proven(verification: Verification) -> str:
    """The first line of a report that proves nothing; empty where something was proven."""
    reasons = [] if verification.held_out else [verification.data]
    counts = verification.floor.output
    if any(output.is_empty and output.name == counts for output in verification.outputs):
        reasons.append(f"output '{counts}' was empty in all calls, so that nothing was compared")
    return f"{NOT_PROVEN}: {'; '.join(reasons)}." if reasons else ""


def _output(output: OutputReport) -> str:
    found = [f"as a whole in {output.values} calls"] if output.is_whole else []
    if output.relative_error is not None and output.max_error is not None:
        found.append(f"relative error {output.relative_error:.4f}, largest difference {output.max_error:.4g}")
    if output.agreement is not None:
        what = "same value" if output.relative_error is None else "same top-1"
        found.append(f"{what} {100 * output.agreement:.2f} %")
    if output.shapes is not None:
        one, other = (list(shape) for shape in output.shapes)
        found.append(f"ANOTHER SHAPE in {output.reshaped} of {output.values} calls, such as {other} instead of {one}")
    if output.is_empty:
        found.append("empty in all calls, so that nothing was compared")
    return ", ".join(found)


def _accuracy(accuracy: Accuracy) -> str:
    before, after, drop = accuracy.original, accuracy.compressed, accuracy.drop
    return (
        f"{100 * before.value:.2f} % -> {100 * after.value:.2f} % [{100 * after.low:.2f}, {100 * after.high:.2f}] "
        f"({accuracy.output}); drop {100 * drop.value:.2f} points [{100 * drop.low:.2f}, {100 * drop.high:.2f}]"
    )


def _latency(latency: Sequence[Latency]) -> list[str]:
    head = ("milliseconds a call", "original", "native operator", "stock operators")
    rows = [
        (
            f"batch {entry.batch}",
            f"{entry.original:.3f}",
            "-" if entry.library is None else f"{entry.library:.3f}",
            "-" if entry.stock is None else f"{entry.stock:.3f}",
        )
        for entry in latency
    ]
    lines = [table([head, *rows])] if rows else []
    if any(entry.stock is None for entry in latency):
        lines.append("  stock operators were not timed: loading them takes nine times the bytes of the layers")
    return lines


def _bytes(count: int) -> str:
    return f"{count:,} bytes"

"""What a target asked for, what was tried for it, and what was reached: records, and their text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from onnxpq.support.figures import Interval, table

_DROPS: Final = {"mse": "increase of the squared error", "relative mse": "squared error, relative to the output"}


@dataclass(frozen=True)
class Trial:
    """One model that was made in search of the target.

    Attributes:
        file_bytes: of its file.
        layer_bytes: of the compressed layers in it.
        trained: share of the training that it got: 0 is product quantization alone, 1 all of it.
        expected_error: relative L2 error of the output that the sensitivity pass expects without training; without
            data, root of the sum of the layers' squared relative errors of the weights.
        relative_error: the one found; None without data, or where the output holds no floats.
        drop: of the metric; None without data.
        met: whether it keeps to what was asked.
    """

    file_bytes: int
    layer_bytes: int
    trained: float
    expected_error: float
    relative_error: float | None
    drop: Interval | None
    met: bool


@dataclass(frozen=True)
class TargetReport:
    """How a target was sought.

    Attributes:
        asked: what was asked for, in words.
        reached: whether the result is that.
        outcome: what the result is, in words.
        metric: what `drop` is a drop of; None without data.
        decided_on: the samples that trials were judged by, in words; None without data.
        trials: in order of time.
        chosen: index of the trial that became the result.
        proof: drop of the result on the samples that the report verifies on; None without data.
        expected: the best that is expected without training: for some numbers of bytes of the file the relative L2
            error of the output, without data as in `Trial`.
        remark: what makes the decision doubtful, if anything does.
        corrections: what was not as expected, and what was done about it, in whole sentences.
    """

    asked: str
    reached: bool
    outcome: str
    metric: str | None
    decided_on: str | None
    trials: tuple[Trial, ...]
    chosen: int
    proof: Interval | None
    expected: tuple[tuple[int, float], ...]
    remark: str | None = None
    corrections: tuple[str, ...] = ()

    def to_text(self) -> str:
        """As a person reads it."""
        lines = [f"Target: {self.asked}", f"  {'reached' if self.reached else 'MISSED'}: {self.outcome}"]
        if self.proof is not None and self.metric is not None:
            lines.append(f"  {drop_of(self.metric)} on the verification samples: {percent(self.proof)}")
        if self.remark is not None:
            lines.append(f"  {self.remark}")
        lines += [f"  {sentence}" for sentence in self.corrections]
        where = "" if self.decided_on is None else f", judged on {self.decided_on}"
        lines += [f"Tried{where}", _trials(self.trials, self.chosen, self.metric)]
        if self.expected:
            lines += ["Expected without training, by the sensitivity of the layers"]
            lines.append(table([("file bytes", "relative error"), *((str(b), f"{e:.4f}") for b, e in self.expected)]))
        return "\n".join(lines)


def drop_of(metric: str) -> str:
    """What a drop by a metric is called."""
    return _DROPS.get(metric, f"drop of {metric}")


def percent(drop: Interval) -> str:
    """A drop with its interval, in per cent."""
    return f"{100 * drop.value:.2f} % [{100 * drop.low:.2f}, {100 * drop.high:.2f}]"


def _trials(trials: Sequence[Trial], chosen: int, metric: str | None) -> str:
    head = ("file bytes", "layers", "trained", "expected error", "found", drop_of(metric or "metric"), "kept to", "")
    rows = [
        (
            str(trial.file_bytes),
            str(trial.layer_bytes),
            {0.0: "no", 1.0: "yes"}.get(trial.trained, f"{trial.trained:.0%}"),
            _number(trial.expected_error),
            _number(trial.relative_error),
            "-" if trial.drop is None else percent(trial.drop),
            "yes" if trial.met else "no",
            "<- the result" if index == chosen else "",
        )
        for index, trial in enumerate(trials)
    ]
    return table([head, *rows])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"

"""Settings of a target: what the result has to reach."""

from dataclasses import dataclass
from typing import Final

from onnxpq.errors import ConfigError
from onnxpq.support.checks import integer, real, sentence

METRICS: Final = ("auto", "accuracy", "mse", "agreement")


@dataclass(frozen=True)
class TargetConfig:
    """What the result has to reach. The layers' sub-vectors, codewords and codebooks then follow from measurement.

    Attributes:
        ratio: bytes of the original file over those of the compressed one, at least.
        fc_ratio: the same of the weights of the compressed layers alone.
        size: bytes of the compressed file, at most.
        max_drop: how much the metric may lose, at most, as a share: 0.005 are half a point of accuracy. Without a limit
            of bytes the smallest file that keeps to it is sought; with one, that is what the file of those bytes has
            to keep to.
        metric: "accuracy" (needs class labels), "agreement" (share of samples whose largest output is the original's),
            "mse" (mean squared error: with numeric labels its increase as a share of the original's, else the error
            against the original's outputs as a share of their mean square), or "module:function" (a score of your own:
            see `onnxpq.verification.scoring`); "auto": with labels accuracy or mse as they are, else agreement where
            the output has scores of classes (`onnxpq.verification.outputs`) and mse where not.
        attempts: how often the model is trained wholly, at most, in search of the smallest file that keeps to
            `max_drop`; some brief trainings go before.
        max_codewords: most codewords that a layer may get: with 16 all layers run at full speed, with 256 a file of the
            same bytes is more accurate.
    """

    ratio: float | None = None
    fc_ratio: float | None = None
    size: int | None = None
    max_drop: float | None = None
    metric: str = "auto"
    attempts: int = 2
    max_codewords: int = 256

    def __post_init__(self) -> None:
        for name in ("ratio", "fc_ratio"):
            if getattr(self, name) is not None:
                real(self, name, 1, 1e6)
        if self.size is not None:
            integer(self, "size", 1, 2**50)
        if self.max_drop is not None:
            real(self, "max_drop", 0, 1)
        named = isinstance(self.metric, str) and all(self.metric.partition(":"))
        if not named and self.metric not in METRICS:
            wanted = "one of " + ", ".join(f"'{name}'" for name in METRICS) + ", or 'module:function'"
            raise ConfigError(sentence(self, "metric", wanted, self.metric))
        integer(self, "attempts", 1, 100)
        integer(self, "max_codewords", 16, 256)
        limits = [name for name in ("ratio", "fc_ratio", "size") if getattr(self, name) is not None]
        if len(limits) > 1:
            raise ConfigError(
                f"'{limits[0]}' and '{limits[1]}' of TargetConfig both say how large the result may be. Give one "
                "of them."
            )

    @property
    def is_set(self) -> bool:
        """Whether there is anything to reach."""
        return self.limits_bytes or self.max_drop is not None

    @property
    def is_for_file(self) -> bool:
        """Whether the size of the whole file matters, not that of some layers: `max_drop` alone seeks a small file."""
        return self.is_set and self.fc_ratio is None

    @property
    def limits_bytes(self) -> bool:
        """Whether it says how large the result may be."""
        return any(value is not None for value in (self.ratio, self.fc_ratio, self.size))

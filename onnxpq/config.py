"""Settings: frozen, checked once when they are made, and the same from Python, the command line and a TOML file."""

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Final, TypeVar

from onnxpq.errors import ConfigError
from onnxpq.opschema import MAX_NIBBLE_CODEWORDS

REGULARIZERS: Final = ("codebook", "murray-ng", "l1", "l2", "quartic", "none")
DEFAULT_ALPHA: Final = {"codebook": 1.0, "murray-ng": 0.01, "l1": 0.01, "l2": 0.01, "quartic": 0.01, "none": 0.0}
"""Final weight of each term where the user names none (benchmarks/regularization.py)."""

LOSSES: Final = ("auto", "cross-entropy", "mse", "distillation")
CODEBOOKS: Final = ("auto", "layer", "position")


@dataclass(frozen=True)
class PQConfig:
    """How weights are cut and how many codewords they get.

    Attributes:
        sub_vector: d, how many neighbouring weights of a row share one code.
        codewords: K; up to 16 a code takes half a byte and the kernel is several times faster, up to 256 a byte.
        codebooks: G per layer. "position": one codebook per sub-vector position; "layer": one for the whole layer;
            a number: that many; "auto": "position" unless its codebooks would take more bytes than half the codes, and
            then as many as take that.
        fast: the operator uses tables of 8 bits instead of 15: 1.1 to 1.2 times as fast, about 1 % error of a layer's
            outputs instead of 0.2 %. Needs at most 16 codewords.
    """

    sub_vector: int = 8
    codewords: int = 16
    codebooks: str | int = "auto"
    fast: bool = False

    def __post_init__(self) -> None:
        _integer(self, "sub_vector", 1, 64)
        _integer(self, "codewords", 2, 256)
        if not isinstance(self.fast, bool):
            raise ConfigError(_sentence(self, "fast", "True or False", self.fast))
        if self.fast and self.codewords > MAX_NIBBLE_CODEWORDS:
            raise ConfigError(
                f"The 'fast' parameter of PQConfig needs at most {MAX_NIBBLE_CODEWORDS} codewords."
                f" Got {self.codewords} instead."
            )
        if isinstance(self.codebooks, str):
            _choice(self, "codebooks", CODEBOOKS)
        else:
            _integer(self, "codebooks", 1, 2**20)


@dataclass(frozen=True)
class TrainingConfig:
    """How the model is fine-tuned.

    Attributes:
        epochs: passes over the training data in all; 0 is plain product quantization.
        steps: training steps in all, where `epochs` is None.
        minutes: work of the training where neither `epochs` nor `steps` is given, in minutes of a reference machine
            (two cores): steps are fitted to it by counting what a step computes (`onnxpq.schedule`), so that the same
            data and settings give the same result on any machine. The report says how many steps that were.
        regularized: share of the steps that trains the float weights under the regularization term, before the codes
            are fixed; the rest trains codebooks, scales and biases with the codes in place.
        regularizer: the term of `onnxpq.regularizers`, or "none".
        alpha: weight of the term at the end of its epochs; None for what was measured to be best (`DEFAULT_ALPHA`).
        alpha_growth: factor by which the weight grows, geometrically, from its start to `alpha`.
        loss: "cross-entropy" or "mse" against labels, "distillation" against the original model's outputs; "auto":
            labels where there are any (integers: cross-entropy, floats: mse), else distillation.
        distillation: share of the original model's outputs in the loss when there are labels too, in [0, 1].
        temperature: softens both distributions in the distillation of class scores (Hinton et al. 2015).
        learning_rate: AdamW's for codebooks, scales (their logarithms), biases and normalizations, at its peak.
        latent_rate: that of the float weights of a layer, as a multiple of it and of the relative squared error of the
            layer's weight when it was quantized.
        mixup: parameter of the Beta distribution by which training samples are mixed in pairs, the original model
            telling what a mixture should give (labels count in proportion); 0 for none. Only where all inputs of the
            trained part are floats.
        features: weight of the relative squared error of the compressed layers' own outputs against the original's;
            it falls to 0 in the course of the training.
        batch_size: samples per step; None for as many as leave time for enough steps, at most 256.
        validation: share of the training data that is held out to choose the best state, of at most 2000 samples.
        patience: validations of the tuning without a better validation loss after which the training stops.
    """

    epochs: int | None = None
    steps: int | None = None
    minutes: float = 8.0
    regularized: float = 0.6
    regularizer: str = "codebook"
    alpha: float | None = None
    alpha_growth: float = 100.0
    loss: str = "auto"
    distillation: float = 0.7
    temperature: float = 2.0
    learning_rate: float = 3e-3
    latent_rate: float = 12.0
    mixup: float = 1.0
    features: float = 0.0
    batch_size: int | None = None
    validation: float = 0.1
    patience: int = 8

    def __post_init__(self) -> None:
        if self.epochs is not None:
            _integer(self, "epochs", 0, 100_000)
        if self.steps is not None:
            _integer(self, "steps", 0, 10**9)
        if self.epochs is not None and self.steps is not None:
            raise ConfigError("The training is given both epochs and steps. Give one of them, or minutes.")
        if self.batch_size is not None:
            _integer(self, "batch_size", 1, 2**20)
        _real(self, "minutes", 0.001, 1e6)
        _real(self, "features", 0, 1e6)
        _integer(self, "patience", 1, 100_000)
        _choice(self, "regularizer", REGULARIZERS)
        _choice(self, "loss", LOSSES)
        _real(self, "regularized", 0, 1)
        _real(self, "distillation", 0, 1)
        if self.alpha is not None:
            _real(self, "alpha", 0, 1e9)
        _real(self, "alpha_growth", 1, 1e9)
        _real(self, "temperature", 0.01, 1000)
        _real(self, "learning_rate", 1e-9, 10)
        _real(self, "latent_rate", 0, 1e6)
        _real(self, "mixup", 0, 100)
        _real(self, "validation", 0.001, 0.9)

    @property
    def final_alpha(self) -> float:
        """Weight of the term at the end of its epochs."""
        return DEFAULT_ALPHA[self.regularizer] if self.alpha is None or self.regularizer == "none" else self.alpha

    @property
    def is_off(self) -> bool:
        """Whether plain product quantization is wanted, without training."""
        return 0 in (self.epochs, self.steps)


@dataclass(frozen=True)
class Config:
    """All settings of a run.

    Attributes:
        pq: see `PQConfig`.
        training: see `TrainingConfig`.
        include: globs over node names; only layers that match one are compressed.
        exclude: globs over node names; layers that match one are left alone.
        min_weights: layers with fewer weights are left alone.
        conv1x1: compress convolutions with a kernel of one point too. They get faster
            too, but training has to go through all that follows the first of them.
        held_out: share of the data that is set aside for verification where no test data is given.
        output: the graph output that the loss and the metrics look at; None chooses the first one that fits.
        seed: of every random choice; the same seed gives the same result on the same machine.
    """

    pq: PQConfig = field(default_factory=PQConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    min_weights: int = 1024
    conv1x1: bool = False
    held_out: float = 0.1
    output: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in (("pq", PQConfig), ("training", TrainingConfig)):
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(_sentence(self, name, f"a {kind.__name__}", getattr(self, name)))
        _integer(self, "min_weights", 1, 2**40)
        if not isinstance(self.conv1x1, bool):
            raise ConfigError(_sentence(self, "conv1x1", "True or False", self.conv1x1))
        _real(self, "held_out", 0.001, 0.9)
        _integer(self, "seed", 0, 2**32 - 1)
        for name in ("include", "exclude"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(glob, str) for glob in value):
                raise ConfigError(_sentence(self, name, "a tuple of strings", value))
        if self.output is not None and not isinstance(self.output, str):
            raise ConfigError(_sentence(self, "output", "a string", self.output))

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Config":
        """Settings from plain values, tables `pq` and `training` nested; what is absent keeps its default.

        Raises:
            ConfigError: an unknown name, or a value that a setting cannot have.
        """
        values = dict(_table("Config", settings))
        if "pq" in values:
            values["pq"] = _build(PQConfig, _table("PQConfig", values["pq"]))
        if "training" in values:
            values["training"] = _build(TrainingConfig, _table("TrainingConfig", values["training"]))
        for name in ("include", "exclude"):
            if isinstance(values.get(name), list):
                values[name] = tuple(values[name])
        return _build(cls, values)

    @classmethod
    def from_toml(cls, path: str | PathLike[str]) -> "Config":
        """Settings from a TOML file as `to_toml` writes it.

        Raises:
            ConfigError: no such file, no TOML, an unknown name, or a value that a setting cannot have.
        """
        try:
            settings = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"Settings file '{path}' cannot be read: {error}.") from error
        return cls.from_dict(settings)

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values; `from_dict` reads them again."""
        return dataclasses.asdict(self)

    def to_toml(self) -> str:
        """The settings as TOML."""
        top, tables = [], []
        for name, value in self.to_dict().items():
            if isinstance(value, dict):
                tables += ["", f"[{name}]", *(f"{key} = {_toml(v)}" for key, v in value.items() if v is not None)]
            elif value is not None:
                top.append(f"{name} = {_toml(value)}")
        return "\n".join([*top, *tables, ""])


def _toml(value: object) -> str:
    # JSON's values are TOML's, but for escaped surrogate pairs and the control character that JSON lets through.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


_Settings = TypeVar("_Settings", PQConfig, TrainingConfig, Config)


def _build(kind: type[_Settings], values: Mapping[str, Any]) -> _Settings:
    known = [entry.name for entry in dataclasses.fields(kind)]
    unknown = [name for name in values if name not in known]
    if unknown:
        raise ConfigError(f"{kind.__name__} has no setting '{unknown[0]}'. Its settings are: {', '.join(known)}.")
    return kind(**values)


def _table(name: str, values: object) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name} must be a table of settings. Got {values!r} instead.")
    return values


def _sentence(owner: object, name: str, wanted: str, value: object) -> str:
    return f"The '{name}' parameter of {type(owner).__name__} must be {wanted}. Got {value!r} instead."


def _integer(owner: object, name: str, low: int, high: int) -> None:
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(_sentence(owner, name, f"an integer in [{low}, {high}]", value))


def _real(owner: object, name: str, low: float, high: float) -> None:
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ConfigError(_sentence(owner, name, f"a number in [{low:g}, {high:g}]", value))


def _choice(owner: object, name: str, choices: tuple[str, ...]) -> None:
    value = getattr(owner, name)
    if value not in choices:
        raise ConfigError(_sentence(owner, name, "one of " + ", ".join(f"'{choice}'" for choice in choices), value))

"""Settings: frozen, checked once when they are made, and the same from Python, the command line and a TOML file."""

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any, Final, TypeVar

from onnxpq.config.axes import BatchAxes, parse_axes
from onnxpq.config.target import TargetConfig
from onnxpq.errors import ConfigError
from onnxpq.operators import MAX_NIBBLE_CODEWORDS
from onnxpq.support.checks import choice as _choice
from onnxpq.support.checks import integer as _integer
from onnxpq.support.checks import real as _real
from onnxpq.support.checks import sentence as _sentence
from onnxpq.support.kinds import ALL, FULLY_CONNECTED, KINDS
from onnxpq.support.units import parse_share, parse_size

REGULARIZERS: Final = ("codebook", "murray-ng", "l1", "l2", "quartic", "none")
DEFAULT_ALPHA: Final = {"codebook": 1.0, "murray-ng": 0.01, "l1": 0.01, "l2": 0.01, "quartic": 0.01, "none": 0.0}
"""Final weight of each term where the user names none; `python -m benchmarks ablation` compares others."""

LOSSES: Final = ("auto", "cross-entropy", "mse", "distillation")
CODEBOOKS: Final = ("auto", "layer", "position")
AUTO: Final = "auto"
FLOAT: Final = "float"
INT8: Final = "int8"
BODIES: Final = (AUTO, FLOAT, INT8)
HALF: Final = "float16"
RESTS: Final = ("float32", HALF)
TARGET_CHOOSES: Final = ("sub_vector", "codewords", "codebooks")
"""What a target chooses for each layer: these settings of `PQConfig` cannot be given beside one."""

SUB_VECTOR: Final = 8
"""d where the settings name none."""

GENTLE_SUB_VECTOR: Final = 1
"""The same without data. Nothing repairs then what is lost: 4 bits a weight lose none of the answers of seven
classifiers, 2 bits up to 15 points of them (`python -m benchmarks plain`)."""


@dataclass(frozen=True)
class PQConfig:
    """How weights are cut and how many codewords they get.

    Attributes:
        sub_vector: d, how many neighbouring weights of a row share one code; None for `SUB_VECTOR`, or, where no data
            are given, for `GENTLE_SUB_VECTOR`.
        codewords: K; up to 16 a code takes half a byte and the kernel is several times faster, up to 256 a byte.
        codebooks: G per layer. "position": one codebook per sub-vector position; "layer": one for the whole layer;
            a number: that many; "auto": "position" unless its codebooks would take more bytes than half the codes, and
            then as many as take that.
        fast: the operator uses tables of 8 bits instead of 15: 1.1 to 1.6 times as fast, about 1 % error of a layer's
            outputs instead of 0.2 %. Needs at most 16 codewords.
        reorder: put the inputs of a layer in another order where that lets its weight quantize better
            (`onnxpq.quantization.ordering`), by a Gather before it; needs data. Training makes up for most of what it
            gains.
        body: how runtimes without the operator library multiply. "int8": with inputs rounded to 8 bits, as
            onnxruntime's dynamic quantization does; several times as fast and in a quarter of the memory. "float": in
            float32, as WebGPU, Core ML, NNAPI and CUDA want it. "auto": in int8 where data show that it adds little
            error.
    """

    sub_vector: int | None = None
    codewords: int = 16
    codebooks: str | int = "auto"
    fast: bool = False
    reorder: bool = False
    body: str = AUTO

    def __post_init__(self) -> None:
        if self.sub_vector is not None:
            _integer(self, "sub_vector", 1, 64)
        _integer(self, "codewords", 2, 256)
        _choice(self, "body", BODIES)
        for name in ("fast", "reorder"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(_sentence(self, name, "True or False", getattr(self, name)))
        if self.fast and self.codewords > MAX_NIBBLE_CODEWORDS:
            raise ConfigError(
                f"The 'fast' parameter of PQConfig needs at most {MAX_NIBBLE_CODEWORDS} codewords."
                f" Got {self.codewords} instead."
            )
        _codebooks(self)


@dataclass(frozen=True)
class LayerConfig:
    """Settings of single layers, which win over those of `PQConfig` and over a target's choice.

    Attributes:
        match: glob over node names. A layer goes by the first table that matches it.
        sub_vector: as in `PQConfig`; None for what is there.
        codewords: likewise.
        codebooks: likewise.
    """

    match: str
    sub_vector: int | None = None
    codewords: int | None = None
    codebooks: str | int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.match, str) or not self.match:
            raise ConfigError(_sentence(self, "match", "a glob over node names", self.match))
        if self.sub_vector is not None:
            _integer(self, "sub_vector", 1, 64)
        if self.codewords is not None:
            _integer(self, "codewords", 2, 256)
        if self.codebooks is not None:
            _codebooks(self)


@dataclass(frozen=True)
class TrainingConfig:
    """How the model is fine-tuned.

    Attributes:
        epochs: passes over the training data in all; 0 is plain product quantization.
        steps: training steps in all, where `epochs` is None.
        minutes: work of the training where neither `epochs` nor `steps` is given, in minutes of a reference machine
            (two cores): steps are fitted to it by counting what a step computes (`onnxpq.training.schedule`), so that
            the same data and settings give the same result on any machine. The report says how many steps that were.
        regularized: share of the steps that trains the float weights under the regularization term, before the codes
            are fixed; the rest trains codebooks, scales and biases with the codes in place.
        regularizer: the term of `onnxpq.training.regularizers`, or "none".
        alpha: weight of the term at the end of its epochs; None for `DEFAULT_ALPHA`.
        alpha_growth: factor by which the weight grows, geometrically, from its start to `alpha`.
        loss: "cross-entropy" or "mse" against labels, "distillation" against the original model's outputs; "auto":
            labels where there are any (integers: cross-entropy, floats: mse), else distillation.
        distillation: share of the original model's outputs in the loss when there are labels too, in [0, 1].
        temperature: softens both distributions in the distillation of class scores (Hinton et al. 2015).
        learning_rate: AdamW's for codebooks, scales (their logarithms), biases and normalizations, at its peak.
        latent_rate: that of the float weights of a layer, as a multiple of it and of the relative squared error of the
            layer's weight when it was quantized; where labels count at least once the learning rate (0: they stay).
        mixup: parameter of the Beta distribution by which training samples are mixed in pairs, the original model
            telling what a mixture should give (labels count in proportion); 0 for none. Only where all inputs of the
            trained part are floats. Where labels count, every batch is mixed, and held-out samples when states are
            compared; else every other one, on the average.
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
    learning_rate: float = 1e-2
    latent_rate: float = 3.6
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
        target: see `TargetConfig`.
        layer: settings of single layers, see `LayerConfig`; in TOML an array of tables, ``[[layer]]``.
        include: globs over node names; only layers that match one are compressed.
        exclude: globs over node names; layers that match one are left alone.
        min_weights: layers with fewer weights are left alone.
        conv1x1: compress convolutions with a kernel of one point too. They get faster
            too, but training has to go through all that follows the first of them.
        tables: compress matrices whose rows are looked up (Gather), such as embeddings, too; None: where the target is
            for the whole file (`TargetConfig.is_for_file`). They are not trained; the layers are, beside what is left
            of them.
        only: kinds of weights to compress: "fc" (fully-connected layers), "conv", "recurrent", "table", "other", or
            "all"; empty: fully-connected layers, and tables as `tables` says.
        rest: how constants of 64 numbers and more that are not compressed are stored. "float16": where no number loses
            more than a thousandth of itself; a Cast behind them is computed when a session is made.
        keep_metadata: keep what exporters noted of nodes and values. What the model says of itself stays in any case.
        batch_axis: where the samples lie in the inputs: an axis (1 for [T, N, C]), axes of single inputs or of the
            labels by globs ("past_*=1,ids=0"), or "none": data are whole calls, which are never cut or put together
            (docs/data.md). None: along axis 0, but where that is of a fixed size and another one is the batch's.
        held_out: share of the data that is set aside for verification where no test data is given.
        output: the graph output that the loss and the metrics look at; None chooses the first one that fits.
        floor: how much of that output may be lost, at most, for the result to be written; None takes what suits what
            it is (`onnxpq.verification.floor`): 0.05 of accuracy or of the answers, 0.1 of cosine, 0.3 of numbers.
        seed: of every random choice; the same seed gives the same result on the same machine.
    """

    pq: PQConfig = field(default_factory=PQConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    target: TargetConfig = field(default_factory=TargetConfig)
    layer: tuple[LayerConfig, ...] = ()
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    min_weights: int = 1024
    conv1x1: bool = False
    tables: bool | None = None
    only: tuple[str, ...] = ()
    rest: str = "float32"
    keep_metadata: bool = False
    batch_axis: int | str | None = None
    held_out: float = 0.1
    output: str | None = None
    floor: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name, kind in _TABLES.items():
            if not isinstance(getattr(self, name), kind):
                raise ConfigError(_sentence(self, name, f"a {kind.__name__}", getattr(self, name)))
        _check_layers(self)
        _check_target(self)
        _integer(self, "min_weights", 1, 2**40)
        for name in ("conv1x1", "keep_metadata"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(_sentence(self, name, "True or False", getattr(self, name)))
        if self.tables is not None and not isinstance(self.tables, bool):
            raise ConfigError(_sentence(self, "tables", "True, False or None", self.tables))
        _choice(self, "rest", RESTS)
        parse_axes(self.batch_axis)
        _real(self, "held_out", 0.001, 0.9)
        if self.floor is not None:
            _real(self, "floor", 0, 1e6)
        _integer(self, "seed", 0, 2**32 - 1)
        _check_names(self)

    @property
    def kinds(self) -> frozenset[str]:
        """The kinds of weights that are compressed."""
        if ALL in self.only:
            return frozenset(KINDS)
        return frozenset(self.only) or frozenset({FULLY_CONNECTED})

    @property
    def batch_axes(self) -> BatchAxes:
        """What `batch_axis` says."""
        return parse_axes(self.batch_axis)

    @property
    def takes_tables(self) -> bool:
        """Whether matrices whose rows are looked up are compressed."""
        return self.target.is_for_file if self.tables is None else self.tables

    @classmethod
    def from_dict(cls, settings: Mapping[str, Any]) -> "Config":
        """Settings from plain values, tables nested; what is absent keeps its default.

        Raises:
            ConfigError: an unknown name, or a value that a setting cannot have.
        """
        values = _with_units(_table("Config", settings))
        for name, kind in _TABLES.items():
            if name in values:
                values[name] = _build(kind, _with_units(_table(kind.__name__, values[name])))
        if isinstance(values.get("layer"), (list, tuple)):
            values["layer"] = tuple(_build(LayerConfig, _table("LayerConfig", table)) for table in values["layer"])
        for name in ("include", "exclude", "only"):
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
        top: list[str] = []
        tables: list[str] = []
        for name, value in self.to_dict().items():
            if isinstance(value, dict):
                tables += ["", f"[{name}]", *_lines(value)]
            elif name == "layer":
                tables += [line for table in value for line in ("", "[[layer]]", *_lines(table))]
            elif value is not None:
                top.append(f"{name} = {_toml(value)}")
        return "\n".join([*top, *tables, ""])


_TABLES: Final[dict[str, type[Any]]] = {
    "pq": PQConfig,
    "training": TrainingConfig,
    "target": TargetConfig,
}
_UNITS: Final = {"size": parse_size, "max_drop": parse_share, "floor": parse_share}


def _with_units(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values with sizes and shares that are written with a unit as numbers."""
    return {key: _UNITS[key](v) if key in _UNITS and isinstance(v, str) else v for key, v in values.items()}


def _check_names(config: Config) -> None:
    if not isinstance(config.only, tuple) or not set(config.only) <= {*KINDS, ALL}:
        kinds = ", ".join(f"'{kind}'" for kind in (*KINDS, ALL))
        raise ConfigError(_sentence(config, "only", f"a tuple of {kinds}", config.only))
    for name in ("include", "exclude"):
        value = getattr(config, name)
        if not isinstance(value, tuple) or not all(isinstance(glob, str) for glob in value):
            raise ConfigError(_sentence(config, name, "a tuple of strings", value))
    if config.output is not None and not isinstance(config.output, str):
        raise ConfigError(_sentence(config, "output", "a string", config.output))


def _check_layers(config: Config) -> None:
    if not isinstance(config.layer, tuple) or not all(isinstance(table, LayerConfig) for table in config.layer):
        raise ConfigError(_sentence(config, "layer", "a tuple of LayerConfig", config.layer))
    for table in config.layer:
        if config.pq.fast and (table.codewords or 0) > MAX_NIBBLE_CODEWORDS:
            raise ConfigError(
                f"The 'fast' parameter of PQConfig needs at most {MAX_NIBBLE_CODEWORDS} codewords; the layer table "
                f"with match = '{table.match}' asks for {table.codewords}."
            )


def _check_target(config: Config) -> None:
    """A target chooses what `PQConfig` would prescribe."""
    for name in TARGET_CHOOSES if config.target.is_set else ():
        found = getattr(config.pq, name)
        if found != getattr(PQConfig(), name):
            raise ConfigError(
                f"A target chooses '{name}' of each layer by itself; {found!r} was set for all of them too. Give "
                "either, or set it for single layers in [[layer]] tables."
            )


def _lines(table: Mapping[str, Any]) -> list[str]:
    return [f"{key} = {_toml(value)}" for key, value in table.items() if value is not None]


def _toml(value: object) -> str:
    # JSON's values are TOML's, but for escaped surrogate pairs and the control character that JSON lets through.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


_Settings = TypeVar("_Settings", PQConfig, TrainingConfig, TargetConfig, LayerConfig, "Config")


def _build(kind: type[_Settings], values: Mapping[str, Any]) -> _Settings:
    fields = {entry.name: entry for entry in dataclasses.fields(kind)}
    unknown = [name for name in values if name not in fields]
    if unknown:
        raise ConfigError(f"{kind.__name__} has no setting '{unknown[0]}'. Its settings are: {', '.join(fields)}.")
    for name, entry in fields.items():
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"{kind.__name__} needs the setting '{name}'. Found {', '.join(values) or 'none'}.")
    return kind(**values)


def _table(name: str, values: object) -> Mapping[str, Any]:
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name} must be a table of settings. Got {values!r} instead.")
    return values


def _codebooks(owner: PQConfig | LayerConfig) -> None:
    if isinstance(owner.codebooks, str):
        _choice(owner, "codebooks", CODEBOOKS)
    else:
        _integer(owner, "codebooks", 1, 2**20)

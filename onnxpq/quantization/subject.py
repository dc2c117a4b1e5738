"""What one run compresses: the model in its forms, its layers, and its data."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from onnxpq.data import Dataset, Evidence, InputSpec
from onnxpq.graph import Layer, Skipped, files
from onnxpq.quantization.calibration import Moments
from onnxpq.quantization.lookups import Lookups


@dataclass(frozen=True, eq=False)
class Ordered:
    """A value whose entries are put in order (`onnxpq.quantization.ordering`).

    Attributes:
        weight: of the layer whose sub-vectors the order is for.
        sizes: [in], how much each entry counts.
    """

    weight: str
    sizes: NDArray[np.floating]


@dataclass(frozen=True, eq=False)
class Subject:
    """What is compressed.

    Attributes:
        source: what the user passed.
        original: the model as it was loaded.
        runnable: as onnxruntime runs it.
        prepared: as it is rewritten.
        normal: as it is trained.
        layers: to be compressed.
        skipped: left alone.
        inputs: of the model.
        train: samples to train on, or None.
        evidence: samples to verify on.
        output: that loss and metrics look at.
        scores: the original's output for some samples.
        numbers: what speaks against reading it as scores of classes (`onnxpq.verification.outputs.not_scores`), or
            None.
        made_from: the manifest (`onnxpq.workspace.manifest`).
        moments: what was found of the layers' inputs, for those who look for it again
            (`onnxpq.quantization.calibration.collect`).
        ordered: by name, the values that are put in order.
        lookups: how the samples use each table, by the weight's name.
    """

    source: files.Source
    original: ir.Model
    runnable: ir.Model
    prepared: ir.Model
    normal: ir.Model
    layers: list[Layer]
    skipped: list[Skipped]
    inputs: list[InputSpec]
    train: Dataset | None
    evidence: Evidence
    output: str
    scores: NDArray[Any]
    made_from: dict[str, Any]
    numbers: str | None = None
    moments: Moments = field(default_factory=Moments)
    ordered: Mapping[str, Ordered] = field(default_factory=dict)
    lookups: Mapping[str, Lookups] = field(default_factory=dict)

    def use_of(self, weight: str) -> Lookups:
        """What is known of the lookups of a weight: nothing of one that is no table."""
        return self.lookups.get(weight, Lookups())

    @property
    def file(self) -> str | PathLike[str] | None:
        """The user's file, where a path was passed."""
        return self.source if isinstance(self.source, str | PathLike) else None

    @property
    def bytes_before(self) -> int:
        """Of the original file."""
        return files.bytes_as_file(self.original) if self.file is None else files.file_bytes(self.file)

    @property
    def layers_before(self) -> int:
        """Of the weights that are compressed."""
        return sum({layer.weight: layer.weight_bytes for layer in self.layers}.values())

"""Training as a step of the pipeline: from a quantized start, with a share of the steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir

from onnxpq import rewriting
from onnxpq.data import Dataset
from onnxpq.graph import Forms, Layer, tables
from onnxpq.network import matrices
from onnxpq.pq import decode
from onnxpq.pq.quantized import Quantized
from onnxpq.report import NOT_TRAINED
from onnxpq.training.jobs import Job, Prepared, Trained, prepare, train
from onnxpq.workspace import Run

LOOKED_UP = f"{NOT_TRAINED}: its rows are looked up"


@dataclass(frozen=True, eq=False)
class _Ready:
    """A job, what it needs, and what both were made for."""

    made_for: tuple[object, ...]
    job: Job
    prepared: Prepared

    def fits(self, made_for: tuple[object, ...]) -> bool:
        return len(self.made_for) == len(made_for) and all(map(lambda a, b: a is b, self.made_for, made_for))


class Trainer:
    """Trains the models of one run. What that needs is computed when it is first used, and anew for another model."""

    def __init__(self, run: Run, cache_dir: Path, data: Dataset | None, output: str) -> None:
        """For a run, with samples to train on (None where there are none) and the output that the loss looks at."""
        self._run, self._cache_dir, self._data, self._output = run, cache_dir, data, output
        self._ready: _Ready | None = None

    def train(
        self, forms: Forms, layers: Sequence[Layer], start: Mapping[str, Quantized], share: float = 1.0
    ) -> Trained:
        """Train the layers of a model; its tables stay as they are quantized.

        Args:
            forms: of the model.
            layers: of it.
            start: the quantized weights by name.
            share: of the steps that the settings give; with 0 nothing is trained.

        Raises:
            OnnxpqError: see `onnxpq.training.jobs`.
        """
        if share == 0 or self._data is None or self._run.config.training.is_off:
            return Trained(dict(start))
        fixed = {name: start[name] for name in sorted(tables(layers))}
        trained_layers = [layer for layer in layers if layer.weight not in fixed]
        ways = dict.fromkeys(fixed, LOOKED_UP)
        if not trained_layers:
            return Trained(dict(start), ways=ways)
        ready = self._prepared(forms, trained_layers, {layer.weight: layer for layer in layers}, fixed)
        with self._run.stage("training"):
            trained = train(replace(ready.job, share=share), ready.prepared, start)
        return replace(trained, ways=trained.ways | ways)

    def _prepared(
        self, forms: Forms, layers: Sequence[Layer], of_weight: Mapping[str, Layer], fixed: Mapping[str, Quantized]
    ) -> _Ready:
        made_for = (forms.normal, *fixed.values())
        if self._ready is None or not self._ready.fits(made_for):
            if self._data is None:
                raise AssertionError("who has no data does not train")
            job = Job(
                _with_tables(forms.normal, of_weight, fixed) if fixed else forms.normal,
                layers,
                self._output,
                self._data,
                self._run.config,
                self._cache_dir,
                self._run.libraries,
                self._run.ticker,
                self._run.workspace,
                rewriting.constant_names(forms.prepared),
                fixed,
                forms.normal if fixed else None,
            )
            with self._run.stage("caching"):
                self._ready = _Ready(made_for, job, prepare(job))
        return self._ready


def _with_tables(model: ir.Model, of_weight: Mapping[str, Layer], fixed: Mapping[str, Quantized]) -> ir.Model:
    """The model as it is trained, with tables as they will be stored: the layers learn to do with what is left."""
    values = {}
    for name, quantized in fixed.items():
        stored = quantized.freeze()
        matrix = decode(stored.codebooks, stored.codes, stored.scales, stored.in_features)
        values[name] = matrices.constant_of(model, of_weight[name], matrix)
    return rewriting.update_initializers(model, values)

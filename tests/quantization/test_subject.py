from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_models import CLASSES, FEATURES, HIDDEN, mlp, samples, save_model

from onnxpq import rewriting
from onnxpq.data.datasets import Dataset, input_specs
from onnxpq.data.sampling import Evidence
from onnxpq.graph import files
from onnxpq.quantization.subject import Subject


def subject(source: files.Source) -> Subject:
    model = files.load(source)
    layers, skipped = rewriting.find(model)
    evidence = Evidence(Dataset({"x": samples()}), "", True)
    return Subject(
        source,
        model,
        model,
        model,
        model,
        layers,
        skipped,
        input_specs(model),
        None,
        evidence,
        "logits",
        np.zeros((1, CLASSES)),
        {},
    )


def test_bytes_of_a_file_and_of_a_model_in_memory(tmp_path: Path) -> None:
    path = save_model(tmp_path / "m.onnx", mlp())
    assert subject(path).file == path
    assert subject(path).bytes_before == path.stat().st_size
    assert subject(mlp()).file is None
    assert subject(mlp()).bytes_before == len(files.to_bytes(files.load(mlp())))


def test_a_weight_that_layers_share_counts_once() -> None:
    found = subject(mlp())
    assert found.layers_before == 4 * (HIDDEN * FEATURES + CLASSES * HIDDEN)
    assert replace(found, layers=[*found.layers, found.layers[0]]).layers_before == found.layers_before


def test_a_large_model_in_memory_is_not_put_together_to_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    small = subject(mlp()).bytes_before
    monkeypatch.setattr(files, "LARGE_BYTES", 0)
    monkeypatch.setattr(files, "to_bytes", None)
    assert subject(mlp()).bytes_before == pytest.approx(small, abs=100)

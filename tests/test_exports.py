"""Models as exporters write them, from `benchmarks.coverage.exports`: imported, trained end to end, verified."""

import warnings

import numpy as np
import onnx
import pytest
import torch

import onnxpq
from benchmarks.coverage import exports
from onnxpq.config.settings import Config, TrainingConfig

QUICK = Config(training=TrainingConfig(epochs=1, batch_size=32))
LAYERS = {"MLP": 2, "CNN": 1, "LSTM": 1, "transformer layer": 6, "MLPClassifier": 2, "MLPRegressor": 2}


def compress(name: str, model: onnx.ModelProto, data: exports.Data) -> None:
    report = onnxpq.compress(model, data, config=QUICK).report
    assert [layer.training for layer in report.layers] == ["end to end"] * LAYERS[name]
    assert report.training.forward_error < 1e-4


@pytest.mark.parametrize("name", exports.torch_models())
@pytest.mark.parametrize("dynamo", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_torch(name: str, dynamo: bool) -> None:
    module, shape = exports.torch_models()[name]
    samples = np.random.default_rng(0).standard_normal((exports.SAMPLES, *shape)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        model = exports.export(module.eval(), torch.from_numpy(samples[:2]), dynamo=dynamo)
    compress(name, model, {"x": samples})


def test_scikit_learn() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that five passes over the data are few
        made = list(exports.from_sklearn())
    for name, model, data in made:
        compress(name, model, data)

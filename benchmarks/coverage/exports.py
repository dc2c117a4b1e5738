"""Models as exporters write them, imported and compressed: a table.

    python -m benchmarks exports            # what the installed exporters can make, and the files named below
    python -m benchmarks exports FILE...    # besides these: models made elsewhere (Keras, jax: `make_exports_jax`)

Every model is small and untrained (its weights are random), so that errors say nothing of the method: what counts is
that it is imported, trained end to end, rewritten, and gives the same in onnxruntime with and without the library.
"""

import argparse
import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import nn

import onnxpq
from onnxpq.config.settings import Config, TrainingConfig
from onnxpq.errors import OnnxpqError

SAMPLES = 96
QUICK = Config(training=TrainingConfig(epochs=4, batch_size=32))

Data = dict[str, NDArray[np.float32]]


class Lstm(nn.Module):
    """LSTM over time, then a classifier of its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.LSTM(16, 32, batch_first=True)
        self.head = nn.Linear(32, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, T, 16] -> [N, 64]."""
        hidden, _ = self.rnn(x)
        return self.head(hidden[:, -1])


class TransformerLayer(nn.Module):
    """Self-attention of 4 heads and a network of two layers, each with a residual and a normalization."""

    def __init__(self, size: int = 64) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(size, size) for _ in range(4))
        self.network = nn.Sequential(nn.Linear(size, 2 * size), nn.GELU(), nn.Linear(2 * size, size))
        self.first, self.second = nn.LayerNorm(size), nn.LayerNorm(size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, T, size] -> [N, T, size]."""
        query, key, value = (
            part(x).unflatten(2, (4, -1)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        weights = torch.softmax(query @ key.transpose(2, 3) / query.shape[-1] ** 0.5, -1)
        x = self.first(x + self.out((weights @ value).transpose(1, 2).flatten(2)))
        return self.second(x + self.network(x))


def torch_models() -> dict[str, tuple[nn.Module, tuple[int, ...]]]:
    """Each with the shape of a sample."""
    torch.manual_seed(0)
    conv = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(392, 64), nn.ReLU()]
    return {
        "MLP": (nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 10)), (64,)),
        "CNN": (nn.Sequential(*conv, nn.Linear(64, 10)), (1, 16, 16)),
        "LSTM": (Lstm(), (7, 16)),
        "transformer layer": (TransformerLayer(), (9, 64)),
    }


def from_torch(*, dynamo: bool) -> Iterator[tuple[str, onnx.ModelProto, Data]]:
    """The models of `torch_models`, by torch's newer exporter or by the older one."""
    for name, (module, shape) in torch_models().items():
        module.eval()
        samples = np.random.default_rng(0).standard_normal((SAMPLES, *shape)).astype(np.float32)
        yield name, export(module, torch.from_numpy(samples[:2]), dynamo=dynamo), {"x": samples}


def export(module: nn.Module, example: torch.Tensor, *, dynamo: bool) -> onnx.ModelProto:
    """A torch module with an open batch, as torch exports it."""
    if dynamo:
        shapes = ({0: torch.export.Dim("batch")},)
        program = torch.onnx.export(
            module, (example,), dynamo=True, input_names=["x"], dynamic_shapes=shapes, verbose=False
        )
        if program is None:
            raise RuntimeError("torch.onnx.export gave no model")
        return program.model_proto
    file = io.BytesIO()
    axes = {"x": {0: "batch"}}
    torch.onnx.export(module, (example,), file, dynamo=False, input_names=["x"], dynamic_axes=axes)
    return onnx.load_from_string(file.getvalue())


def from_sklearn() -> Iterator[tuple[str, onnx.ModelProto, Data]]:
    """Pipelines with a network of scikit-learn, by skl2onnx."""
    from skl2onnx import to_onnx  # noqa: PLC0415
    from sklearn.neural_network import MLPClassifier, MLPRegressor  # noqa: PLC0415
    from sklearn.pipeline import make_pipeline  # noqa: PLC0415
    from sklearn.preprocessing import StandardScaler  # noqa: PLC0415

    x = np.random.default_rng(0).standard_normal((SAMPLES, 30)).astype(np.float32)
    classes, target = (x[:, 0] > 0).astype(int) + (x[:, 1] > 0), x[:, :3] @ np.ones(3)
    estimators = {
        "MLPClassifier": make_pipeline(StandardScaler(), MLPClassifier(hidden_layer_sizes=(64, 64), max_iter=5)).fit(
            x, classes
        ),
        "MLPRegressor": make_pipeline(StandardScaler(), MLPRegressor(hidden_layer_sizes=(64, 64), max_iter=5)).fit(
            x, target
        ),
    }
    for name, estimator in estimators.items():
        yield name, to_onnx(estimator, x[:1], options={"zipmap": False} if name == "MLPClassifier" else None), {"X": x}


def from_files(files: list[Path]) -> Iterator[tuple[str, onnx.ModelProto, Data]]:
    """Models with one input of floats."""
    for file in files:
        model = onnx.load(file)
        (given,) = model.graph.input
        shape = [dim.dim_value for dim in given.type.tensor_type.shape.dim][1:]
        samples = np.random.default_rng(0).standard_normal((SAMPLES, *shape)).astype(np.float32)
        yield file.stem, model, {given.name: samples}


def row(exporter: str, name: str, model: onnx.ModelProto, data: Data) -> str:
    """A row of the table: how far the compression came."""
    opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    try:
        report = onnxpq.compress(model, data, config=QUICK).report
    except OnnxpqError as error:
        return f"| {exporter} | {name} | {opset} | - | {' '.join(str(error).split())[:160]} | |"
    ways = ", ".join(dict.fromkeys(layer.training for layer in report.layers))
    agreement = report.verification.library_agreement
    same = "-" if agreement is None else f"{agreement:.0e}"
    return f"| {exporter} | {name} | {opset} | {len(report.layers)} | {ways} | {same} |"


EXPORTERS: dict[str, Callable[[], Iterator[tuple[str, onnx.ModelProto, Data]]]] = {
    "torch.onnx (TorchScript)": lambda: from_torch(dynamo=False),
    "torch.onnx (dynamo)": lambda: from_torch(dynamo=True),
    "skl2onnx": from_sklearn,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="further models, of one input")
    files = parser.parse_args().files
    warnings.simplefilter("ignore")  # the exporters' own
    print("| exporter | model | opset | layers | trained | native against stock operators |", flush=True)
    print("|---|---|---|---|---|---|", flush=True)
    for exporter, make in {**EXPORTERS, "file": lambda: from_files(files)}.items():
        for name, model, data in make():
            print(row(exporter, name, model, data), flush=True)

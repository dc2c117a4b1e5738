"""The networks: a trained ONNX file, its fully-connected layers, its data, and its head as something to train.

What comes before the first fully-connected layer is computed once by onnxruntime; every method trains, if it trains,
what comes after, which is also what `onnxpq compress` does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.common import datasets
from onnxpq import rewriting, runtime
from onnxpq.data.datasets import Dataset, split_rows
from onnxpq.graph import files
from onnxpq.graph.layers import Layer
from onnxpq.graph.normalising import normalise
from onnxpq.network import importing
from onnxpq.network.module import Network
from onnxpq.pq.matrix import to_matrix
from onnxpq.runtime import activations

MODELS: Final = Path(__file__).resolve().parent.parent.parent / "models"
NETWORKS: Final[dict[str, tuple[str, str, bool]]] = {
    "mnist_mlp": ("MNIST, 784-1000-10", "mnist", True),
    "mnist_lenet": ("MNIST, Caffe's LeNet", "mnist", False),
    "cifar_quick": ("CIFAR-10, Caffe's cifar10_quick", "cifar10", False),
    "cifar_vgg": ("CIFAR-10, small VGG", "cifar10", False),
}
"""By name of the file in models/: its title, its data set, and whether it takes an image as one row of numbers."""

HELD_OUT: Final = 0.1
"""Share of the training images by which the best epoch is chosen, as in onnxpq."""

QUICK_TRAIN, QUICK_TEST = 4000, 1000
TEST_BATCH = 1000


@dataclass(frozen=True, eq=False)
class Task:
    """A network to compress, and its data.

    Attributes:
        name: a key of `NETWORKS`.
        path: the ONNX file.
        train: (images [N, ...], labels [N]) as the file takes them.
        test: the same of the test set.
        layers: the fully-connected layers that every method compresses: those that onnxpq takes by itself.
        chain: all fully-connected layers, the small ones that onnxpq leaves alone included.
        head: the network from `feature` on.
        feature: name of the value that the first of the layers is given.
        output: name of the class scores.
        features: [N, ...], that value for the training images.
        teacher: [N, classes], the file's own scores for them.
        rows: training images to learn from, and those to choose the best epoch by.
    """

    name: str
    path: Path
    train: tuple[NDArray[np.float32], NDArray[np.int64]]
    test: tuple[NDArray[np.float32], NDArray[np.int64]]
    layers: Sequence[Layer]
    chain: Sequence[Layer]
    head: Network
    feature: str
    output: str
    features: NDArray[np.float32]
    teacher: NDArray[np.float32]
    rows: tuple[NDArray[np.intp], NDArray[np.intp]]

    def proto(self) -> onnx.ModelProto:
        """The file, read anew."""
        return onnx.load(self.path)

    def initializers(self) -> dict[str, Tensor]:
        """All constants of the head, by name."""
        return {name: value.detach() for name, value in self.head.named_initializers()}

    def matrix(self, layer: Layer) -> Tensor:
        """A layer's weight as [out, in]."""
        weight = self.initializers()[layer.weight]
        return to_matrix(weight, layer.in_features, is_in_out=layer.weight_is_in_out).contiguous()

    @property
    def weight_bytes(self) -> int:
        """Bytes of the layers' weights in the file."""
        return sum(layer.weight_bytes for layer in self.layers)

    @property
    def input(self) -> str:
        """Name of the file's input."""
        return self.proto().graph.input[0].name


def load(name: str, *, quick: bool = False) -> Task:
    """A network of `NETWORKS` with its data; `quick`: few images."""
    _, dataset, flatten = NETWORKS[name]
    path = MODELS / f"{name}.onnx"
    if not path.exists():
        raise SystemExit(f"models/{name}.onnx is not there. Make it: python -m models.make_models {name}")
    train_images, train_labels, test_images, test_labels = _arrays(dataset)
    if flatten:
        train_images, test_images = (part.reshape(len(part), -1) for part in (train_images, test_images))
    if quick:
        train_images, train_labels = train_images[:QUICK_TRAIN], train_labels[:QUICK_TRAIN]
        test_images, test_labels = test_images[:QUICK_TEST], test_labels[:QUICK_TEST]
    return of_file(path, (train_images, train_labels), (test_images, test_labels))


@lru_cache(maxsize=1)
def _arrays(dataset: str) -> datasets.Split:
    return datasets.DATASETS[dataset]()


def of_file(
    path: Path,
    train: tuple[NDArray[np.float32], NDArray[np.int64]],
    test: tuple[NDArray[np.float32], NDArray[np.int64]],
    *,
    cache_dir: Path | None = None,
) -> Task:
    """An ONNX file with one input and class scores as its first output, as a task.

    Args:
        path: the file.
        train: images and labels.
        test: images and labels.
        cache_dir: for what onnxruntime computes; default: in the cache of the data sets.
    """
    model = normalise(files.load(path))
    layers, _ = rewriting.find(model)
    chain, _ = rewriting.find(model, min_weights=1)
    feature, output = _input_of(model, chain[0]), str(model.graph.outputs[0].name)
    cache = cache_dir or datasets.cache_folder() / "activations"
    given = Dataset({str(model.graph.inputs[0].name): train[0]})
    captured = activations.capture(model, [feature, output], given, cache_dir=cache).inputs
    return Task(
        name=path.stem,
        path=path,
        train=train,
        test=test,
        layers=layers,
        chain=chain,
        head=importing.import_model(activations.extract(model, [feature], [output])),
        feature=feature,
        output=output,
        features=captured[feature],
        teacher=captured[output],
        rows=split_rows(len(train[0]), HELD_OUT, 0),
    )


def _input_of(model: ir.Model, layer: Layer) -> str:
    for node in model.graph:
        if any(value is not None and value.name == layer.weight for value in node.inputs[1:2]):
            return str(node.inputs[0].name)  # type: ignore[union-attr]
    raise SystemExit(f"No node has the weight '{layer.weight}' as its second input: the benchmark takes only such.")


def error_of(model: bytes, task: Task, *, threads: int = 1) -> float:
    """Share of the test images, in per cent, whose largest score in onnxruntime is not the label's."""
    session = runtime.session(model, options=options(threads))
    (images, labels), name = task.test, task.input
    wrong = 0
    for start in range(0, len(images), TEST_BATCH):
        (scores, *_) = session.run([task.output], {name: images[start : start + TEST_BATCH]})
        wrong += int(np.count_nonzero(scores.argmax(1) != labels[start : start + TEST_BATCH]))
    return 100 * wrong / len(images)


def options(threads: int) -> object:
    """Session options of onnxruntime with so many threads and without warnings."""
    import onnxruntime  # noqa: PLC0415 -- it loads slowly

    made = onnxruntime.SessionOptions()
    made.intra_op_num_threads = threads
    made.log_severity_level = 3
    return made


def batch(task: Task, index: NDArray[np.intp]) -> tuple[Tensor, Tensor]:
    """Features and labels of some training images, in the order in which they are stored."""
    rows = np.sort(index)
    return torch.from_numpy(task.features[rows]), torch.from_numpy(task.train[1][rows])

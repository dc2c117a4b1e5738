"""Makes the models of this folder again: trains, exports, writes them beside this file, prints their test errors.

    python -m models.make_models [mnist_lenet] [mnist_mlp] [cifar_quick] [cifar_vgg] [digits_mlp] [--threads 1]

Run it in the repository's root; it needs the extra ``test``. MNIST and CIFAR-10 are fetched by
`benchmarks.common.datasets`; digits come with scikit-learn. Seeds are fixed; weights still differ in their last bits
between processors and versions of the libraries, so files made again have other checksums than those in README.md.
"""

import argparse
import sys
import tempfile
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from skl2onnx import to_onnx
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from benchmarks.common import datasets

FOLDER: Final = Path(__file__).resolve().parent
SEED: Final = 20150930
INPUT: Final = "input"
OUTPUT: Final = "logits"
BATCH: Final = 256

DIGITS_HIDDEN: Final = (512, 256)

STACK_TRACE: Final = "pkg.torch.onnx.stack_trace"

BLACK: Final = -datasets.MNIST_MEAN / datasets.MNIST_STD
"""A background pixel of MNIST after normalisation."""

GREY: Final = 0.0
"""The mean colour of CIFAR-10 after normalisation."""

NORMALISATION: Final[dict[str, tuple[Callable[[], datasets.Split], str, str]]] = {
    "mnist": (datasets.mnist, str(datasets.MNIST_MEAN), str(datasets.MNIST_STD)),
    "cifar": (
        datasets.cifar10,
        " ".join(map(str, datasets.CIFAR10_MEAN)),
        " ".join(map(str, datasets.CIFAR10_STD)),
    ),
}
"""By the first part of a model's name: its data set, and the mean and standard deviation that its metadata tell."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained: AdamW under a one-cycle learning rate that peaks at `peak_rate`.

    Attributes:
        epochs: passes over the training images.
        peak_rate: the largest learning rate.
        weight_decay: AdamW's decoupled decay.
        shift: training images are moved by up to this many pixels along each axis, drawn anew each time.
        flip: training images are mirrored left to right, half of them, drawn anew each time.
        background: the value that moves in at the edges.
        bfloat16: run forward and backward in bfloat16 where PyTorch holds it safe, with channels last, both for speed;
            the weights stay float32.
    """

    epochs: int
    peak_rate: float
    weight_decay: float
    shift: int
    flip: bool = False
    background: float = BLACK
    bfloat16: bool = False


def lenet() -> nn.Module:
    """LeNet as Caffe's examples define it: no non-linearity after the convolutions."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 20, 5),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(20, 50, 5),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            ip1=nn.Linear(800, 500),
            relu1=nn.ReLU(),
            ip2=nn.Linear(500, 10),
        )
    )


def mlp() -> nn.Module:
    """784-1000-10; dropout acts while training only and leaves no node in the exported graph."""
    return nn.Sequential(
        OrderedDict(
            drop0=nn.Dropout(0.2),
            fc1=nn.Linear(784, 1000),
            relu1=nn.ReLU(),
            drop1=nn.Dropout(0.5),
            fc2=nn.Linear(1000, 10),
        )
    )


def cifar_quick() -> nn.Module:
    """Caffe's cifar10_quick: pooling with overhanging windows, and no non-linearity between the last two layers."""

    def pool(kind: type[nn.MaxPool2d] | type[nn.AvgPool2d]) -> nn.Module:
        return kind(3, 2, ceil_mode=True)

    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 32, 5, padding=2),
            pool1=pool(nn.MaxPool2d),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 32, 5, padding=2),
            relu2=nn.ReLU(),
            pool2=pool(nn.AvgPool2d),
            conv3=nn.Conv2d(32, 64, 5, padding=2),
            relu3=nn.ReLU(),
            pool3=pool(nn.AvgPool2d),
            flatten=nn.Flatten(),
            ip1=nn.Linear(1024, 64),
            ip2=nn.Linear(64, 10),
        )
    )


def cifar_vgg() -> nn.Module:
    """A small VGG: four 3x3 convolutions with batch normalisation, and nine tenths of its weights in the head.

    The exporter folds the normalisation into the convolutions; dropout leaves no node either.
    """

    def conv(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *conv(3, 32),
        nn.MaxPool2d(2),
        *conv(32, 64),
        *conv(64, 64),
        nn.MaxPool2d(2),
        *conv(64, 128),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(2048, 448),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(448, 256),
        nn.ReLU(),
        nn.Linear(256, 10),
    )


def augmented(images: Tensor, recipe: Recipe, generator: torch.Generator) -> Tensor:
    """Each image [N, C, H, W] moved by its own offset and mirrored or not, as the recipe says."""
    if recipe.shift:
        images = shifted(images, recipe.shift, recipe.background, generator)
    if recipe.flip:
        mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
        images = torch.where(mirrored, images.flip(3), images)
    return images


def shifted(images: Tensor, limit: int, background: float, generator: torch.Generator) -> Tensor:
    """Each image [N, C, H, W] moved by its own offset of -limit..limit pixels, with `background` moving in."""
    count, _, height, width = images.shape
    padded = nn.functional.pad(images, (limit, limit, limit, limit), value=background).permute(0, 2, 3, 1)
    top = torch.randint(0, 2 * limit + 1, (count, 1), generator=generator)
    left = torch.randint(0, 2 * limit + 1, (count, 1), generator=generator)
    rows = (top + torch.arange(height))[:, :, None]
    columns = (left + torch.arange(width))[:, None, :]
    return padded[torch.arange(count)[:, None, None], rows, columns].permute(0, 3, 1, 2)


def train(network: nn.Module, images: Tensor, labels: Tensor, recipe: Recipe) -> None:
    """Train `network` in place on images [N, ...] and labels [N], with cross-entropy."""
    generator = torch.Generator().manual_seed(SEED)
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=recipe.peak_rate, weight_decay=recipe.weight_decay, fused=True
    )
    steps = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.peak_rate, epochs=recipe.epochs, steps_per_epoch=steps
    )
    if recipe.bfloat16:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in PyTorch's stubs
    network.train()
    for epoch in range(recipe.epochs):
        began, total = time.monotonic(), 0.0
        order = torch.randperm(len(images), generator=generator)[: steps * BATCH]
        for rows in order.split(BATCH):
            batch = augmented(images[rows], recipe, generator)
            if recipe.bfloat16:
                batch = batch.contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
                scores = network(batch)
            loss = nn.functional.cross_entropy(scores.float(), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        seconds = time.monotonic() - began
        print(f"  epoch {epoch + 1}/{recipe.epochs}: training loss {total / steps:.4f}, {seconds:.0f} s", flush=True)
    network.eval()


def test_error(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of test images, in percent, whose largest logit is not the label's."""
    with torch.no_grad():
        guesses = torch.cat([network(batch).argmax(1) for batch in images.split(1000)])
    return 100 * (guesses != labels).double().mean().item()


def export_dynamo(network: nn.Module, example: Tensor) -> onnx.ModelProto:
    """Export by torch.export, with a dynamic batch and the weights inside the model."""
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        input_names=[INPUT],
        output_names=[OUTPUT],
    )
    if program is None:
        raise RuntimeError("torch.onnx.export(dynamo=True) returned no program, so there is no model to save.")
    model = program.model_proto
    for node in model.graph.node:
        # The exporter notes where each node comes from, with the paths of the machine that it ran on.
        kept = [entry for entry in node.metadata_props if entry.key != STACK_TRACE]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    return model


def export_torchscript(network: nn.Module, example: Tensor) -> onnx.ModelProto:
    """Export by PyTorch's older path, tracing to TorchScript, with a dynamic batch."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # The older path is deprecated; files made by it are what many users have, so one model keeps its form.
        warnings.simplefilter("ignore", DeprecationWarning)
        file = Path(folder) / "exported.onnx"
        torch.onnx.export(
            network,
            (example,),
            file,
            dynamo=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        )
        return onnx.load(file)


def save_model(model: onnx.ModelProto, name: str) -> Path:
    """Check `model` and write it as ``{name}.onnx`` into this folder, whole or not at all."""
    onnx.checker.check_model(model, full_check=True)
    file = FOLDER / f"{name}.onnx"
    with tempfile.TemporaryDirectory(dir=FOLDER, prefix=".making-") as folder:
        temporary = Path(folder) / file.name
        onnx.save_model(model, temporary)
        temporary.replace(file)
    return file


def make_classifier(
    name: str,
    network: Callable[[], nn.Module],
    recipe: Recipe,
    export: Callable[[nn.Module, Tensor], onnx.ModelProto],
    *,
    flatten: bool = False,
) -> str:
    """Train on the data set that `name` begins with, export and write a model.

    Returns:
        A line that names the file and its test error.
    """
    dataset, mean, std = NORMALISATION[name.partition("_")[0]]
    train_images, train_labels, test_images, test_labels = (torch.from_numpy(part) for part in dataset())
    if flatten:
        train_images, test_images = train_images.flatten(1), test_images.flatten(1)
    torch.manual_seed(SEED)
    net = network()
    train(net, train_images, train_labels, recipe)
    error = test_error(net, test_images, test_labels)
    # Two example rows: PyTorch's exporters take a batch of one for a constant.
    model = export(net, test_images[:2])
    onnx.helper.set_model_props(model, {"mean": mean, "std": std})
    file = save_model(model, name)
    return f"{file.name}: {file.stat().st_size} bytes, test error {error:.2f} %"


def make_mnist_lenet() -> str:
    """``mnist_lenet.onnx``, by PyTorch's exporter on torch.export."""
    recipe = Recipe(epochs=8, peak_rate=3e-3, weight_decay=0.05, shift=2)
    return make_classifier("mnist_lenet", lenet, recipe, export_dynamo)


def make_mnist_mlp() -> str:
    """``mnist_mlp.onnx``, by PyTorch's older exporter."""
    recipe = Recipe(epochs=20, peak_rate=3e-3, weight_decay=0.02, shift=0)
    return make_classifier("mnist_mlp", mlp, recipe, export_torchscript, flatten=True)


def make_cifar_quick() -> str:
    """``cifar_quick.onnx``, by PyTorch's older exporter."""
    recipe = Recipe(epochs=24, peak_rate=3e-3, weight_decay=0.02, shift=3, flip=True, background=GREY, bfloat16=True)
    return make_classifier("cifar_quick", cifar_quick, recipe, export_torchscript)


def make_cifar_vgg() -> str:
    """``cifar_vgg.onnx``, by PyTorch's exporter on torch.export."""
    recipe = Recipe(epochs=24, peak_rate=3e-3, weight_decay=0.05, shift=3, flip=True, background=GREY, bfloat16=True)
    return make_classifier("cifar_vgg", cifar_vgg, recipe, export_dynamo)


def make_digits_mlp() -> str:
    """``digits_mlp.onnx`` with ``digits_train.npz`` and ``digits_test.npz``: scikit-learn through skl2onnx.

    The file ends as skl2onnx leaves it, in ArrayFeatureExtractor for the label and ZipMap for the probabilities.
    """
    pixels, labels = load_digits(return_X_y=True)
    train_pixels, test_pixels, train_labels, test_labels = train_test_split(
        pixels.astype(np.float32), labels.astype(np.int64), test_size=0.25, stratify=labels, random_state=SEED
    )
    classifier = MLPClassifier(DIGITS_HIDDEN, alpha=0.1, batch_size=64, max_iter=300, random_state=SEED)
    pipeline = make_pipeline(StandardScaler(), classifier).fit(train_pixels, train_labels)
    # Opset 17 is what onnxruntime 1.17, the oldest that onnxpq serves, loads without a warning.
    model = to_onnx(pipeline, train_pixels[:1], target_opset={"": 17, "ai.onnx.ml": 3})
    file = save_model(model, "digits_mlp")
    input_name = model.graph.input[0].name
    for part, images, truth in (("train", train_pixels, train_labels), ("test", test_pixels, test_labels)):
        datasets.save_npz(
            FOLDER / f"digits_{part}.npz", {input_name: images, datasets.LABELS_KEY: truth}, compress=True
        )
    error = 100 * (1 - pipeline.score(test_pixels, test_labels))
    return f"{file.name}: {file.stat().st_size} bytes, test error {error:.2f} %"


MAKERS: Final[dict[str, Callable[[], str]]] = {
    "mnist_lenet": make_mnist_lenet,
    "mnist_mlp": make_mnist_mlp,
    "cifar_quick": make_cifar_quick,
    "cifar_vgg": make_cifar_vgg,
    "digits_mlp": make_digits_mlp,
}


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module's description."""
    parser = argparse.ArgumentParser(description="Train and export the models of this folder.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(MAKERS)} (default: all)")
    parser.add_argument("--threads", type=int, default=1, help="PyTorch threads (default: 1)")
    options = parser.parse_args(arguments)
    names = options.names or list(MAKERS)
    unknown = [name for name in names if name not in MAKERS]
    if unknown:
        parser.error(f"no model is called {', '.join(unknown)}; the models are {', '.join(MAKERS)}")
    torch.set_num_threads(options.threads)
    for name in names:
        print(f"{name}:", flush=True)
        print(f"  {MAKERS[name]()}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

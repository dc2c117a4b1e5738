"""Folders with a model and its data as a user has them: model.onnx, train.npz, test.npz; made where they are not there.

They lie in the cache folder of the data sets.
"""

import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.common import datasets, processes

NEEDS: Final = ("numpy", "onnx", "onnxruntime", "pillow", "rdata")
"""Packages that only the making of data needs."""


def mnist_folder(name: str) -> Path:
    """A folder with the model and the data of one of the repository's MNIST models."""
    folder = datasets.cache_folder() / "quantizer" / name
    if not (folder / "test.npz").exists():
        folder.mkdir(parents=True, exist_ok=True)
        train, train_labels, test, test_labels = datasets.mnist()
        for part, x, y in (("train", train, train_labels), ("test", test, test_labels)):
            shaped = x.reshape(len(x), -1) if name == "mnist_mlp" else x
            datasets.save_npz(folder / f"{part}.npz", {"input": shaped, "y": y})
    (folder / "model.onnx").write_bytes((processes.ROOT / "models" / f"{name}.onnx").read_bytes())
    return folder


def material_of(name: str) -> Path:
    """The folder with the model and its data; made where it is not there yet."""
    folder = datasets.cache_folder() / "material-2" / name
    if not (folder / "model.onnx").exists():
        python = datasets.cache_folder() / "material-venv" / "bin" / "python"
        if not python.exists():
            subprocess.run([sys.executable, "-m", "venv", python.parent.parent], check=True)
            subprocess.run([python, "-m", "pip", "install", "-q", *NEEDS], check=True)
        processes.output("material", name, folder, python=python)
    return folder

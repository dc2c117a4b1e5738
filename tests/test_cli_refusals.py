"""Bad input on the command line: each gives its sentence and exit code 1, and leaves no file."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from onnx import helper, numpy_helper
from tiny_models import FEATURES, build, classes, initializer, mlp, samples, save_data, save_model

from onnxpq import cli, pipeline

QUICK = ("--epochs", "2", "--batch-size", "16")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `m.onnx`, and `d.npz` of its input and labels."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m.onnx", mlp())
    save_data(tmp_path / "d.npz", x=samples(), y=classes())
    return tmp_path


Refuse = Callable[..., None]


@pytest.fixture
def refuse(folder: Path, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """Runs `compress m.onnx -o o.onnx` with more arguments: one sentence, exit code 1, and the folder as it was."""

    def run(*arguments: str, message: str, model: str = "m.onnx", target: str = "o.onnx") -> None:
        before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
        code = cli.main(["compress", model, "-o", target, *arguments])
        out, err = capsys.readouterr()
        assert err.startswith(f"onnxpq: error: {message}"), err
        assert (code, out) == (1, "")
        assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before

    return run


# Models


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "'bad.onnx' is not an ONNX model: 5 bytes that are no protobuf of one."),
        (b"", "'bad.onnx' is empty (0 bytes); expected an ONNX model. Export or download it again."),
        (mlp().SerializeToString()[:-100], "'bad.onnx' is damaged or truncated: it starts as an ONNX model, but its"),
        (None, "'bad.onnx' does not exist. Check the path."),
    ],
    ids=["foreign", "empty", "truncated", "missing"],
)
def test_file_that_is_no_model(folder: Path, refuse: Refuse, content: bytes | None, message: str) -> None:
    if content is not None:
        (folder / "bad.onnx").write_bytes(content)
    refuse(model="bad.onnx", message=message)
    refuse("--data", "d.npz", model="bad.onnx", message=message)


def test_nan_in_weights(folder: Path, refuse: Refuse) -> None:
    model = mlp()
    weight = numpy_helper.to_array(model.graph.initializer[0]).copy()
    weight[3, 5] = np.nan
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight, "W1"))
    save_model(folder / "nan.onnx", model)
    message = "The initializer 'W1' has 1 NaN and 0 infinite values of 8192; expected finite numbers. Export the model"
    refuse("--data", "d.npz", model="nan.onnx", message=message)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("turned", [False, True])
def test_weight_of_a_constant_node_that_is_not_finite(
    folder: Path, refuse: Refuse, value: float, *, turned: bool
) -> None:
    weight = np.random.default_rng(0).standard_normal((FEATURES, 128)).astype(np.float32)
    weight[3, 5] = value
    held = numpy_helper.from_array(weight.T.copy() if turned else weight, "W")
    nodes = [
        helper.make_node("Constant", [], ["W"], value=held),
        *([helper.make_node("Transpose", ["W"], ["V"], perm=[1, 0])] if turned else []),
        helper.make_node("MatMul", ["x", "V" if turned else "W"], ["y"], name="fc"),
    ]
    save_model(folder / "nan.onnx", build(nodes, {"x": ["N", FEATURES]}, {"y": ["N", 128]}, []))
    nans, infinite = (1, 0) if np.isnan(value) else (0, 1)
    message = f"The weight 'W' of node 'fc' has {nans} NaN and {infinite} infinite values of 8192; expected finite"
    refuse("--data", "d.npz", model="nan.onnx", message=message)
    refuse(model="nan.onnx", message=message)


def test_no_layer_that_can_be_compressed(folder: Path, refuse: Refuse) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], name="act")]
    save_model(folder / "none.onnx", build(nodes, {"x": ["N", 4]}, {"y": ["N", 4]}, []))
    message = "The model has no fully-connected layer that can be compressed. It has no large constants at all."
    refuse(model="none.onnx", message=message)
    message = (
        "The model has no fully-connected layer that can be compressed.\n"
        "  fc1 (Gemm): Excluded by 'fc*'.\n  fc2 (Gemm): Excluded by 'fc*'."
    )
    refuse("--exclude", "fc*", message=message)


def test_layers_that_gain_nothing(folder: Path, refuse: Refuse) -> None:
    nodes = [helper.make_node("MatMul", ["x", "W"], ["y"], name="fc")]
    model = build(nodes, {"x": ["N", 8]}, {"y": ["N", 8]}, [initializer("W", 8, 8, seed=0)])
    save_model(folder / "small.onnx", model)
    refuse("--min-weights", "1", model="small.onnx", message="The compressed file would have ")


# Data


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        (
            {"input": samples()},
            "training data 'bad.npz' lacks the model's input 'x' (float32 [N, 64]); found the keys 'input'.",
        ),
        (
            {"x": samples()[:, :9]},
            "training data 'bad.npz': input 'x' has shape [60, 9], the model expects float32 [N, 64] with the samples",
        ),
        (
            {"x": samples().astype(np.float64)},
            "training data 'bad.npz': input 'x' has type float64, the model expects float32 [N, 64]. Convert it with",
        ),
        (
            {"x": np.full((60, FEATURES), np.nan, np.float32)},
            "training data 'bad.npz': input 'x' holds 3840 NaN or infinite values, the first in sample 0. Remove them.",
        ),
        ({"x": samples()[:0]}, "training data 'bad.npz' is empty: no samples. At least one is needed."),
        ({"x": samples()[:2]}, "The training data has 2 samples: too few to set some aside. Give more, or --test."),
    ],
    ids=["name", "shape", "type", "nan", "empty", "few"],
)
def test_data_that_does_not_fit(folder: Path, refuse: Refuse, arrays: dict[str, np.ndarray], message: str) -> None:
    save_data(folder / "bad.npz", **arrays)
    refuse("--data", "bad.npz", message=message)
    if "too few" not in message:
        refuse("--data", "d.npz", "--test", "bad.npz", message=message.replace("training", "test"))


def test_file_that_is_no_data(folder: Path, refuse: Refuse) -> None:
    refuse("--data", "nowhere.npz", message="training data 'nowhere.npz' does not exist. An .npz file with the")
    refuse("--data", "m.onnx", message="training data 'm.onnx' is no .npz file, or is damaged: ")
    content = (folder / "d.npz").read_bytes()
    (folder / "cut.npz").write_bytes(content[: len(content) // 2])
    refuse(
        "--data", "cut.npz", message="training data 'cut.npz' is no .npz file, or is damaged: File is not a zip file"
    )


@pytest.mark.parametrize(
    ("labels", "arguments", "message"),
    [
        (classes() + 1, (), "Labels are out of range: found 1 to 10 (the first wrong one is that of sample "),
        (
            classes().astype(np.float32),
            ("--loss", "cross-entropy"),
            "Cross-entropy needs integer class labels; found float32[60]: use --loss mse.",
        ),
        (classes()[:9], (), "training data 'bad.npz': all arrays must have the same number of samples along axis 0;"),
        (np.full(60, np.nan), (), "training data 'bad.npz': labels 'y' holds 60 NaN or infinite values, the first in"),
        (np.zeros((60, 3)), (), "Labels of shape ["),
        (np.array(["cat"] * 60), (), "Labels to be compared with an output must be numbers; found <U3."),
    ],
    ids=["range", "float", "length", "nan", "shape", "text"],
)
def test_labels_that_do_not_fit(
    folder: Path, refuse: Refuse, labels: np.ndarray, arguments: tuple[str, ...], message: str
) -> None:
    save_data(folder / "bad.npz", x=samples(), y=labels)
    refuse("--data", "bad.npz", "--labels", "y", *QUICK, *arguments, message=message)


def test_test_labels_out_of_range(folder: Path, refuse: Refuse) -> None:
    save_data(folder / "bad.npz", x=samples(), y=classes() - 1)
    message = "Labels are out of range: found -1 to 8 (the first wrong one is that of sample "
    refuse("--data", "d.npz", "--test", "bad.npz", "--labels", "y", *QUICK, message=message)
    refuse("--test", "bad.npz", "--labels", "y", message=message)


def test_labels_that_are_not_there(refuse: Refuse) -> None:
    message = "training data 'd.npz' has no labels: key 'foo' expected, found the keys 'x', 'y'."
    refuse("--data", "d.npz", "--labels", "foo", message=message)
    refuse("--labels", "y", message="--labels names a key of the data, and no --data was given.")
    message = "Loss 'cross-entropy' needs labels, and the data has none. Name their key with --labels, or leave --loss."
    refuse("--data", "d.npz", "--loss", "cross-entropy", message=message)


# Output paths


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("missing/o.onnx", "Cannot write 'missing/o.onnx': the folder 'missing' does not exist. Create it first."),
        ("d.npz/o.onnx", "Cannot write 'd.npz/o.onnx': the folder 'd.npz' does not exist."),
        (".", "Cannot write '.': it is a folder; expected the path of a file."),
        ("m.onnx", "Writing 'm.onnx' would overwrite 'm.onnx', a file of the input model. Choose another path."),
        ("./m.onnx", "Writing './m.onnx' would overwrite 'm.onnx', a file of the input model. Choose another path."),
        ("d.npz", "--output would overwrite 'd.npz', the file of --data. Choose another path."),
    ],
)
def test_output_that_cannot_be_written(refuse: Refuse, target: str, message: str) -> None:
    refuse("--data", "d.npz", target=target, message=message)


@pytest.mark.parametrize(
    ("report", "message"),
    [
        ("missing/r.json", "Cannot write 'missing/r.json': the folder 'missing' does not exist. Create it first."),
        ("m.onnx", "Writing 'm.onnx' would overwrite 'm.onnx', a file of the input model. Choose another path."),
        ("./o.onnx", "--report './o.onnx' would overwrite the model. Choose another path."),
        ("d.npz", "--report would overwrite 'd.npz', the file of --data. Choose another path."),
    ],
)
def test_report_that_cannot_be_written_is_found_before_the_work(refuse: Refuse, report: str, message: str) -> None:
    refuse("--data", "d.npz", "--report", report, message=message)


def test_disk_that_is_full(refuse: Refuse, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    real = pipeline.Result.save

    def save(self: pipeline.Result, path: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            real(self, path)

    monkeypatch.setattr(pipeline.Result, "save", save)
    refuse(message="Cannot write 'o.onnx': [Errno 28] No space left on device. Free some space or choose another path.")


# Settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--codewords", "1000"),
            "The 'codewords' parameter of PQConfig must be an integer in [2, 256]. Got 1000 instead.",
        ),
        (
            ("--regularizer", "foo"),
            "The 'regularizer' parameter of TrainingConfig must be one of 'codebook', 'murray-ng', 'l1', 'l2', "
            "'quartic', 'none'. Got 'foo' instead.",
        ),
        (
            ("--loss", "foo"),
            "The 'loss' parameter of TrainingConfig must be one of 'auto', 'cross-entropy', 'mse', "
            "'distillation'. Got 'foo' instead.",
        ),
        (
            ("--codebooks", "foo"),
            "The 'codebooks' parameter of PQConfig must be one of 'auto', 'layer', 'position'. Got 'foo' instead.",
        ),
        (
            ("--codebooks", "0"),
            "The 'codebooks' parameter of PQConfig must be an integer in [1, 1048576]. Got 0 instead.",
        ),
        (
            ("--codebooks", "9"),
            "Layer 'fc1' has 8 sub-vectors of length 8, so it can have at most that many codebooks; 9",
        ),
        (("--output-name", "foo"), "The model has no output 'foo'. Its outputs are: logits."),
        (
            ("--include", "head*"),
            "The 'include' pattern 'head*' matches no node with a weight. Names there are: 'fc1', 'fc2'.",
        ),
        (
            ("--exclude", "foo"),
            "The 'exclude' pattern 'foo' matches no node with a weight. Names there are: 'fc1', 'fc2'.",
        ),
        (("--config", "no.toml"), "Settings file 'no.toml' cannot be read: [Errno 2] No such file or directory"),
    ],
    ids=lambda value: "=".join(value) if isinstance(value, tuple) else "",
)
def test_settings_that_cannot_be(refuse: Refuse, arguments: tuple[str, ...], message: str) -> None:
    refuse("--data", "d.npz", *arguments, message=message)


def test_output_without_gradient(folder: Path, refuse: Refuse) -> None:
    save_model(folder / "l.onnx", mlp(labels=True))
    message = "Output 'label' holds int64, which has no gradient. Choose one of: logits."
    refuse("--data", "d.npz", "--output-name", "label", model="l.onnx", message=message)


# Operators that cannot be trained through


@pytest.fixture
def unknown(folder: Path) -> str:
    """A model that onnxruntime runs, with an operator of its own that onnxpq has no handler for, behind fc1."""
    model = mlp(activation="Trilu", domain="com.microsoft")
    # All below a diagonal so far up that nothing is left out: a sample's place in the batch does not count.
    act = next(node for node in model.graph.node if node.op_type == "Trilu")
    act.input.append("k")
    act.attribute.append(helper.make_attribute("upper", 0))
    model.graph.initializer.append(numpy_helper.from_array(np.array(1000), "k"))
    save_model(folder / "unknown.onnx", model)
    return "unknown.onnx"


def test_operator_without_a_handler_behind_a_layer(capsys: pytest.CaptureFixture[str], unknown: str) -> None:
    assert cli.main(["compress", unknown, "-o", "o.onnx", "--data", "d.npz", *QUICK]) == 0
    reason = "because operator com.microsoft::Trilu version 1 at node 'act' has no rule"
    assert reason in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--test", "d.npz"),
        ("--data", "d.npz", "--exclude", "fc1", *QUICK),
    ],
)
def test_the_ways_out_work(folder: Path, unknown: str, arguments: tuple[str, ...]) -> None:
    assert cli.main(["compress", unknown, "-o", "o.onnx", *arguments]) == 0
    assert (folder / "o.onnx").exists()

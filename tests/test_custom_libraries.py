"""Models with operators of other libraries: a user's own, and onnxruntime-extensions with a tokenizer in the graph."""

import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from tiny_models import FEATURES, build, initializer, mlp, save_data, save_model

import onnxpq
from onnxpq import cli
from onnxpq.config.settings import Config, TrainingConfig
from onnxpq.errors import DataError, ModelError, RuntimeLibraryError
from onnxpq.graph.layers import Layer
from onnxpq.network.ops import registry
from onnxpq.quantization import calibration
from onnxpq.runtime import sessions

QUICK = Config(training=TrainingConfig(epochs=40, batch_size=64))
ROWS = 600
PLAIN_SHARE = 0.6
"""Share of the error of plain product quantization that layer-wise training has to get under."""


@pytest.fixture(autouse=True)
def quantized_for_the_weights_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without statistics of the layers' inputs, the few epochs of these tests have something to gain."""

    def none(_model: object, layers: Sequence[Layer], *_: object, **__: object) -> Iterator[tuple[str, None]]:
        return ((layer.weight, None) for layer in layers)

    monkeypatch.setattr(calibration, "collect", none)


def leaky_mlp() -> onnx.ModelProto:
    return mlp(activation="Leaky", domain="my")


def leaky(x: torch.Tensor) -> torch.Tensor:
    return torch.maximum(x, x / 10)


def correlated(rows: int = ROWS, seed: int = 0) -> np.ndarray:
    """Inputs in a space of 12 dimensions, so that training has something to gain, as on real data."""
    directions = np.random.default_rng(1).standard_normal((12, FEATURES))
    return (np.random.default_rng(seed).standard_normal((rows, 12)) @ directions / 3).astype(np.float32)


def test_session_with_a_library(leaky_library: Path) -> None:
    model, x = leaky_mlp().SerializeToString(), correlated(5)
    options = sessions._onnxruntime().SessionOptions()
    for _ in range(2):  # the same options twice: a library is not added again
        session = onnxpq.session(model, options=options, custom_ops_libraries=[leaky_library])
        found = session.run(None, {"x": x})[0]
    weights = {i.name: onnx.numpy_helper.to_array(i) for i in leaky_mlp().graph.initializer}
    hidden = x @ weights["W1"].T + weights["b1"]
    expected = np.maximum(hidden, hidden / 10) @ weights["W2"].T + weights["b2"]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_without_the_library() -> None:
    with pytest.raises(
        ModelError, match=r"my:Leaky.* is not a registered function/op. Give the library .*--custom-ops"
    ):
        onnxpq.session(leaky_mlp().SerializeToString())


def test_no_library_and_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(RuntimeLibraryError, match=r"library '.*nowhere.so' does not exist or is no file"):
        onnxpq.session(leaky_mlp().SerializeToString(), custom_ops_libraries=[tmp_path / "nowhere.so"])
    (tmp_path / "text.so").write_text("hello")
    with pytest.raises(RuntimeLibraryError, match=r"refuses the operator library '.*text.so': .*"):
        onnxpq.session(leaky_mlp().SerializeToString(), custom_ops_libraries=[tmp_path / "text.so"])


def test_layers_before_the_operator_are_trained_layer_wise(leaky_library: Path, tmp_path: Path) -> None:
    data = {"x": correlated()}
    plain, tuned = (
        onnxpq.compress(
            leaky_mlp(), data, test={"x": correlated(200, 2)}, config=config, custom_ops_libraries=[leaky_library]
        ).report
        for config in (Config(training=TrainingConfig(epochs=0)), QUICK)
    )
    reason = "operator my::Leaky version 1 at node 'act' has no rule"
    assert [layer.training for layer in plain.layers] == ["", ""]
    assert [layer.training for layer in tuned.layers] == [f"layer-wise: {reason}", "end to end"]
    (alone,) = tuned.layer_wise
    assert (alone.node, alone.reason) == ("fc1", reason)
    assert alone.rows + alone.validation_rows == ROWS
    assert alone.best < PLAIN_SHARE * alone.quantized
    assert tuned.training.prefix == 2
    error, before = (report.verification.outputs[0].relative_error for report in (tuned, plain))
    assert error < 0.85 * before
    assert f"because {reason}" in tuned.to_text()


def test_a_rule_for_the_operator_makes_it_end_to_end(leaky_library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_users", {})
    onnxpq.register_op("my", "Leaky", leaky)
    report = onnxpq.compress(
        leaky_mlp(), {"x": correlated()}, config=QUICK, custom_ops_libraries=[leaky_library]
    ).report
    assert [layer.training for layer in report.layers] == ["end to end"] * 2
    assert report.layer_wise == ()
    assert report.training.best < PLAIN_SHARE * report.training.quantized


def test_on_the_command_line(
    leaky_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m.onnx", leaky_mlp())
    save_data(tmp_path / "d.npz", x=correlated(60))
    arguments = ["compress", "m.onnx", "-o", "o.onnx", "--data", "d.npz", "--epochs", "1"]
    assert cli.main([*arguments, "--custom-ops-library", str(leaky_library)]) == 0
    assert "Fine-tuned layer by layer" in capsys.readouterr().out
    (tmp_path / "o.onnx").unlink()
    assert cli.main(arguments) == 1
    assert "is not a registered function/op. Give the library" in capsys.readouterr().err
    assert not (tmp_path / "o.onnx").exists()


# A tokenizer in the graph


WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "bird",
    "fish",
    "sees",
    "eats",
    "likes",
    "finds",
    "red",
    "big",
    "small",
    "old",
    "slow",
    "quick",
    "house",
    "tree",
    "river",
    "stone",
]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
EMBEDDING = 64


def text_model() -> onnx.ModelProto:
    """`text [1] -> BertTokenizer -> ids -> embedding -> mean -> fc1 -> Relu -> fc2 -> scores [1, 10]`."""
    tokenizer = helper.make_node(
        "BertTokenizer",
        ["text"],
        ["ids", "types", "mask"],
        name="tokenize",
        domain="ai.onnx.contrib",
        vocab_file="\n".join(VOCABULARY).encode(),
        do_lower_case=1,
    )
    nodes = [
        tokenizer,
        helper.make_node("Gather", ["table", "ids"], ["tokens"], name="embed"),
        helper.make_node("Unsqueeze", ["tokens", "zero"], ["batch"], name="unsqueeze"),
        helper.make_node("ReduceMean", ["batch"], ["mean"], name="mean", axes=[1], keepdims=0),
        helper.make_node("Gemm", ["mean", "W1", "b1"], ["h"], name="fc1", transB=1),
        helper.make_node("Relu", ["h"], ["a"], name="act"),
        helper.make_node("Gemm", ["a", "W2"], ["scores"], name="fc2", transB=1),
    ]
    weights = [
        initializer("table", len(VOCABULARY), EMBEDDING, seed=0),
        initializer("W1", 128, EMBEDDING, seed=1, scale=0.2),
        initializer("b1", 128, seed=2, scale=0.1),
        initializer("W2", 10, 128, seed=3, scale=0.2),
        onnx.numpy_helper.from_array(np.array([0]), "zero"),
    ]
    model = build(nodes, {}, {"scores": [1, 10]}, weights, domains=("ai.onnx.contrib",))
    model.graph.input.append(helper.make_tensor_value_info("text", TensorProto.STRING, [1]))
    return model


def texts(count: int = 300) -> np.ndarray:
    rng = np.random.default_rng(5)
    return np.array([" ".join(rng.choice(WORDS, rng.integers(2, 9))) for _ in range(count)])


@pytest.fixture
def _extensions() -> None:
    pytest.importorskip("onnxruntime_extensions")


@pytest.mark.usefixtures("_extensions")
def test_a_model_with_its_tokenizer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Data of strings in a file, through the command line; the library is found by itself."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m.onnx", text_model())
    save_data(tmp_path / "d.npz", text=texts())
    for epochs in ("0", "8"):
        arguments = ["compress", "m.onnx", "-o", f"{epochs}.onnx", "--data", "d.npz", "--epochs", epochs]
        assert cli.main(arguments) == 0
    original, plain, tuned = (onnxpq.session(tmp_path / name) for name in ("m.onnx", "0.onnx", "8.onnx"))
    expected, *found = (
        np.concatenate([session.run(None, {"text": np.array([text])})[0] for text in texts()])
        for session in (original, plain, tuned)
    )
    before, after = (float(np.linalg.norm(scores - expected)) for scores in found)
    assert 0 < after < 0.9 * before


@pytest.mark.usefixtures("_extensions")
@pytest.mark.parametrize("kind", ["numpy strings", "objects", "a list"])
def test_strings_from_python(kind: str) -> None:
    found = texts(40)
    data = {"numpy strings": found, "objects": found.astype(object), "a list": found.tolist()}[kind]
    result = onnxpq.compress(text_model(), {"text": data}, config=Config(training=TrainingConfig(epochs=1)))
    assert [layer.training for layer in result.report.layers] == ["end to end"] * 2


@pytest.mark.usefixtures("_extensions")
def test_data_that_is_no_strings(tmp_path: Path) -> None:
    for data in (np.zeros(40), np.array([b"cat"] * 40), np.array(["cat", 3] * 20, object)):
        with pytest.raises(
            DataError, match=r"input 'text' has type .*, the model expects string \[1\]. Give strings: num"
        ):
            onnxpq.compress(text_model(), {"text": data})
    np.savez(tmp_path / "objects.npz", text=texts(40).astype(object))
    with pytest.raises(DataError, match=r"holds arrays of objects"):
        onnxpq.compress(text_model(), tmp_path / "objects.npz")
    with pytest.raises(DataError, match=r"Input 'text' is string \[1\]: no random samples"):
        onnxpq.compress(text_model())


def test_extensions_that_are_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime_extensions", None)
    with pytest.raises(
        RuntimeLibraryError, match=r"cannot be imported .* Install it with `pip install onnxruntime-ext"
    ):
        onnxpq.session(text_model().SerializeToString())


def test_the_example_in_the_documentation(leaky_library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "any-model.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (command,) = re.findall(r"```sh\nonnxpq (.*?)\n```", text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(registry, "_users", {})
    save_model(tmp_path / "m.onnx", leaky_mlp())
    save_data(tmp_path / "d.npz", x=correlated(60))
    shutil.copy(leaky_library, tmp_path / "leaky.so")
    monkeypatch.setattr("onnxpq.training.schedule.MANY_STEPS", 4)
    assert cli.main(command.split()) == 0
    variables: dict[str, object] = {}
    exec(code, variables)  # noqa: S102 -- our own document
    ways = [layer.training for layer in variables["result"].report.layers]
    assert ways == ["end to end"] * 2

"""What has lost the model is not written, whatever the options: the floor from the user's point of view."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_models import mlp, samples, save_data, save_model

import onnxpq
from onnxpq import cli
from onnxpq.config.settings import Config, PQConfig, TrainingConfig
from onnxpq.config.target import TargetConfig
from onnxpq.errors import FloorError

pytestmark = pytest.mark.floor

ROUGH = Config(pq=PQConfig(4, 4), training=TrainingConfig(epochs=0), min_weights=1)
"""Half a bit a weight, for a network of random ones: a part of the answers is left."""
GENTLE = Config(pq=PQConfig(1, 256), training=TrainingConfig(epochs=0), min_weights=1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m.onnx", mlp())
    save_data(tmp_path / "d.npz", x=samples(400))
    return tmp_path


def test_a_result_that_lost_the_model_is_an_error_that_has_it() -> None:
    with pytest.raises(
        FloorError, match=r"The share of other answers of output 'logits' is \d|other answers"
    ) as caught:
        onnxpq.compress(mlp(), {"x": samples(400)}, config=ROUGH)
    result = caught.value.result
    assert isinstance(result, onnxpq.Result)
    assert not result.report.verification.floor.kept
    assert "Floor MISSED" in result.report.to_text()


def test_a_gentle_one_is_not() -> None:
    result = onnxpq.compress(mlp(), {"x": samples(400)}, config=GENTLE)
    assert result.report.verification.floor.kept


@pytest.mark.parametrize(
    ("options", "code", "written"),
    [
        ([], 1, False),
        (["--force"], 1, True),
        (["--floor", "100%"], 0, True),
        (["--floor", "1%"], 1, False),
        (["--max-drop", "90%", "--ratio", "4.5"], 0, True),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_nothing_is_written_below_the_floor(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], code: int, written: bool
) -> None:
    rough = [] if "--ratio" in options else ["--sub-vector", "4", "--codewords", "4"]
    command = ["compress", "m.onnx", "-o", "o.onnx", "--data", "d.npz", "--min-weights", "1", "--epochs", "0"]
    assert cli.main([*command, *rough, *options, "--report", "r.json"]) == code
    assert (folder / "o.onnx").exists() is written
    report = json.loads((folder / "r.json").read_text())
    assert report["verification"]["floor"]["loss"] > 0
    error = capsys.readouterr().err
    assert ("too far from the original" in error) is (code == 1)


def test_labels_count_where_there_are_any() -> None:
    x = samples(400)
    answers = onnxpq.session(mlp().SerializeToString()).run(None, {"x": x})[0].argmax(-1)
    data = {"x": x, "y": answers}
    with pytest.raises(FloorError, match="loss of accuracy of output 'logits'"):
        onnxpq.compress(mlp(), data, labels="y", config=ROUGH)


def test_a_larger_drop_that_was_asked_for_is_no_loss_of_the_model() -> None:
    config = Config(target=TargetConfig(ratio=4.5, max_drop=0.9), training=TrainingConfig(epochs=0), min_weights=1)
    result = onnxpq.compress(mlp(), {"x": samples(400)}, config=config)
    assert result.report.verification.floor.limit == 0.9


def test_without_data_it_counts_on_made_up_inputs() -> None:
    with pytest.raises(FloorError) as caught:
        onnxpq.compress(mlp(), config=ROUGH)
    assert isinstance(caught.value.result, onnxpq.Result)
    text = caught.value.result.report.to_text()
    assert text.startswith("Nothing was proven")
    assert np.isfinite(caught.value.result.report.verification.floor.loss)

"""The whole path from Python, on the digits model and on hand-made ones."""

from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxpq
from onnxpq import runtime
from onnxpq.config.settings import Config, PQConfig, TrainingConfig
from onnxpq.errors import ConfigError
from onnxpq.graph import files
from onnxpq.support import memory

MODELS = Path(__file__).resolve().parent.parent / "models"
DIGITS = MODELS / "digits_mlp.onnx"

QUICK = Config(training=TrainingConfig(epochs=40))
LOST_ACCURACY = 0.04
"""Largest drop of the accuracy on the digits' test data after the short training of these tests."""


@pytest.fixture(scope="module")
def digits() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    with np.load(MODELS / "digits_train.npz") as train, np.load(MODELS / "digits_test.npz") as test:
        return dict(train), dict(test)


@pytest.fixture(scope="module")
def result(digits: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]) -> onnxpq.Result:
    return onnxpq.compress(DIGITS, digits[0], test=digits[1], labels="y", config=QUICK)


def test_small_and_as_accurate(result: onnxpq.Result) -> None:
    accuracy = result.report.verification.accuracy
    assert accuracy is not None
    assert result.report.ratio > 20
    assert result.report.layer_ratio > 30
    assert accuracy.drop.value <= LOST_ACCURACY


def test_the_report_agrees_with_the_saved_file(
    result: onnxpq.Result, digits: tuple[dict[str, np.ndarray], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    path = tmp_path / "small.onnx"
    result.save(path)
    assert path.stat().st_size == result.report.verification.bytes_after
    _, test = digits
    for use_library in {False, runtime.library_available()}:
        scores = runtime.run(runtime.session(path, use_library=use_library), {"X": test["X"]})["output_probability"]
        accuracy = float((scores.argmax(1) == test["y"]).mean())
        assert accuracy == pytest.approx(result.report.verification.accuracy.compressed.value, abs=0.005)


def test_inputs_outputs_and_names_stay(result: onnxpq.Result, tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    result.save(path)
    before, after = onnx.load(DIGITS), onnx.load(path)
    assert [str(value) for value in after.graph.input] == [str(value) for value in before.graph.input]
    assert [str(value) for value in after.graph.output] == [str(value) for value in before.graph.output]
    onnx.checker.check_model(after, full_check=True)
    assert {node.op_type for node in after.graph.node} >= {"PQDynamicQuantizeMatMul", "ZipMap"}
    names = {initializer.name for initializer in after.graph.initializer}
    assert not names & {"coefficient", "coefficient1", "coefficient2"}, "the weights left the file"


def test_same_seed_same_file(digits: tuple[dict[str, np.ndarray], dict[str, np.ndarray]], tmp_path: Path) -> None:
    quick = Config(training=TrainingConfig(epochs=2))
    contents = set()
    for name in ("a.onnx", "b.onnx"):
        onnxpq.compress(DIGITS, digits[0], config=quick).save(tmp_path / name)
        contents.add((tmp_path / name).read_bytes())
    assert len(contents) == 1


def test_cached_activations_are_reused(
    digits: tuple[dict[str, np.ndarray], dict[str, np.ndarray]], tmp_path: Path
) -> None:
    quick = Config(training=TrainingConfig(epochs=1))
    onnxpq.compress(DIGITS, digits[0], config=quick, cache_dir=tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    onnxpq.compress(DIGITS, digits[0], config=quick, cache_dir=tmp_path)
    assert kept
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == kept


def test_without_data_it_is_plain_quantization_and_says_so() -> None:
    report = onnxpq.compress(DIGITS).report
    assert report.training is None
    assert not report.verification.held_out
    assert "random inputs" in report.verification.data
    assert any("without training" in note for note in report.notes)
    assert any("says nothing about its accuracy" in note for note in report.notes)


def test_part_of_the_data_is_set_aside(digits: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]) -> None:
    report = onnxpq.compress(DIGITS, {"X": digits[0]["X"]}, config=Config(training=TrainingConfig(epochs=1))).report
    assert report.verification.samples == round(0.1 * len(digits[0]["X"]))
    assert report.verification.held_out
    assert report.training is not None
    assert report.training.samples + report.training.validation_samples + report.verification.samples == len(
        digits[0]["X"]
    )


def test_the_label_output_cannot_be_trained(digits: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]) -> None:
    with pytest.raises(ConfigError, match=r"'output_label' holds int64.*Choose one of: output_probability"):
        onnxpq.compress(DIGITS, digits[0], config=Config(output="output_label"))


def test_excluded_layers_stay(digits: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]) -> None:
    config = Config(exclude=("MatMul1",), pq=PQConfig(sub_vector=4), training=TrainingConfig(epochs=1))
    report = onnxpq.compress(DIGITS, digits[0], config=config).report
    assert [layer.node for layer in report.layers] == ["MatMul", "MatMul2"]
    assert [entry.node for entry in report.skipped if "exclude" in entry.reason.lower()] == ["MatMul1"]


def test_progress_is_told(digits: tuple[dict[str, np.ndarray], dict[str, np.ndarray]]) -> None:
    seen: dict[str, tuple[int, int]] = {}
    config = Config(training=TrainingConfig(epochs=1))
    onnxpq.compress(DIGITS, digits[0], config=config, progress=lambda stage, done, of: seen.update({stage: (done, of)}))
    assert seen.keys() == {"caching", "clustering", "training", "verification"}
    assert all(done == of for done, of in seen.values())


@pytest.mark.parametrize(("room", "is_timed"), [(None, True), (10**9, True), (10**4, False)])
def test_a_large_model_is_timed_where_there_is_room(
    room: int | None, is_timed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "LARGE_BYTES", 1000)
    monkeypatch.setattr(memory, "available", lambda: room)
    report = onnxpq.compress(DIGITS).report
    notes = [note for note in report.notes if "The time of a call was not measured" in note]
    assert bool(report.verification.latency) == is_timed == (not notes)
    if notes:
        assert f"may take {3 * DIGITS.stat().st_size:,} bytes of memory, and 10,000 are left" in notes[0]
        assert "milliseconds a call" not in str(report)

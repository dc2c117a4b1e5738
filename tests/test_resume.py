"""A run that is interrupted anywhere, and the same call again: the file of an uninterrupted run, byte for byte."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_models import classes, mlp, samples, save_data, save_model

import onnxpq
from onnxpq import cli
from onnxpq.config.settings import Config, TargetConfig, TrainingConfig
from onnxpq.errors import WorkspaceError
from onnxpq.quantization import calibration
from onnxpq.targeting import searching
from onnxpq.workspace import pieces

MODEL = mlp()
DATA = {"x": samples(200), "y": classes(200)}
SETTINGS = Config(training=TrainingConfig(epochs=4, batch_size=32))
STEPS = 4 * (162 // 32)
"""200 samples; a tenth is set aside, and a tenth of the rest chooses the best epoch."""

TIMES = {"seconds", "latency", "notes"}


class Stop(BaseException):
    """As Ctrl-C, at a chosen moment."""


@pytest.fixture(autouse=True)
def every_step_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(pieces, "SAVE_SHARE", 0.0)


def compress(folder: Path | None, **more: Any) -> onnxpq.Result:
    return onnxpq.compress(MODEL, DATA, labels="y", **({"config": SETTINGS, "work_dir": folder} | more))


def stop_at(stage: str, done: int) -> Callable[[str, int, int], None]:
    def tell(at: str, count: int, of: int) -> None:
        if (at, count) == (stage, done):
            raise Stop

    return tell


def content(result: onnxpq.Result, folder: Path) -> bytes:
    folder.mkdir(exist_ok=True)
    result.save(folder / "out.onnx")
    return (folder / "out.onnx").read_bytes()


def facts(result: onnxpq.Result) -> dict[str, Any]:
    """The report, without what a clock says and what tells of the interruption."""
    found = json.loads(result.report.to_json())
    del found["verification"]["latency"]
    return {key: value for key, value in found.items() if key not in TIMES}


@pytest.fixture(scope="module")
def whole() -> onnxpq.Result:
    return compress(None)


STOPS = [
    ("clustering", 1),
    ("clustering", 2),
    ("training", 1),
    ("training", 7),
    ("training", STEPS - 3),
    ("training", STEPS),
    ("verification", 20),
]


@pytest.mark.parametrize(("stage", "done"), STOPS)
def test_interrupted_once(whole: onnxpq.Result, tmp_path: Path, stage: str, done: int) -> None:
    with pytest.raises(Stop):
        compress(tmp_path / "w", progress=stop_at(stage, done))
    again = compress(tmp_path / "w")
    assert content(again, tmp_path / "o") == content(whole, tmp_path / "o")
    assert facts(again) == facts(whole)
    notes = [note for note in again.report.notes if note.startswith("Continued")]
    layers, finished = min(done, 2) if stage == "clustering" else 2, stage != "clustering"
    counts = f"{layers} layer{'s' * (layers > 1)}{', 1 training' * finished}"
    assert notes == [f"Continued: what an earlier call had done was read from '{tmp_path / 'w'}' ({counts})."]


def test_interrupted_in_calibration(whole: onnxpq.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:

        def stop(*_: object) -> None:
            raise Stop

        patch.setattr(calibration, "_rows", stop)
        with pytest.raises(Stop):
            compress(tmp_path / "w")
    assert content(compress(tmp_path / "w"), tmp_path / "o") == content(whole, tmp_path / "o")


def test_interrupted_at_every_stage_in_turn(whole: onnxpq.Result, tmp_path: Path) -> None:
    for stage, done in STOPS:
        with pytest.raises(Stop):
            compress(tmp_path / "w", progress=stop_at(stage, done))
    assert content(compress(tmp_path / "w"), tmp_path / "o") == content(whole, tmp_path / "o")


def test_a_second_call_has_nothing_left_to_do(whole: onnxpq.Result, tmp_path: Path) -> None:
    first = compress(tmp_path / "w")
    stages: set[str] = set()

    def tell(stage: str, done: int, of: int) -> None:
        stages.add(stage)

    second = compress(tmp_path / "w", progress=tell)
    assert stages == {"verification"}, "nothing was trained or computed again"
    assert content(second, tmp_path / "o") == content(first, tmp_path / "o") == content(whole, tmp_path / "o")
    assert not any(note.startswith("Continued") for note in first.report.notes)


def test_brief_and_whole_trainings_of_a_target_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They begin with the same codes: what is kept of one must not pass for the other."""
    monkeypatch.setattr(searching, "SCANS", 0)  # else the smallest of all would be found to do without training
    settings = Config(training=TrainingConfig(epochs=16, batch_size=32), target=TargetConfig(max_drop=1.0, attempts=1))
    first = compress(tmp_path / "w", config=settings)
    assert not any(note.startswith("Continued") for note in first.report.notes), "by what it had done itself"
    trained: list[int] = []

    def tell(stage: str, done: int, of: int) -> None:
        if stage == "training":
            trained.append(done)

    second = compress(tmp_path / "w", config=settings, progress=tell)
    assert first.report.target is not None
    trials = [(trial.layer_bytes, trial.trained) for trial in first.report.target.trials]
    assert {share for _, share in trials} == {0.0, 0.125, 1.0}
    assert {size for size, share in trials if share == 1} <= {size for size, share in trials if 0 < share < 1}
    assert first.report.training is not None
    assert len(first.report.training.epochs) > 2, "a brief one has two"
    assert trained == []
    assert content(second, tmp_path / "o") == content(first, tmp_path / "o")


def test_what_was_measured_for_a_target_is_not_measured_again(tmp_path: Path) -> None:
    settings = Config(training=TrainingConfig(steps=0), target=TargetConfig(fc_ratio=10))
    whole = compress(None, config=settings)
    with pytest.raises(Stop):
        compress(tmp_path / "w", config=settings, progress=stop_at("sensitivity", 1))
    measured: list[int] = []

    def tell(stage: str, done: int, of: int) -> None:
        if stage == "sensitivity":
            measured.append(done)

    again = compress(tmp_path / "w", config=settings, progress=tell)
    assert measured == [2]
    assert content(again, tmp_path / "o") == content(whole, tmp_path / "o")
    assert facts(again) == facts(whole)
    compress(tmp_path / "w", config=settings, progress=tell)
    assert measured == [2]


def test_layers_trained_each_by_itself(tmp_path: Path) -> None:
    """Round lets no gradient through, so that the first layer is trained on its own."""
    model = mlp(activation="Round")
    given = {"config": SETTINGS, "data": DATA}
    whole = onnxpq.compress(model, **given)
    assert [layer.training.partition(":")[0] for layer in whole.report.layers] == ["layer-wise", "end to end"]
    for stage, done in (("training", 5), ("layer-wise training", 1)):
        with pytest.raises(Stop):
            onnxpq.compress(model, **given, work_dir=tmp_path / "w", progress=stop_at(stage, done))
    again = onnxpq.compress(model, **given, work_dir=tmp_path / "w")
    assert content(again, tmp_path / "o") == content(whole, tmp_path / "o")
    assert facts(again) == facts(whole)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "emptied"])
def test_damaged_pieces_are_noticed_and_done_again(whole: onnxpq.Result, tmp_path: Path, damage: str) -> None:
    compress(tmp_path / "w")
    paths = sorted((tmp_path / "w" / pieces.PIECES).iterdir())
    for path in paths:
        content_now = bytearray(path.read_bytes())
        content_now[len(content_now) // 2] ^= 0x10
        kept = {"truncated": content_now[:-9], "flipped": content_now, "emptied": b""}[damage]
        path.write_bytes(kept)
    again = compress(tmp_path / "w")
    assert content(again, tmp_path / "o") == content(whole, tmp_path / "o")
    assert sum("was damaged: that part of the work was done again." in note for note in again.report.notes) == 3


def test_damaged_activations_are_done_again(whole: onnxpq.Result, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        compress(tmp_path / "w", progress=stop_at("training", 3))
    arrays = list((tmp_path / "w" / pieces.ACTIVATIONS).rglob("*.npy"))
    assert arrays
    for path in arrays:
        os.truncate(path, path.stat().st_size // 2)
    assert content(compress(tmp_path / "w"), tmp_path / "o") == content(whole, tmp_path / "o")


def test_without_data(tmp_path: Path) -> None:
    whole = onnxpq.compress(MODEL)
    with pytest.raises(Stop):
        onnxpq.compress(MODEL, work_dir=tmp_path / "w", progress=stop_at("clustering", 1))
    again = onnxpq.compress(MODEL, work_dir=tmp_path / "w")
    assert content(again, tmp_path / "o") == content(whole, tmp_path / "o")


@pytest.mark.parametrize(
    ("change", "phrase"),
    [
        ({"config": Config(seed=1)}, r"settings\.seed was 0 and is 1 now"),
        ({"labels": None}, r'labels was "y" and is null now'),
        ({"data": {"x": samples(200, seed=1), "y": DATA["y"]}}, r"data\.sha256 was \w{12} and is \w{12} now"),
        ({"data": {"x": DATA["x"], "y": classes(200, seed=1)}}, r"data\.sha256 was \w{12} and is \w{12} now"),
        ({"model": mlp(seed=5)}, r"model\.sha256 was \w{12} and is \w{12} now"),
        ({"test": {"x": samples(9), "y": classes(9)}}, r"test\.sha256 was null and is \w{12} now"),
    ],
    ids=["setting", "labels", "data", "values of labels", "model", "test"],
)
def test_another_run_is_noticed(tmp_path: Path, change: dict[str, Any], phrase: str) -> None:
    given: dict[str, Any] = {"model": MODEL, "data": DATA, "labels": "y", "config": SETTINGS}
    with pytest.raises(Stop):
        onnxpq.compress(**given, work_dir=tmp_path / "w", progress=stop_at("clustering", 1))
    with pytest.raises(WorkspaceError, match=rf"holds another run: .*{phrase}.*--restart"):
        onnxpq.compress(**given | change, work_dir=tmp_path / "w")
    onnxpq.compress(**given | change, work_dir=tmp_path / "w", restart=True)
    onnxpq.compress(**given | change, work_dir=tmp_path / "w")


def test_the_report_says_what_it_was_made_from(whole: onnxpq.Result, tmp_path: Path) -> None:
    made_from = compress(tmp_path / "w").report.made_from
    assert made_from == json.loads((tmp_path / "w" / "manifest.json").read_text()) == whole.report.made_from
    assert made_from["settings"] == json.loads(json.dumps(SETTINGS.to_dict()))


def test_a_cache_of_its_own_is_left_out_of_the_folder(tmp_path: Path) -> None:
    compress(tmp_path / "w", cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").rglob("*.npy"))
    assert not (tmp_path / "w" / pieces.ACTIVATIONS).exists()


# From the command line, with a kill that nothing can catch

KILLED = """
import os, signal, sys
from onnxpq import cli, pipeline, workspace
workspace.SAVE_SECONDS = workspace.SAVE_SHARE = 0.0
stage, count = sys.argv[1], int(sys.argv[2])
compress = pipeline.compress
def kill(at, done, of):
    if (at, done) == (stage, count):
        os.kill(os.getpid(), signal.SIGKILL)
pipeline.compress = lambda *a, **given: compress(*a, **given | {"progress": kill})
sys.exit(cli.main(sys.argv[3:]))
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m.onnx", MODEL)
    save_data(tmp_path / "d.npz", **DATA)
    return tmp_path


def command(target: str, *more: str) -> list[str]:
    settings = ["--epochs", "4", "--batch-size", "32"]
    return ["compress", "m.onnx", "-o", target, "--data", "d.npz", "--labels", "y", *settings, *more]


def test_killed_at_every_stage_in_turn(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for stage, done in (("clustering", 1), ("training", 7), ("training", STEPS), ("verification", 20)):
        arguments = [stage, str(done), *command("o.onnx", "--work-dir", "w")]
        killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False, timeout=300)
        assert killed.returncode == -9
        assert not (folder / "o.onnx").exists()
    assert cli.main(command("o.onnx", "--work-dir", "w")) == 0
    assert "Note: Continued: what an earlier call had done was read from 'w' (2 layers, 1 training).\n" in (
        capsys.readouterr().out
    )
    assert cli.main(command("p.onnx")) == 0
    assert (folder / "o.onnx").read_bytes() == (folder / "p.onnx").read_bytes()
    assert not list(folder.rglob(".unfinished-*"))


def test_a_file_of_data_that_changed_is_noticed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command("o.onnx", "--work-dir", "w")) == 0
    save_data(folder / "d.npz", x=DATA["x"], y=np.roll(DATA["y"], 1))
    assert cli.main(command("o.onnx", "--work-dir", "w")) == 1
    assert "onnxpq: error: The work folder 'w' holds another run: data.sha256 was " in capsys.readouterr().err
    assert cli.main(command("o.onnx", "--work-dir", "w", "--restart")) == 0


def test_ctrl_c_says_how_to_go_on(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(calibration, "collect", stop)
    assert cli.main(command("o.onnx", "--work-dir", "w")) == 130
    assert capsys.readouterr().err == (
        "onnxpq: interrupted; nothing was written. The same command continues with what is in 'w'.\n"
    )

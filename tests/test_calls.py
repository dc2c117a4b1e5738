"""Models whose data are whole calls: an independent script finds what the report says."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import streams
from tiny_models import build, initializer

import onnxpq
from onnxpq.cli import main
from onnxpq.config import Config, PQConfig, TrainingConfig
from onnxpq.errors import DataError

SAME_FIGURE = 1e-4
"""Relative difference of figures from sums of float32 in another order."""

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """The report of the command line on a model; the compressed one is `out.onnx`."""

    def compress(model: onnx.ModelProto, *extra: object) -> dict[str, Any]:
        onnx.save(model, tmp_path / "m.onnx")
        paths = [str(tmp_path / name) for name in ("m.onnx", "out.onnx", "report.json")]
        arguments = ["compress", paths[0], "-o", paths[1], "--report", paths[2], *map(str, extra)]
        assert main(arguments) == 0 or "--force" in extra
        return dict(json.loads((tmp_path / "report.json").read_text()))

    return compress


def outputs_of(folder: Path, calls: Sequence[streams.Call]) -> list[list[dict[str, np.ndarray]]]:
    """What original and compressed model give in each call, by name."""
    found = []
    for session in (onnxruntime.InferenceSession(folder / "m.onnx"), onnxpq.session(folder / "out.onnx")):
        names = [value.name for value in session.get_outputs()]
        given = {value.name for value in session.get_inputs()}
        runs = (session.run(None, {key: call[key] for key in call if key in given}) for call in calls)
        found.append([dict(zip(names, values, strict=True)) for values in runs])
    return found


def check(report: dict[str, Any], folder: Path, calls: Sequence[streams.Call]) -> None:
    """All outputs of all calls are compared whole."""
    before, after = outputs_of(folder, calls)
    assert report["verification"]["samples"] == len(calls)
    assert report["verification"]["of_calls"]
    assert len(report["verification"]["outputs"]) == len(before[0])
    for output in report["verification"]["outputs"]:
        name = output["name"]
        pairs = [(a[name].astype(np.float64), b[name].astype(np.float64)) for a, b in zip(before, after, strict=True)]
        squares = sum(np.square(a - b).sum() for a, b in pairs), sum(np.square(a).sum() for a, _ in pairs)
        assert output["relative_error"] == pytest.approx((squares[0] / squares[1]) ** 0.5, rel=SAME_FIGURE), name
        assert output["max_error"] == pytest.approx(
            max(np.abs(a - b).max(initial=0) for a, b in pairs), rel=SAME_FIGURE
        )
        rows = np.concatenate([(a.argmax(-1) == b.argmax(-1)).ravel() for a, b in pairs])
        assert output["agreement"] == pytest.approx(rows.mean(), abs=1 / len(rows))
        assert output["is_whole"]


def test_a_stream_is_trained_on_recorded_calls(run: Run, tmp_path: Path) -> None:
    train = streams.write(tmp_path / "train", streams.stream_calls(80, seed=1))
    calls = list(streams.stream_calls(40, seed=2))
    test = streams.write(tmp_path / "test", iter(calls))
    report = run(
        streams.stream(), "--batch-axis", "none", "--data", train, "--test", test, "--steps", 40, "--batch-size", 16
    )
    check(report, tmp_path, calls)
    training = report["training"]
    assert (training["of_calls"], training["samples"] + training["validation_samples"]) == (True, 80)
    assert (training["batch"], report["layer_wise"]) == (16, [])
    assert training["best"] < 0.8 * training["quantized"]
    # The state of the next call is not what the model is for.
    assert report["verification"]["floor"]["output"] == "y"


def test_a_state_begins_at_zeros_and_lies_along_its_own_axis(run: Run, tmp_path: Path) -> None:
    frames = np.concatenate([call["x"] for call in streams.stream_calls(60, seed=1)])
    np.savez(tmp_path / "x.npz", x=frames)
    report = run(streams.stream(), "--data", tmp_path / "x.npz", "--steps", 10)
    message = "The training data lacks the states 'state' float32 [2, 1, 32]: they begin at zeros, in every call."
    assert [note for note in report["notes"] if note.startswith(message)]
    assert (report["training"]["of_calls"], report["verification"]["samples"]) == (False, 6)
    calls = list(streams.stream_calls(60, seed=1))
    states = np.concatenate([call["state"] for call in calls], 1)
    np.savez(tmp_path / "both.npz", x=frames, state=states)
    report = run(streams.stream(batch="N"), "--data", tmp_path / "both.npz", "--steps", 10)
    assert (report["training"]["batch"], report["layer_wise"]) == (8, [])
    assert not [note for note in report["notes"] if "zeros" in note]


@pytest.mark.parametrize("make", [streams.stream, streams.decoder, lambda: streams.tagger(steps_first=True)])
def test_plain_quantization_needs_no_data(run: Run, make: Callable[[], onnx.ModelProto]) -> None:
    report = run(make(), "--sub-vector", 1)
    assert report["verification"]["data"] == "random inputs, as no data was given"
    assert report["verification"]["outputs"][0]["relative_error"] < 0.2


def test_a_decoder_with_caches_of_many_lengths(run: Run, tmp_path: Path) -> None:
    calls = list(streams.decoder_calls(40, seed=2))
    assert len({call["past_key"].shape for call in calls}) > 8
    train = streams.write(tmp_path / "train", streams.decoder_calls(60, seed=1))
    test = streams.write(tmp_path / "test", iter(calls))
    model = streams.decoder()
    report = run(model, "--data", train, "--test", test, "--steps", 40, "--tables", "--cache-dir", tmp_path / "cache")
    check(report, tmp_path, calls)
    assert report["training"]["best"] < 0.8 * report["training"]["quantized"]
    ways = {layer["weight"]: layer["training"] for layer in report["layers"]}
    assert ways == {"E": "not trained: its rows are looked up"} | dict.fromkeys(ways.keys() - {"E"}, "end to end")
    again = run(model, "--data", train, "--test", test, "--steps", 40, "--tables", "--cache-dir", tmp_path / "cache")
    assert again["training"] == report["training"]


def test_steps_are_no_samples(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.stack(streams.sequences(np.full(60, 12), seed=1), 1)  # [T, N, F]
    np.savez(tmp_path / "x.npz", x=x)
    model = streams.tagger(steps_first=True)
    with pytest.raises(AssertionError):
        run(model, "--data", tmp_path / "x.npz")
    message = capsys.readouterr().err
    assert (
        "Output 'y' is not of single samples: what it gives for a sample depends on the others of the batch" in message
    )
    assert "Name the axis of the samples with --batch-axis (1 for [T, N, C]), or give whole calls: a folder" in message
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("steps", ["T", 12])
def test_steps_first_with_its_axis(run: Run, tmp_path: Path, steps: int | str) -> None:
    model = streams.tagger(steps_first=True, steps=steps)
    paths = []
    for name, count, seed in (("train", 60, 1), ("test", 40, 2)):
        x = np.stack(streams.sequences(np.full(count, 12), seed), 1)
        (scores,) = onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})
        np.savez(tmp_path / f"{name}.npz", x=x, y=scores.argmax(-1))
        paths.append(tmp_path / f"{name}.npz")
    report = run(model, "--batch-axis", 1, "--data", paths[0], "--test", paths[1], "--labels", "y", "--steps", 40)
    assert (report["verification"]["samples"], report["verification"]["of_calls"]) == (40, False)
    assert report["training"]["best"] < report["training"]["quantized"]
    assert report["training"]["prefix"] > 0
    # Labels are those of all steps, and a call of all samples gives what the report says.
    with np.load(paths[1]) as archive:
        before, after = outputs_of(tmp_path, [{"x": archive["x"]}])
        right = (after[0]["y"].argmax(-1) == archive["y"]).mean()
    (output,) = report["verification"]["outputs"]
    error = np.linalg.norm(before[0]["y"] - after[0]["y"]) / np.linalg.norm(before[0]["y"])
    assert output["relative_error"] == pytest.approx(error, rel=SAME_FIGURE)
    assert report["verification"]["accuracy"]["original"]["value"] == 1
    assert report["verification"]["accuracy"]["compressed"]["value"] == pytest.approx(right, abs=1e-6)


def test_sequences_of_many_lengths_with_labels(run: Run, tmp_path: Path) -> None:
    model = streams.tagger(steps_first=False)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    lengths = np.random.default_rng(0).integers(2, 20, 60)
    calls = [{"x": x[None]} for x in streams.sequences(lengths, seed=1)]
    calls = [{**call, "y": session.run(None, call)[0].argmax(-1)} for call in calls]
    train = streams.write(tmp_path / "train", iter(calls[:40]))
    test = streams.write(tmp_path / "test", iter(calls[40:]))
    # So few calls decide that the target may be missed on the others; what is told of them is the same.
    target = ("--epochs", 0, "--max-drop", "20%", "--force")
    report = run(model, "--data", train, "--test", test, "--labels", "y", *target)
    check(report, tmp_path, calls[40:])
    _, after = outputs_of(tmp_path, calls[40:])
    answers = [found["y"].argmax(-1) == call["y"] for found, call in zip(after, calls[40:], strict=True)]
    accuracy = report["verification"]["accuracy"]
    assert accuracy["original"]["value"] == 1
    assert accuracy["compressed"]["value"] == pytest.approx(np.concatenate(answers, 1).mean(), abs=1e-6)
    # The target weighs calls alike, as it does samples.
    assert report["target"]["metric"] == "accuracy"
    assert report["target"]["proof"]["value"] == pytest.approx(
        1 - np.mean([found.mean() for found in answers]), abs=1e-6
    )


def test_samples_to_train_on_and_calls_to_prove(run: Run, tmp_path: Path) -> None:
    model = streams.tagger(steps_first=True)
    np.savez(tmp_path / "x.npz", x=np.stack(streams.sequences(np.full(50, 9), seed=1), 1))
    calls = [{"x": x[:, None]} for x in streams.sequences(np.array([4, 9, 13]), seed=2)]
    test = streams.write(tmp_path / "test", iter(calls))
    report = run(
        model, "--batch-axis", 1, "--data", tmp_path / "x.npz", "--test", test, "--epochs", 0, "--max-drop", "50%"
    )
    check(report, tmp_path, calls)
    assert report["target"]["decided_on"] == "5 validation samples, not learned from"
    with pytest.raises(AssertionError):  # steps are found out in what is trained on, too
        run(model, "--data", tmp_path / "x.npz", "--test", test)


def test_arrays_of_objects_from_python() -> None:
    model = streams.tagger(steps_first=False)
    x = streams.sequences(np.random.default_rng(0).integers(2, 20, 30), seed=1)
    y = [np.zeros(len(rows), np.int64) for rows in x]
    config = Config(pq=PQConfig(4), training=TrainingConfig(steps=5))
    report = onnxpq.compress(model, {"x": x, "y": y}, labels="y", config=config).report
    assert (report.verification.samples, report.verification.of_calls) == (3, True)
    assert "Fine-tuned on 24 calls by 0.3 cross-entropy + 0.7 distillation" in report.to_text()
    assert "Verified on 3 calls: 10 % of the data" in report.to_text()
    y[3] = y[3][1:]
    message = (
        r"Labels of shape \[\d+\] do not fit a call whose output has shape \[1, \d+, 12\]: \[1, \d+\] is expected."
    )
    with pytest.raises(DataError, match=message):
        onnxpq.compress(model, {"x": x, "y": y}, labels="y", config=config)


def test_a_batch_that_fits_no_other_is_a_call(tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A batch of 8 from which its own mean is subtracted."""
    helper = onnx.helper
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], name="mean", axes=[0]),
        helper.make_node("Sub", ["x", "m"], ["c"], name="centre"),
        helper.make_node("MatMul", ["c", "W"], ["y"], name="fc"),
    ]
    model = build(nodes, {"x": [8, 64]}, {"y": [8, 64]}, [initializer("W", 64, 64, seed=1)])
    x = np.random.default_rng(0).standard_normal((160, 64)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    with pytest.raises(AssertionError):
        run(model, "--data", tmp_path / "x.npz")
    assert "is not of single samples" in capsys.readouterr().err
    calls = [{"x": rows} for rows in x.reshape(20, 8, 64)]
    report = run(model, "--data", streams.write(tmp_path / "calls", iter(calls)), "--steps", 10)
    assert (report["training"]["of_calls"], report["layer_wise"]) == (True, [])


def test_the_examples_in_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    lengths, record = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (commands,) = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("onnxpq.training.schedule.FEW_STEPS", 4)
    monkeypatch.setattr("onnxpq.training.schedule.MANY_STEPS", 4)
    onnx.save(streams.stream(), "stream.onnx")
    onnx.save(streams.tagger(steps_first=False), "tagger.onnx")
    onnx.save(streams.tagger(steps_first=True), "tagger_steps_first.onnx")
    np.save("frames.npy", streams.sequences(np.array([12]), seed=0)[0])
    np.savez("steps_first.npz", x=np.stack(streams.sequences(np.full(40, 9), seed=1), 1))
    for code in (lengths, record):
        variables: dict[str, Any] = {}
        exec(code, variables)  # noqa: S102 -- our own document
        if code is lengths:
            assert variables["result"].report.training.of_calls
    recorded = [dict(np.load(path)) for path in sorted(Path("calls").iterdir())]
    for call, expected in zip(recorded, streams.stream_calls(12, seed=0), strict=True):
        np.testing.assert_array_equal(call["state"], expected["state"])
    for line in commands.splitlines():
        assert main(line.split()[1:]) == 0

"""A reader with time-major outputs is compressed, and an independent script finds what the report says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import time_major
import whole_outputs

import onnxpq
from onnxpq.cli import main

SAME_FIGURE = 1e-4
"""Relative difference of figures from sums of float32 in another order."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader with an open batch and with a batch of one; pictures to train on and to test on, with their steps."""
    found = tmp_path_factory.mktemp("reader")
    time_major.export(found / "open.onnx", batch=None)
    time_major.export(found / "one.onnx", batch=1)
    for name, count, seed in (("train", 400, 2), ("test", 150, 3)):
        lines = time_major.lines(count, seed=seed)
        np.savez(found / f"{name}.npz", x=lines.x, steps=lines.steps)
    return found


def compressed(folder: Path, name: str, *extra: str) -> dict[str, Any]:
    """The report of the command line."""
    given = [str(folder / f"{kind}.npz") for kind in ("train", "test")]
    model, out, report = (str(folder / f"{name}.{end}") for end in ("onnx", "out.onnx", "json"))
    arguments = ["compress", model, "-o", out, "--data", given[0], "--test", given[1], "--report", report, *extra]
    assert main(arguments) == 0
    return dict(json.loads(Path(report).read_text()))


@pytest.mark.parametrize("name", ["open", "one"])
def test_the_report_is_what_an_independent_script_finds(folder: Path, name: str) -> None:
    report = compressed(folder, name, "--steps", "60", "--batch-size", "32", "--labels", "steps")
    with np.load(folder / "test.npz") as archive:
        x, steps = archive["x"], archive["steps"]
    truth = whole_outputs.compare(folder / f"{name}.onnx", folder / f"{name}.out.onnx", x)
    (output,) = report["verification"]["outputs"]
    assert output["relative_error"] == pytest.approx(truth["relative_error"], rel=SAME_FIGURE)
    assert output["max_error"] == pytest.approx(truth["max_error"], rel=SAME_FIGURE)
    assert output["agreement"] == pytest.approx(truth["agreement"], abs=1 / steps.size)
    assert 0.9 < truth["agreement"] < 1
    # Layers after the recurrent one are trained end to end, in batches of many, on what comes before, computed once.
    training = report["training"]
    assert (training["batch"], report["layer_wise"]) == (32, [])
    assert training["prefix"] > 0
    assert training["best"] < training["quantized"]
    # It still reads.
    texts = time_major.lines(150, seed=3).texts
    right = np.mean([found == text for found, text in zip(truth["texts"], texts, strict=True)])
    assert right >= 0.8
    # Accuracy is that of all steps.
    session = onnxpq.session(folder / f"{name}.out.onnx")
    every = np.concatenate([session.run(None, {"x": row[None]})[0] for row in x], 1).argmax(-1).T
    assert report["verification"]["accuracy"]["compressed"]["value"] == pytest.approx(
        (every == steps).mean(), abs=1 / steps.size
    )


def test_a_drop_is_that_of_all_steps(folder: Path) -> None:
    report = compressed(folder, "one", "--epochs", "0", "--max-drop", "2%")
    with np.load(folder / "test.npz") as archive:
        truth = whole_outputs.compare(folder / "one.onnx", folder / "one.out.onnx", archive["x"])
    assert report["target"]["metric"] == "agreement"
    assert report["target"]["proof"]["value"] == pytest.approx(1 - truth["agreement"], abs=1e-3)
    assert report["target"]["proof"]["value"] <= 0.02

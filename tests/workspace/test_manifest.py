"""What a run was made from, and what tells it from another."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from tiny_models import mlp, samples, save_data, save_model

from onnxpq.config.settings import Config, PQConfig
from onnxpq.data.datasets import Dataset
from onnxpq.graph import files
from onnxpq.support import fingerprint
from onnxpq.workspace import manifest


def described(**changes: Any) -> dict[str, Any]:
    given = {"model": {"sha256": "a" * 64}, "data": {"sha256": "b" * 64, "file": "d.npz"}, "test": None, "labels": None}
    return manifest.describe(**(given | {"config": Config(), "device": "CPU"} | changes))


def test_it_is_plain_values_and_names_versions_and_seed() -> None:
    found = described()
    text = json.loads(json.dumps(found))
    assert text["settings"]["seed"] == 0
    assert set(manifest.PACKAGES) < set(text["versions"])
    assert all(text["versions"].values())
    assert text["machine"]["torch"] == "CPU"
    assert manifest.changes(text, found) == []
    assert manifest.identity(text) == manifest.identity(found)


@pytest.mark.parametrize(
    ("changes", "phrase"),
    [
        ({"config": Config(seed=3)}, "settings.seed was 0 and is 3 now"),
        (
            {"config": Config(pq=PQConfig(codebooks="layer"))},
            'settings.pq.codebooks was "auto" and is "layer" now',
        ),
        ({"config": Config(exclude=("a",))}, 'settings.exclude was [] and is ["a"] now'),
        ({"labels": "y"}, 'labels was null and is "y" now'),
        ({"model": {"sha256": "c" * 64}}, "model.sha256 was aaaaaaaaaaaa and is cccccccccccc now"),
        ({"data": None}, "data.sha256 was bbbbbbbbbbbb and is null now"),
        ({"test": {"sha256": "d" * 64}}, "test.sha256 was null and is dddddddddddd now"),
    ],
)
def test_a_change_is_told_from_what_to_what(changes: dict[str, Any], phrase: str) -> None:
    assert manifest.changes(described(), described(**changes)) == [phrase]
    assert manifest.identity(described()) != manifest.identity(described(**changes))


def test_versions_count_and_a_moved_file_does_not() -> None:
    other = described(data={"sha256": "b" * 64, "file": "elsewhere/d.npz"})
    assert manifest.changes(described(), other) == []
    other["versions"]["torch"] = "1.0"
    (phrase,) = manifest.changes(described(), other)
    assert phrase.startswith("versions.torch was ")
    assert phrase.endswith('and is "1.0" now')


def test_another_machine_is_remarked_and_no_other_run() -> None:
    here, there = described(), described(device="GPU")
    assert manifest.changes(here, there) == []
    assert manifest.identity(here) == manifest.identity(there)
    assert manifest.remarks(here, described()) == []
    (sentence,) = manifest.remarks(here, there)
    assert "may differ in the last digits" in sentence


def test_a_model_in_a_file_has_that_file_s_hash(tmp_path: Path) -> None:
    path = save_model(tmp_path / "m.onnx", mlp())
    found = manifest.of_model(path, files.load(path))
    assert found["sha256"] == fingerprint.of_file(path)
    assert found["bytes"] == path.stat().st_size


def test_external_data_count(tmp_path: Path) -> None:
    hashes = []
    for seed in (0, 1):
        onnx.save_model(mlp(seed=seed), tmp_path / "m.onnx", save_as_external_data=True, location="w", size_threshold=0)
        found = manifest.of_model(tmp_path / "m.onnx", files.load(tmp_path / "m.onnx"))
        hashes.append(found)
        os.remove(tmp_path / "w")
    assert hashes[0]["sha256"] == hashes[1]["sha256"], "the weights lie in the other file"
    assert hashes[0]["external data"].keys() == {"w"}
    assert hashes[0]["external data"] != hashes[1]["external data"]


def test_a_model_in_memory(tmp_path: Path) -> None:
    found = [manifest.of_model(mlp(seed=seed), files.load(mlp(seed=seed))) for seed in (0, 0, 1)]
    assert found[0] == found[1] != found[2]
    assert found[0].keys() == {"sha256"}


def test_data(tmp_path: Path) -> None:
    path = save_data(tmp_path / "d.npz", x=samples())
    assert manifest.of_data(path)["sha256"] == fingerprint.of_file(path)
    shutil.copy(path, tmp_path / "e.npz")
    assert manifest.of_data(tmp_path / "e.npz")["sha256"] == fingerprint.of_file(path)
    sets = [
        Dataset({"x": samples()}),
        Dataset({"x": samples(seed=1)}),
        Dataset({"x": samples()}, np.zeros(60, np.int64)),
    ]
    assert len({manifest.of_data({}, dataset)["sha256"] for dataset in sets}) == 3
    assert manifest.of_data({}, sets[0]) == manifest.of_data([], Dataset({"x": samples()}))


def test_libraries_count_by_their_content(tmp_path: Path) -> None:
    (tmp_path / "a.so").write_bytes(b"1")
    found = described(libraries=[tmp_path / "a.so"])
    (tmp_path / "a.so").write_bytes(b"2")
    (phrase,) = manifest.changes(found, described(libraries=[tmp_path / "a.so"]))
    assert phrase.startswith("libraries.a.so was ")

"""The figures of `benchmarks/common/tasks.py` on cases that can be worked out by hand."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.common import tasks


def test_edit_distance_counts_insertions_deletions_and_substitutions():
    assert tasks.edit_distance("kitten", "sitting") == 3
    assert tasks.edit_distance("", "abc") == tasks.edit_distance("abc", "") == 3
    assert tasks.edit_distance("same", "same") == 0


def test_greedy_text_drops_repetitions_and_then_blanks():
    columns = [0, 1, 1, 0, 1, 2, 2, 3]
    scores = np.eye(4, dtype=np.float32)[columns]
    assert tasks.greedy_text(scores, ["", "a", "b", " "]) == "aab "


def recognizer(tmp_path):
    """A model with the two characters of its alphabet, x and y, that gives what it is given."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", "T", 4]) for name in ("x", "scores")]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["scores"])], "g", values[:1], values[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, {"character": "x\ny"})
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_lines_are_read_with_the_alphabet_of_the_model(tmp_path):
    model = recognizer(tmp_path)
    assert tasks.characters(model) == ["", "x", "y", " "]
    scores = np.eye(4, dtype=np.float32)[[[1, 0, 1], [1, 3, 2]]]
    data = {"text": np.array(["xx", "x yy"])}
    assert tasks.lines_of_text(data, None, {"": scores}, model) == {
        "characters": pytest.approx(1 - 1 / 6),
        "exact": 0.5,
    }


def test_a_sentence_model_that_gives_the_same_directions_has_the_same_correlation(tmp_path):
    rng = np.random.default_rng(0)
    documents = rng.normal(size=(5, 4)).astype(np.float32)
    unit = documents / np.linalg.norm(documents, axis=1, keepdims=True)
    labels = np.array([0, 1] * 5)
    reviews = (labels[:, None] * 2 - 1 + rng.normal(size=(10, 4)) / 10).astype(np.float32)
    data = {"similarity": unit @ unit.T, "train_label": labels, "test_label": labels}
    original = {"train": reviews, "test": reviews, "documents": documents}
    found = tasks.sentences(data, original, {"test": -reviews, "documents": 3 * documents}, tmp_path)
    assert found == {"reviews": 0.0, "lee": pytest.approx(1)}
    refitted = {**original, "train": -reviews, "test": -reviews}
    assert tasks.sentences(data, original, refitted, tmp_path)["reviews_refitted"] == 1.0


def test_measure_compares_with_what_the_original_gives(tmp_path, monkeypatch):
    model = recognizer(tmp_path)
    monkeypatch.setitem(tasks.TASKS, "lines", tasks.Task(tasks.lines_of_text, "scores", "characters", batch=2))
    scores = np.eye(4, dtype=np.float32)[[[1, 2]] * 3]
    np.savez(tmp_path / "test.npz", x=scores, text=np.array(["xy"] * 3))
    assert tasks.measure("lines", tmp_path, model) == {"relative_error": 0.0, "characters": 1.0, "exact": 1.0}
    halved = onnx.load(model)
    halved.graph.node[0].CopyFrom(helper.make_node("Mul", ["x", "half"], ["scores"]))
    halved.graph.initializer.append(helper.make_tensor("half", TensorProto.FLOAT, [], [0.5]))
    onnx.save(halved, tmp_path / "halved.onnx")
    assert tasks.measure("lines", tmp_path, tmp_path / "halved.onnx")["relative_error"] == pytest.approx(0.5)

"""The networks of the evaluation and their data."""

import numpy as np
import pytest
import torch
from onnx import numpy_helper

from benchmarks.paper import tasks


def test_task_knows_the_layers(task):
    assert [(layer.weight, layer.out_features, layer.in_features) for layer in task.layers] == [("w0", 40, 32)]
    assert [layer.weight for layer in task.chain] == ["w0", "w1"]
    assert (task.feature, task.output, task.input) == ("x", "y", "x")
    assert task.weight_bytes == 4 * 40 * 32
    assert len(task.rows[0]) + len(task.rows[1]) == len(task.train[0])


def test_matrix_is_out_by_in(task):
    stored = next(numpy_helper.to_array(t) for t in task.proto().graph.initializer if t.name == "w0")
    expected = stored.T if task.layers[0].weight_is_in_out else stored
    np.testing.assert_array_equal(task.matrix(task.layers[0]).numpy(), expected)


def test_head_gives_the_files_scores(task):
    features, labels = tasks.batch(task, np.array([3, 1]))
    with torch.no_grad():
        scores = task.head({task.feature: features})[task.output]
    torch.testing.assert_close(scores, torch.from_numpy(task.teacher[[1, 3]]), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(labels.numpy(), task.train[1][[1, 3]])


def test_error_counts_wrong_images(task):
    assert tasks.error_of(task.path.read_bytes(), task) == 0
    model = task.proto()
    weight = next(t for t in model.graph.initializer if t.name == "w1")
    bias = next(t for t in model.graph.initializer if t.name == "b1")
    weight.CopyFrom(numpy_helper.from_array(np.zeros(tuple(weight.dims), np.float32), "w1"))
    bias.CopyFrom(numpy_helper.from_array(np.array([0, 0, 1, 0, 0], np.float32), "b1"))
    wrong = np.count_nonzero(task.test[1] != 2)
    assert tasks.error_of(model.SerializeToString(), task) == 100 * wrong / len(task.test[1])


def test_a_network_that_is_not_there_says_how_to_make_it(monkeypatch, tmp_path):
    monkeypatch.setattr(tasks, "MODELS", tmp_path)
    with pytest.raises(SystemExit, match=r"models/mnist_mlp\.onnx is not there\..*make_models mnist_mlp"):
        tasks.load("mnist_mlp")

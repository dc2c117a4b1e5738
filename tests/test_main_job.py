"""The main job on MNIST at the default settings, as `benchmarks.accuracy.main_job` measures it: minutes, a download."""

import pytest

from benchmarks.accuracy import main_job

LIMITS = {"mnist_lenet": (10, 30, 0.15), "mnist_mlp": (30, 30, 0.30)}
"""By model: how many times smaller the file and the layers must be, and the largest rise of the error in points."""


@pytest.mark.slow
@pytest.mark.parametrize("labels", [True, False], ids=["labels", "no labels"])
@pytest.mark.parametrize("model", LIMITS)
def test_main_job(model: str, labels: bool) -> None:
    found = main_job.run(model, labels=labels, data=main_job.data_of(model))
    file_ratio, layer_ratio, rise = LIMITS[model]
    assert found["file_ratio"] >= file_ratio
    assert found["layer_ratio"] >= layer_ratio
    before, after = found["errors"]
    assert after - before <= rise

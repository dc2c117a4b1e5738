"""Histograms of the weights."""

import numpy as np
import torch

from benchmarks.paper import histograms, tasks, terms
from benchmarks.paper.store import Store


def test_histogram_by_hand():
    # Rows of mean size 2 and 1: u is 0.5, -1.5, 1, and -9, 0.5, 0.
    matrix = torch.tensor([[1.0, -3.0, 2.0], [-2.5, 0.5, 0.0]])
    counts = np.array(histograms.histogram(matrix))
    edges = histograms.EDGES[:-1][counts > 0].round(3).tolist()
    assert counts.sum() == 6
    assert edges == [-2.5, -1.5, 0.0, 0.5, 1.0]
    assert np.array(histograms.histogram(100 * matrix)).tolist() == counts.tolist()


def test_every_term_is_stored_once(task, tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "load", lambda *_, **__: task)
    store = Store(tmp_path / "rows")
    histograms.run("small", store, steps=4)
    rows = store.rows(histograms.NAME)
    assert {key.method for key in rows} == {f"small/{term}" for term in terms.ALPHA}
    for row in rows.values():
        assert list(row["counts"]) == ["0", "0.5", "1"]
        assert all(sum(counts) == 40 * 32 for counts in row["counts"].values())
    monkeypatch.setattr(histograms, "counts", None)
    histograms.run("small", store, steps=4)

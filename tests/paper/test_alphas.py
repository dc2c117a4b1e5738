"""The weights of the terms."""

import pytest

from benchmarks.paper import alphas, tasks, terms
from benchmarks.paper.store import Store


@pytest.mark.parametrize("task", ["gemm"], indirect=True)
def test_every_term_and_weight_is_stored_once(task, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tasks, "load", lambda *_, **__: task)
    monkeypatch.setattr(alphas, "FACTOR", 16.0)
    store = Store(tmp_path / "rows")
    alphas.run(store, steps=2)
    rows = store.rows(alphas.NAME)
    assert len(rows) == 1 + (len(terms.ALPHA) - 1) * len(alphas.TRIED)
    assert all(row["loss"] > 0 for row in rows.values())
    assert "l2 alpha 100: held-out loss" in capsys.readouterr().out
    monkeypatch.setattr(alphas, "loss", None)
    alphas.run(store, steps=2)

"""The learning rates of the comparators."""

import pytest

from benchmarks.paper import methods, rates, tasks
from benchmarks.paper.store import Store

pytestmark = pytest.mark.rounding


@pytest.mark.parametrize("task", ["gemm"], indirect=True)
def test_every_kind_and_rate_is_stored_once(task, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tasks, "load", lambda *_, **__: task)
    monkeypatch.setattr(rates, "FACTOR", 8.0)
    store = Store(tmp_path / "rows")
    rates.run(store, steps=2)
    rows = store.rows(rates.NAME)
    assert len(rows) == len(methods.STARTS) * len(rates.TRIED)
    assert all(row["loss"] > 0 for row in rows.values())
    assert "hashed rate 0.01: held-out loss" in capsys.readouterr().out
    monkeypatch.setattr(rates, "loss", None)
    rates.run(store, steps=2)


@pytest.mark.parametrize("task", ["gemm"], indirect=True)
def test_training_lowers_the_loss_of_every_kind(task, monkeypatch):
    monkeypatch.setattr(rates, "FACTOR", 8.0)
    for kind in methods.STARTS:
        assert rates.loss(task, kind, 1e-2, 60) < rates.loss(task, kind, 1e-2, 0), kind

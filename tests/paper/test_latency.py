"""Timing: every method's file is made without training and called; no figure is judged."""

from benchmarks.paper import latency, tasks
from benchmarks.paper.store import Store


def test_each_method_is_timed_and_stored(task, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "ROUND_SECONDS", 1e-5)
    monkeypatch.setattr(latency, "ROUNDS", 1)
    monkeypatch.setattr(tasks, "load", lambda *_, **__: task)
    store = Store(tmp_path / "rows")
    latency.run(["mnist_mlp"], store)
    rows = store.rows(latency.NAME)
    # onnxpq has no layout of 32x for so small a layer.
    assert {key.method for key in rows} >= {f"mnist_mlp/{name}" for name in ("original", "hashed", "pq", "int8")}
    assert all(row["microseconds"] > 0 for row in rows.values())

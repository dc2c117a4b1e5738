"""Which rows are run, what is measured, and that a second run goes on."""

import pytest

from benchmarks.paper import running, tasks
from benchmarks.paper.methods import METHODS
from benchmarks.paper.store import Key, Store
from benchmarks.paper.tuning import Effort

BRIEF = Effort(tuned=1, scratch=1, ours=1)


def test_every_method_is_run_on_every_network_with_its_seeds_and_factors():
    keys = running.keys()
    assert len(keys) == len(set(keys))
    count = sum(len(list(method.runs())) for method in METHODS.values())
    assert len(keys) == len(tasks.NETWORKS) * count
    for name in ("onnxpq", "codebook-pq", "pq", "hashed"):
        assert {key.seed for key in keys if key.method == name} == {0, 1, 2}
    trained = [METHODS[key.method].trained for key in keys]
    assert trained == sorted(trained), "what trains nothing comes first"


@pytest.mark.parametrize(
    ("pattern", "count"), [("mnist_mlp/pq/64/1", 1), ("*/hashed/64", 12), ("mnist_*/onnxpq", 18), ("mnist_mlp/sign", 1)]
)
def test_patterns_choose_rows(pattern, count):
    assert len(running.keys([pattern])) == count


def test_a_pattern_without_rows_is_an_error():
    with pytest.raises(SystemExit, match="No row matches nothing; a row is NETWORK/METHOD/FACTOR/SEED"):
        running.keys(["nothing"])


def test_a_smoke_run_has_a_row_per_network_and_method():
    keys = running.keys(quick=True)
    assert len(keys) == len(tasks.NETWORKS) * len(METHODS)


def test_row_of_a_measurement(task):
    row = running.measure(task, Key(task.name, "kmeans", 7.5, 0), BRIEF)
    assert row["settings"] == "K=16"
    # 4 bits a weight and 16 numbers of 16 bits, and the constants of the nodes.
    assert 640 + 32 <= row["layer_bytes"] <= 640 + 32 + 200
    assert row["layer_factor"] == round(4 * 40 * 32 / row["layer_bytes"], 2)
    assert row["file_factor"] == round(task.path.stat().st_size / row["file_bytes"], 2)
    assert row["formula_factor"] == pytest.approx(32 * 1280 / (4 * 1280 + 32 * 16), abs=0.01)
    assert 0 <= row["error"] < 50
    assert {"cpu_seconds", "wall_seconds", "commit", "torch", "threads"} <= row.keys()


def test_what_cannot_be_is_stored_with_its_reason(task):
    row = running.measure(task, Key(task.name, "kmeans", 64.0, 0), BRIEF)
    assert row["error"] is None
    assert row["reason"] == "no setting of the method is so small"


def test_a_second_run_measures_nothing_again(task, tmp_path, monkeypatch):
    loads = []
    monkeypatch.setattr(tasks, "load", lambda name, **_: loads.append(name) or task)
    store = Store(tmp_path / "rows")
    keys = [Key("small", "sign", 32.0, 0), Key("small", "original", 1.0, 0)]
    told = []
    running.run(store, keys[:1], BRIEF, quick=False)
    running.run(store, keys, BRIEF, quick=False, progress=lambda *step: told.append(step))
    assert list(store.rows("small")) == sorted(keys)
    assert told == [(0, 2, keys[0]), (1, 2, keys[1]), (2, 2, None)]
    running.run(store, keys, BRIEF, quick=False)
    assert loads == ["small", "small"]

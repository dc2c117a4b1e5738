"""Tables and plots from rows."""

import pytest

from benchmarks.paper import tables
from benchmarks.paper.store import Store


def row(method: str, factor: float, error: float | None, seed: int = 0, **more: object) -> dict[str, object]:
    made = {"layer_bytes": 1000, "file_bytes": 1500, "layer_factor": factor, "file_factor": factor / 2}
    made |= {"formula_factor": None, "settings": "d=8 K=16", "cpu_seconds": 10.0 + seed, "wall_seconds": 20.0}
    if error is None:
        made = {"reason": "no setting of the method is so small"}
    return {"network": "mnist_mlp", "method": method, "factor": factor, "seed": seed, "error": error} | made | more


ROWS = [
    row("original", 1.0, 1.37, layer_bytes=3000, file_bytes=3500),
    row("pq", 8.0, 2.0, formula_factor=8.04),
    row("pq", 8.0, 3.0, seed=1, formula_factor=8.04),
    row("onnxpq", 8.0, 1.5),
    row("onnxpq", 16.0, 1.75),
    row("int8", 4.0, 1.4),
    row("kmeans", 16.0, None),
]


def test_spread():
    assert tables.spread(ROWS[1:3]) == "2.50 [2.00, 3.00]"
    assert tables.spread(ROWS[3:4]) == "1.50"
    assert tables.spread(ROWS[6:]) == "-"


def test_two_runs_are_compared_row_by_row(tmp_path):
    stored, again = Store(tmp_path / "stored"), Store(tmp_path / "again")
    for entry in ROWS:
        stored.add(entry)
    for entry in (row("pq", 8.0, 2.0), row("onnxpq", 8.0, 1.58), row("onnxpq", 64.0, 9.0), row("kmeans", 16.0, None)):
        again.add(entry)
    assert tables.compared(stored, again).splitlines()[2:] == [
        "| mnist_mlp onnxpq 8x seed 0 | 1.50 | 1.58 | +0.08 | 1.50 |",
        "| mnist_mlp pq 8x seed 0 | 2.00 | 2.00 | +0.00 | 2.50 [2.00, 3.00] |",
        "",
        "1 of 2 rows are the same; the largest difference is 0.08.",
    ]
    assert tables.compared(stored, Store(tmp_path / "empty")) == "No row was measured again."


def test_summary_has_both_factors_and_a_line_per_method():
    lines = tables.summary(ROWS).splitlines()
    # 500 bytes of other things: 3500 / (500 + 3000 / f).
    assert lines[0] == "| FC layers (whole file) | 4x (2.8x) | 8x (4.0x) | 16x (5.1x) |"
    assert lines[2:6] == [
        "| onnxruntime int8 | 1.40 |  |  |",
        "| scalar k-means |  |  | - |",
        "| PQ (Gong) |  | 2.50 [2.00, 3.00] |  |",
        "| onnxpq |  | 1.50 | 1.75 |",
    ]
    assert lines[-1] == "Test error in per cent; the original has 1.37 %."


def test_the_best_of_the_others_at_each_factor(tmp_path):
    store = Store(tmp_path)
    for entry in (*ROWS, row("svd", 8.0, 1.9), row("onnxpq-none", 8.0, 0.1), row("hashed", 16.0, 1.7)):
        store.add(entry)
    store.add(row("onnxpq", 32.0, 2.0))
    assert tables.against_others(store).splitlines()[2:] == [
        "| MNIST, 784-1000-10 | 1.37 | 8x | **1.50** | 1.90 | truncated SVD |",
        "| MNIST, 784-1000-10 | 1.37 | 16x | 1.75 | **1.70** | HashedNets |",
        "| MNIST, 784-1000-10 | 1.37 | 32x | 2.00 |  |  |",
    ]


def test_full_table_has_every_figure():
    lines = tables.full(ROWS).splitlines()
    assert "| PQ (Gong) | 8x | 8.0x | 8.0x | 4.0x | 2.50 [2.00, 3.00] | 2 | 10 | 20 | d=8 K=16 |" in lines
    assert "| scalar k-means | 16x | - | - | - | no setting of the method is so small | 1 | - | - | |" in lines


def test_speeds():
    rows = [
        {"network": "latency", "method": "mnist_mlp/original", "factor": 1.0, "seed": 0, "microseconds": 250.4},
        {"network": "latency", "method": "cifar_vgg/original", "factor": 1.0, "seed": 0, "microseconds": 900.0},
        {"network": "latency", "method": "mnist_mlp/onnxpq", "factor": 32.0, "seed": 0, "microseconds": 90.0},
    ]
    assert tables.speeds(rows).splitlines() == [
        "| | MNIST, 784-1000-10 | CIFAR-10, small VGG |",
        "|---|---|---|",
        "| original, 1x | 250 | 900 |",
        "| onnxpq, 32x | 90 | - |",
    ]


def test_marked_places_are_filled_and_others_stay():
    page = "a\n<!-- one: python -m benchmarks paper tables -->\nold\n<!-- end -->\nb\n"
    once = tables.filled(page, {"one": r"new \1"})
    assert once == "a\n<!-- one: python -m benchmarks paper tables -->\n\nnew \\1\n\n<!-- end -->\nb\n"
    assert tables.filled(once, {"one": r"new \1"}) == once
    with pytest.raises(SystemExit, match="The page has no place for 'two'"):
        tables.filled(page, {"two": ""})


def test_pages_and_plots_are_written(tmp_path):
    pytest.importorskip("matplotlib")
    store = Store(tmp_path / "rows")
    for some in ROWS:
        store.add(some)
    counts = {done: list(range(120)) for done in ("0", "0.5", "1")}
    store.add({"network": "histograms", "method": "mnist_mlp/l2", "factor": 32.0, "seed": 0, "counts": counts})
    places = "".join(f"{tables.MARK.format(name=name)}\n{tables.END}\n" for name in ("stored", "best", "mnist_mlp"))
    (tmp_path / tables.PAGE).write_text(places)
    store.add(row("hashed", 8.0, 2.0, cpu_seconds=5400.0))
    tables.write(store, tmp_path)
    page = (tmp_path / tables.PAGE).read_text()
    assert "| onnxpq |  | 1.50 | 1.75 |" in page
    assert "* MNIST, Caffe's LeNet: 0 of " in page
    assert " rows, 1.5 hours of processor time; nothing yet of: " in page
    assert "## MNIST, 784-1000-10" in (tmp_path / tables.ALL_ROWS).read_text()
    for name in ("mnist_mlp", "histograms"):
        first = (tmp_path / f"evaluation_{name}.svg").read_bytes()
        assert first.startswith(b"<?xml")
        tables.write(store, tmp_path)
        assert (tmp_path / f"evaluation_{name}.svg").read_bytes() == first


def test_text_is_the_summaries(tmp_path):
    store = Store(tmp_path)
    store.add(ROWS[0])
    assert tables.text(store).startswith("MNIST, 784-1000-10 (mnist_mlp)")

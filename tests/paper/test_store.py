"""Rows of results: whole or not at all, and one process for each."""

import json
import multiprocessing

import pytest

from benchmarks.paper.store import Key, Store


def row(method: str = "pq", seed: int = 0, **more: object) -> dict[str, object]:
    return {"network": "net", "method": method, "factor": 8.0, "seed": seed, "error": 1.5, **more}


def test_rows_come_back_sorted_and_a_new_one_takes_the_place_of_the_old(tmp_path):
    store = Store(tmp_path)
    for new in (row(seed=1), row(seed=0), row("hashed"), row(seed=1, error=2.5)):
        store.add(new)
    lines = [json.loads(line) for line in (tmp_path / "net.jsonl").read_text().splitlines()]
    assert [(line["method"], line["seed"], line["error"]) for line in lines] == [
        ("hashed", 0, 1.5),
        ("pq", 0, 1.5),
        ("pq", 1, 2.5),
    ]
    assert list(store.rows("net")) == [Key.of(line) for line in lines]
    assert store.rows("other") == {}


def test_a_deleted_line_is_a_row_to_run_again(tmp_path):
    store = Store(tmp_path)
    store.add(row())
    with store.claim(Key("net", "pq", 8.0, 0)) as is_mine:
        assert not is_mine
    (tmp_path / "net.jsonl").write_text("")
    with store.claim(Key("net", "pq", 8.0, 0)) as is_mine:
        assert is_mine


def test_an_interrupted_write_leaves_the_rows(tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.add(row())
    before = (tmp_path / "net.jsonl").read_bytes()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        store.add(row(seed=1))
    assert (tmp_path / "net.jsonl").read_bytes() == before


def _claim(folder, queue) -> None:
    with Store(folder).claim(Key("net", "pq", 8.0, 0)) as is_mine:
        queue.put(is_mine)


def test_a_row_that_another_process_works_on_is_not_taken(tmp_path):
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    with Store(tmp_path).claim(Key("net", "pq", 8.0, 0)) as is_mine:
        assert is_mine
        other = context.Process(target=_claim, args=(tmp_path, queue))
        other.start()
        assert queue.get(timeout=120) is False
        other.join()
    with Store(tmp_path).claim(Key("net", "pq", 8.0, 0)) as is_mine:
        assert is_mine


def _add(folder, seeds) -> None:
    for seed in seeds:
        Store(folder).add(row(seed=seed))


def test_processes_that_store_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    others = [context.Process(target=_add, args=(tmp_path, range(start, start + 20))) for start in (0, 20)]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert sorted(key.seed for key in Store(tmp_path).rows("net")) == list(range(40))

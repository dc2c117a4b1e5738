"""Arrays of samples and of whole calls, kept in a folder and read again."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from onnxpq.errors import OutputError
from onnxpq.runtime import caching

CALLS = [
    (np.arange(6, dtype=np.float32).reshape(2, 3), np.array(5)),
    (np.zeros((0, 3), np.float32), np.array(6)),
    (np.ones((1, 3), np.float32), np.array(7)),
]


def write(folder: Path) -> None:
    caching.write_calls(folder, CALLS)


def same(found: Sequence[np.ndarray]) -> None:
    assert [len(values) for values in found] == [3, 3]
    for index, call in enumerate(CALLS):
        for values, expected in zip(found, call, strict=True):
            np.testing.assert_array_equal(values[index], expected)
            assert (values[index].shape, values[index].dtype) == (expected.shape, expected.dtype)


def test_calls_keep_their_shapes(tmp_path: Path) -> None:
    write(tmp_path)
    found = caching.opened_calls(tmp_path)
    same(found)
    found[0][0][0, 0] = 9  # copied on write
    same(caching.opened_calls(tmp_path))


def test_values_that_are_all_empty(tmp_path: Path) -> None:
    caching.write_calls(tmp_path, [[np.zeros((0, 2))], [np.zeros((3, 0))]])
    assert [value.shape for value in caching.opened_calls(tmp_path)[0]] == [(0, 2), (3, 0)]


@pytest.mark.parametrize("damage", ["0.bin", "1.bin", "shapes.json"])
@pytest.mark.parametrize("is_cut", [False, True])
def test_what_is_damaged_is_written_again(tmp_path: Path, damage: str, *, is_cut: bool) -> None:
    folder = tmp_path / "kept"
    same(caching.kept(folder, write, caching.opened_calls))
    path = folder / damage
    if is_cut:
        path.write_bytes(path.read_bytes()[:-5])
    else:
        path.unlink()
    same(caching.kept(folder, write, caching.opened_calls))


def test_a_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    def failing(folder: Path) -> None:
        write(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        caching.kept(tmp_path / "kept", failing, caching.opened_calls)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OutputError, match=r"The activations cannot be cached in '.*file': .* Choose another cache folder"
    ):
        caching.kept(tmp_path / "file" / "kept", write, caching.opened_calls)

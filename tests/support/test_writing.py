"""Scratch folders beside a target."""

from pathlib import Path

import pytest

from onnxpq.errors import OutputError
from onnxpq.support.writing import scratch_folder, write_bytes


def test_a_scratch_folder_lies_beside_the_target_and_goes(tmp_path: Path) -> None:
    with scratch_folder(str(tmp_path / "out.onnx")) as scratch:
        assert Path(scratch).parent == tmp_path
        written = Path(write_bytes(scratch, b"12"))
        assert written.read_bytes() == b"12"
        assert written.parent == Path(scratch)
    assert list(tmp_path.iterdir()) == []


def test_it_goes_where_something_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), scratch_folder(str(tmp_path / "out.onnx")):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_errors_of_the_system_name_the_target(tmp_path: Path) -> None:
    target = str(tmp_path / "none" / "out.onnx")
    with pytest.raises(OutputError, match=r"Cannot write '.*out.onnx': .*Free some space"), scratch_folder(target):
        pass
    target = str(tmp_path / "out.onnx")
    with pytest.raises(OutputError, match=r"Cannot write '.*out.onnx': .*no room"), scratch_folder(target):
        raise OSError("no room")

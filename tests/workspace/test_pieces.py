"""The work folder: pieces whole or not at all, one run, one process."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, BinaryIO

import pytest

from onnxpq.errors import WorkspaceError
from onnxpq.workspace import pieces
from onnxpq.workspace.pieces import Piece, Workspace, opened

RUN = {"format": 1, "settings": {"seed": 0}, "machine": {"threads": 1}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "work"


@pytest.fixture
def space(folder: Path) -> Iterator[Workspace]:
    with opened(folder) as found:
        found.bind(RUN)
        yield found


def put(piece: Piece, content: bytes) -> None:
    piece.save(lambda file: file.write(content))


def read(file: BinaryIO) -> bytes:
    return file.read()


def files(folder: Path) -> list[Path]:
    return [path for path in (folder / pieces.PIECES).iterdir() if path.is_file()]


def test_a_piece_is_found_again_by_what_it_depends_on(folder: Path) -> None:
    with opened(folder) as space:
        space.bind(RUN)
        piece = space.piece("layer", [b"a", b"b"])
        assert piece.load(read) is None
        put(piece, b"first")
        put(piece, b"second")
    with opened(folder) as space:
        space.bind(RUN)
        assert space.piece("layer", [b"a", b"b"]).load(read) == b"second"
        assert space.piece("layer", [b"ab"]).load(read) is None
        assert space.piece("training", [b"a", b"b"]).load(read) is None
        assert space.summary() == [f"Continued: what an earlier call had done was read from '{folder}' (1 layer)."]


@pytest.mark.parametrize("where", [0, 31, 32, 40, -1])
def test_a_changed_byte_is_noticed(space: Workspace, folder: Path, where: int) -> None:
    put(space.piece("layer", []), b"x" * 100)
    (path,) = files(folder)
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)
    assert space.piece("layer", []).load(read) is None
    (note,) = space.summary()
    assert note == f"'{path}' was damaged: that part of the work was done again."


@pytest.mark.parametrize("length", [0, 10, 32, 131])
def test_a_truncated_piece_is_noticed(space: Workspace, folder: Path, length: int) -> None:
    put(space.piece("layer", []), b"x" * 100)
    (path,) = files(folder)
    os.truncate(path, length)
    assert space.piece("layer", []).load(read) is None
    assert "was damaged" in space.summary()[0]


def test_what_stops_while_it_is_written_leaves_the_old_piece(space: Workspace, folder: Path) -> None:
    piece = space.piece("layer", [])
    put(piece, b"old")

    def stop(file: IO[bytes]) -> None:
        file.write(b"ne")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        piece.save(stop)
    assert piece.load(read) == b"old"
    assert len(files(folder)) == 1


def test_a_full_disk_is_a_sentence(space: Workspace, folder: Path) -> None:
    def fill(file: IO[bytes]) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(WorkspaceError, match=r"work folder '.*' cannot be written: .*No space left.*Free some space"):
        space.piece("layer", []).save(fill)
    assert files(folder) == []


def test_what_a_killed_process_was_writing_is_removed(folder: Path) -> None:
    for place in (pieces.PIECES, pieces.ACTIVATIONS):
        (folder / place / ".unfinished-a").mkdir(parents=True)
        (folder / place / ".unfinished-b").write_bytes(b"half")
    with opened(folder):
        assert not list(folder.rglob(".unfinished-*"))


def test_another_run_is_refused_and_a_restart_begins_anew(folder: Path) -> None:
    other = {**RUN, "settings": {"seed": 1}}
    with opened(folder) as space:
        space.bind(RUN)
        put(space.piece("layer", []), b"old")
    sentence = (
        r"^The work folder '.*work' holds another run: settings\.seed was 0 and is 1 now\. Repeat that run to "
        r"continue it, choose another folder, or use --restart to delete what was done and begin anew\.$"
    )
    with opened(folder) as space, pytest.raises(WorkspaceError, match=sentence):
        space.bind(other)
    with opened(folder, restart=True) as space:
        space.bind(other)
        assert space.piece("layer", []).load(read) is None
    assert files(folder) == []


def test_a_damaged_manifest_is_refused(folder: Path) -> None:
    with opened(folder) as space:
        space.bind(RUN)
    (folder / pieces.MANIFEST).write_text("{")
    with opened(folder) as space, pytest.raises(WorkspaceError, match=r"manifest\.json' cannot be read: .* --restart"):
        space.bind(RUN)
    (folder / pieces.MANIFEST).write_text("[]")
    with opened(folder) as space, pytest.raises(WorkspaceError, match=r"format was null and is 1 now"):
        space.bind(RUN)


def test_two_at_once_are_refused(folder: Path) -> None:
    with opened(folder):
        with pytest.raises(WorkspaceError, match=rf"is in use by process {os.getpid()} \(.*Wait until that has ended"):
            opened(folder).__enter__()
        with pytest.raises(WorkspaceError, match="is in use"):
            opened(folder, restart=True).__enter__()
    with opened(folder):
        pass


def test_the_lock_ends_with_its_process(folder: Path) -> None:
    code = (
        "import os, signal, sys\nfrom onnxpq.workspace import opened\n"
        "with opened(sys.argv[1]): os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], check=False, timeout=120)
    assert done.returncode == -9
    with opened(folder):
        pass


def test_folders_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    (tmp_path / "manifest.json").write_text("that of something else")
    for restart in (False, True):
        with pytest.raises(WorkspaceError, match=r"holds 'thesis\.tex' and not both manifest\.json and lock"):
            opened(tmp_path, restart=restart).__enter__()
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(WorkspaceError, match=r"thesis\.tex' is a file; expected a folder"):
        opened(tmp_path / "thesis.tex").__enter__()
    with pytest.raises(WorkspaceError, match=r"cannot be written"):
        opened(tmp_path / "thesis.tex" / "work").__enter__()


def test_a_restart_deletes_only_its_own(folder: Path) -> None:
    with opened(folder) as space:
        space.bind(RUN)
    (folder / "result.onnx").write_bytes(b"mine")
    with opened(folder, restart=True):
        assert {path.name for path in folder.iterdir()} == {pieces.LOCK, pieces.PIECES, "result.onnx"}


def test_without_a_folder_nothing_is_kept(tmp_path: Path) -> None:
    with opened(None) as space:
        space.bind(RUN)
        piece = space.piece("layer", iter(()))
        put(piece, b"x")
        assert piece.load(read) is None
        assert not piece.due()
        assert (space.activations, space.summary()) == (None, [])
    with pytest.raises(WorkspaceError, match=r"none was given\. Add --work-dir\.$"):
        opened(None, restart=True).__enter__()


def test_work_is_saved_from_time_to_time(space: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(pieces.time, "monotonic", lambda: now)
    piece = space.piece("training", [])
    now += pieces.SAVE_SECONDS - 1
    assert not piece.due()
    now += 1
    assert piece.due()

    def slow(file: IO[bytes]) -> None:
        nonlocal now
        file.write(b"x")
        now += 10

    piece.save(slow)
    now += pieces.SAVE_SHARE * 10 - 1
    assert not piece.due(), "saving took long, so it waits for longer"
    now += 1
    assert piece.due()

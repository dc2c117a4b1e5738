"""A folder in which an interrupted run continues where it was.

    DIR/manifest.json   what the run is made from (`onnxpq.workspace.manifest`); only the same run may go on in the
    folder DIR/lock            held by the process that works in the folder
    DIR/activations     what onnxruntime computed for the data (`onnxpq.runtime.activations`)
    DIR/pieces          finished pieces of work, each named by the hash of what it depends on

A piece is written under another name, flushed to the disk and renamed, and begins with the hash of its content: one
that has its name is whole, and one that was damaged later is noticed and computed again. So a process may be killed at
any moment.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import IO, Any, BinaryIO, TypeVar

from onnxpq.errors import WorkspaceError
from onnxpq.support import fingerprint
from onnxpq.workspace import manifest

SAVE_SECONDS = 30.0
"""Work that goes on for long is saved when it is this old: as much is lost at most."""

SAVE_SHARE = 20.0
"""It is saved no sooner than after this many times as long as the last save took: at most a twentieth goes to that."""

MANIFEST, LOCK, ACTIVATIONS, PIECES = "manifest.json", "lock", "activations", "pieces"
_UNFINISHED = ".unfinished-"
_OURS = frozenset({MANIFEST, LOCK, ACTIVATIONS, PIECES})
_DIGEST_BYTES = 32

_T = TypeVar("_T")


class Piece:
    """One piece of work of a workspace, found again by what it depends on."""

    def __init__(self, workspace: "Workspace | None" = None, kind: str = "", path: Path | None = None) -> None:
        self._workspace, self._kind, self._path = workspace, kind, path
        self._due = time.monotonic() + SAVE_SECONDS

    def due(self) -> bool:
        """Whether it is time to save work that is not finished; never without a folder."""
        return self._path is not None and time.monotonic() >= self._due

    def load(self, read: Callable[[BinaryIO], _T]) -> _T | None:
        """What was saved; None where nothing was, or where the file is damaged.

        Args:
            read: is given the file, once its content is known to be what was written.

        Raises:
            WorkspaceError: the file cannot be read.
        """
        if self._workspace is None or self._path is None:
            return None
        try:
            with open(self._path, "rb") as file:
                if file.read(_DIGEST_BYTES) != hashlib.file_digest(file, "sha256").digest():
                    self._workspace.notes.append(f"'{self._path}' was damaged: that part of the work was done again.")
                    return None
                file.seek(_DIGEST_BYTES)
                found = read(file)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise WorkspaceError(f"'{self._path}' cannot be read: {error}. Check its permissions.") from error
        if self._path not in self._workspace.saved:
            self._workspace.found[self._kind] += 1
        return found

    def save(self, write: Callable[[IO[bytes]], object]) -> None:
        """Keep it, in place of what was there.

        Args:
            write: writes it to the file that it is given.

        Raises:
            WorkspaceError: it cannot be written; what was there stays.
        """
        if self._workspace is None or self._path is None:
            return
        started = time.monotonic()

        def write_checked(file: IO[bytes]) -> None:
            file.write(bytes(_DIGEST_BYTES))
            write(file)
            file.seek(_DIGEST_BYTES)
            found = hashlib.file_digest(file, "sha256").digest()  # type: ignore[arg-type]
            file.seek(0)
            file.write(found)

        _write_whole(self._path, write_checked)
        self._workspace.saved.add(self._path)
        now = time.monotonic()
        self._due = now + max(SAVE_SECONDS, SAVE_SHARE * (now - started))


class Workspace:
    """A folder for one run. Without one (None) nothing is kept, and nothing is found.

    Attributes:
        folder: where it is.
        notes: sentences for the user.
        found: how many pieces of each kind were read that an earlier call left.
        saved: the pieces of this one.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.notes: list[str] = []
        self.found: Counter[str] = Counter()
        self.saved: set[Path] = set()
        self._identity = ""

    @property
    def activations(self) -> Path | None:
        """The folder for what onnxruntime computes for the data."""
        return None if self.folder is None else self.folder / ACTIVATIONS

    def bind(self, made_from: Mapping[str, Any]) -> None:
        """Say which run the folder is for, before anything is looked up in it.

        Args:
            made_from: from `onnxpq.workspace.manifest.describe`.

        Raises:
            WorkspaceError: it holds another run, or its manifest cannot be read; or it cannot be written.
        """
        if self.folder is None:
            return
        path = self.folder / MANIFEST
        if path.exists():
            begun = _read_manifest(path)
            changes = manifest.changes(begun, made_from)
            if changes:
                raise WorkspaceError(
                    f"The work folder '{self.folder}' holds another run: {'; '.join(changes)}. Repeat that run to "
                    "continue it, choose another folder, or use --restart to delete what was done and begin anew."
                )
            self.notes.extend(manifest.remarks(begun, made_from))
        else:
            text = json.dumps(made_from, indent=2, ensure_ascii=False)
            _write_whole(path, lambda file: file.write(text.encode()))
        self._identity = manifest.identity(made_from)

    def piece(self, kind: str, depends: Iterable[bytes]) -> Piece:
        """The place of one piece of work.

        Args:
            kind: a word for what it is: letters.
            depends: all that it depends on apart from what the manifest says.
        """
        if self.folder is None:
            return Piece()
        key = fingerprint.digest([self._identity.encode(), kind.encode(), *depends])
        return Piece(self, kind, self.folder / PIECES / f"{kind}-{key}")

    def summary(self) -> list[str]:
        """Sentences for the report: what was found, and the notes."""
        counts = ", ".join(f"{count} {kind}{'s' * (count > 1)}" for kind, count in sorted(self.found.items()))
        done = f"Continued: what an earlier call had done was read from '{self.folder}' ({counts})."
        return [*([done] if counts else []), *self.notes]


def temporary(folder: Path) -> Workspace:
    """A workspace for what one call needs again, in an empty folder that is deleted in the end."""
    (folder / PIECES).mkdir()
    return Workspace(folder)


@contextmanager
def opened(folder: str | PathLike[str] | None, *, restart: bool = False) -> Iterator[Workspace]:
    """A workspace, locked while it is used.

    Args:
        folder: is made if it is not there; None for a workspace that keeps nothing.
        restart: delete what a workspace has left there before.

    Raises:
        WorkspaceError: another process works there, the folder has files of something else, or it cannot be written.
    """
    if folder is None:
        if restart:
            raise WorkspaceError("A restart deletes what is in a work folder, and none was given. Add --work-dir.")
        yield Workspace()
        return
    path = Path(folder)
    _check_ours(path)
    with _errors(path):
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / LOCK, "a+", encoding="utf-8")  # noqa: SIM115 -- closed below; its end ends the lock
    with lock:
        _lock(lock, path)
        with _errors(path):
            if restart:
                # The manifest last: with it the folder is known to be ours.
                _delete(path / PIECES, path / ACTIVATIONS, path / MANIFEST)
            (path / PIECES).mkdir(exist_ok=True)
            for place in (path, path / PIECES, path / ACTIVATIONS):
                # What a killed process was about to write; nobody else is here.
                _delete(*place.glob(f"{_UNFINISHED}*"))
        yield Workspace(path)


def _check_ours(path: Path) -> None:
    if not path.exists():
        return
    if not path.is_dir():
        raise WorkspaceError(f"The work folder '{path}' is a file; expected a folder. Choose another path.")
    with _errors(path):
        foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in _OURS)
    if foreign and not all((path / name).exists() for name in (MANIFEST, LOCK)):
        raise WorkspaceError(
            f"The work folder '{path}' holds '{foreign[0]}' and not both {MANIFEST} and {LOCK}: it is not one of "
            "onnxpq. Choose an empty folder, or one that does not exist."
        )


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WorkspaceError(
            f"'{path}' cannot be read: {error}. Choose another folder, or use --restart to delete what was done and "
            "begin anew."
        ) from error
    return found if isinstance(found, dict) else {}


def _lock(file: IO[str], folder: Path) -> None:
    """Take the lock; the system releases it when the process ends, however that happens."""
    try:
        if sys.platform == "win32":
            import msvcrt  # noqa: PLC0415 -- of that system only

            # A byte far behind the text, which so stays readable to others.
            file.seek(2**30)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl  # noqa: PLC0415 -- of the other systems only

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        raise WorkspaceError(
            f"The work folder '{folder}' is in use by process {file.read() or '?'} ({error.strerror}). Wait until that "
            "has ended, or choose another folder."
        ) from error
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()


def _write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    # The name is free: the folder is locked.
    unfinished = path.with_name(f"{_UNFINISHED}{path.name}")
    with _errors(path.parent):
        try:
            with open(unfinished, "w+b") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)


def _delete(*paths: Path) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise WorkspaceError(
            f"The work folder '{folder}' cannot be written: {error}. Free some space, or choose another folder."
        ) from error

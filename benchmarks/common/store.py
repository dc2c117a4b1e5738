"""Results of the scripts: a JSON file each, results/GROUP/NAME.json, that appears whole or not at all."""

import fcntl
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Self

from benchmarks.common import machine

FOLDER: Final = Path(__file__).resolve().parents[1] / "results"

Rows = dict[str, Any]


class Results:
    """What a script has stored.

    A row has one or more names, a level of the file each: `add(row, "digits", "0")` stores ``{"digits": {"0": row}}``.
    Each row is stored when it is there, so a script can be stopped at any time and has its rows when it starts again.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    @classmethod
    def of(cls, module: str) -> Self:
        """Those of a script, by the `__name__` of its module."""
        _, group, name = module.split(".")
        return cls(FOLDER / group / f"{name}.json")

    def rows(self) -> Rows:
        """All rows by name; none where nothing was stored."""
        return self._rows_of(self._content()) if self.file.exists() else {}

    def add(self, row: object, *names: str) -> Rows:
        """Store a row, in the place of one of the same names; other processes may store rows meanwhile.

        Returns:
            All rows that there are then.
        """
        with locked(self.file.parent):
            self.check()
            rows = self.rows()
            *levels, last = names
            place = rows
            for name in levels:
                place = place.setdefault(name, {})
            place[last] = row
            self._write(self._content_of(rows))
        return rows

    def replace(self, content: object) -> None:
        """Store the whole of a run, in the place of what there was."""
        with locked(self.file.parent):
            self._write(content)

    def check(self) -> None:
        """Whether rows may be added to those that are there.

        Raises:
            SystemExit: they may not.
        """

    def _content(self) -> Any:
        return json.loads(self.file.read_text(encoding="utf-8"))

    def _write(self, content: object) -> None:
        write_whole(self.file, json.dumps(content, indent=1) + "\n")

    def _rows_of(self, content: Any) -> Rows:
        rows: Rows = content
        return rows

    def _content_of(self, rows: Rows) -> Any:
        return rows


class Times(Results):
    """Rows that say nothing beside those of another machine: the file's header names the one that they are of."""

    def check(self) -> None:
        """See `Results.check`: all rows must be of this machine."""
        if self.file.exists() and (of := self._content()["machine"]) != (here := machine.facts()):
            raise SystemExit(f"{self.file} holds times of {of}, this is {here}: delete it first.")

    def _rows_of(self, content: Any) -> Rows:
        rows: Rows = content["cases"]
        return rows

    def _content_of(self, rows: Rows) -> Any:
        return {"machine": machine.facts(), "cases": rows}


def write_whole(file: Path, text: str) -> None:
    """Write a file that appears whole or not at all: what was there before stays until then."""
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".writing-") as folder:
        temporary = Path(folder) / file.name
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(file)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """While the block runs no other process can be in such a block; the folder is made where it is not there."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield

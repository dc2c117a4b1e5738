"""Rows of results: one JSON object a line, one file a network; each row appears whole or not at all."""

import fcntl
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.common.store import FOLDER as RESULTS
from benchmarks.common.store import locked, write_whole

Row = dict[str, Any]

FOLDER: Final = RESULTS / "paper"


@dataclass(frozen=True, order=True)
class Key:
    """What a row is of. A row whose `factor` no setting of the method reaches is stored, too, with no error."""

    network: str
    method: str
    factor: float
    seed: int

    @classmethod
    def of(cls, row: Row) -> "Key":
        """The key of a row."""
        return cls(row["network"], row["method"], float(row["factor"]), int(row["seed"]))

    def __str__(self) -> str:
        return f"{self.network} {self.method} {self.factor:g}x seed {self.seed}"


class Store:
    """The rows in a folder."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def rows(self, network: str) -> dict[Key, Row]:
        """All rows of a network."""
        file = self._file(network)
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        return {Key.of(row): row for row in map(json.loads, lines)}

    def add(self, row: Row) -> None:
        """Store a row, in the place of one of the same key; other processes may store rows meanwhile."""
        key = Key.of(row)
        with locked(self.folder):
            rows = self.rows(key.network) | {key: row}
            text = "".join(json.dumps(rows[key]) + "\n" for key in sorted(rows))
            write_whole(self._file(key.network), text)

    def loss(self, key: Key, measure: Callable[[], float]) -> float:
        """The loss in a row that holds nothing else; measured where it is not stored yet."""
        if key not in self.rows(key.network):
            self.add(asdict(key) | {"loss": measure()})
        return float(self.rows(key.network)[key]["loss"])

    @contextmanager
    def claim(self, key: Key) -> Iterator[bool]:
        """Whether no other process works on the row; none can begin to while the block runs, or until it dies."""
        folder = self.folder / ".claims"
        folder.mkdir(exist_ok=True)
        file = folder / str(key).replace(" ", "_")
        with file.open("w") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield key not in self.rows(key.network)

    def _file(self, network: str) -> Path:
        return self.folder / f"{network}.jsonl"

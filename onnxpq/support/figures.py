"""Figures as reports show them: a share with its interval, a table, nodes that are left alone."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

_NAMED: Final = re.compile(r"\b([Tt]he (?:constant|weight|table|left factor)) '[^']*'")
"""How reasons name the constant that they are about."""

_NAMES: Final = 6
"""Of a group of nodes so many are named; the report as JSON has all."""


@dataclass(frozen=True)
class Interval:
    """A share with its 95 % confidence interval."""

    value: float
    low: float
    high: float


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows in aligned columns, the first row being the head; columns whose cells are numbers are set flush right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    right = [all(row[column][:1].isdigit() or row[column] == "-" for row in rows[1:]) for column in range(len(widths))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if flush else cell.ljust(width)
            for cell, width, flush in zip(row, widths, right, strict=True)
        ]
        lines.append("  " + "  ".join(cells).rstrip())
    return "\n".join(lines)


class LeftAlone(NamedTuple):
    """A node that is left as it is.

    Attributes:
        node: its name.
        op_type: its operator.
        reason: why, a sentence; "The constant 'w' is ..." and the like name what it is about first.
        nbytes: of its constants, 0 where a node before it counts them.
    """

    node: str
    op_type: str
    reason: str
    nbytes: int


def left_alone(skipped: Iterable[LeftAlone]) -> str:
    """A section with a line per reason, those of the most bytes first; empty where there are no nodes."""
    groups: dict[str, list[LeftAlone]] = {}
    for entry in skipped:
        groups.setdefault(_NAMED.sub(r"\1", entry.reason), []).append(entry)
    sizes = {reason: f"{sum(entry.nbytes for entry in entries):,}" for reason, entries in groups.items()}
    width = max(map(len, sizes.values()), default=0)
    order = sorted(groups, key=lambda reason: -sum(entry.nbytes for entry in groups[reason]))
    lines = [f"  {sizes[reason]:>{width}} bytes in {_nodes(groups[reason], reason)}" for reason in order]
    return "\n".join(["Left alone", *lines] if lines else [])


def _nodes(entries: Sequence[LeftAlone], reason: str) -> str:
    """Operators, names and the reason; that of a single node in its own words."""
    counts = Counter(entry.op_type for entry in entries)
    names = ", ".join(entry.node for entry in entries[:_NAMES])
    others = len(entries) - _NAMES
    kinds = ", ".join(f"{count} {op_type}" for op_type, count in counts.items())
    more = f" and {others} more" if others > 0 else ""
    return f"{kinds} ({names}{more}): {reason if len(entries) > 1 else entries[0].reason}"

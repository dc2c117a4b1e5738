"""Figures as reports show them: a share with its interval, and a table."""

from collections.abc import Sequence
from dataclasses import dataclass


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

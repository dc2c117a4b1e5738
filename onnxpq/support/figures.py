"""Figures as reports show them: a share with its interval, a table, nodes that are left alone."""

from collections.abc import Iterable, Sequence
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


def left_alone(skipped: Iterable[tuple[str, str, str]]) -> str:
    """For nodes' names, operators and reasons, a section with a line per reason; empty where there are none."""
    nodes: dict[tuple[str, str], list[str]] = {}
    for node, op_type, reason in skipped:
        nodes.setdefault((op_type, reason), []).append(node)
    lines = ["Left alone"] if nodes else []
    for (op_type, reason), names in nodes.items():
        what = op_type if len(names) == 1 else f"{len(names)} {op_type}"
        lines.append(f"  {', '.join(names)} ({what}): {reason}")
    return "\n".join(lines)

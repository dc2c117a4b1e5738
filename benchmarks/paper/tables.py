"""Tables and plots from the stored rows."""

import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.paper import latency, tasks
from benchmarks.paper.store import Row, Store

NETWORKS: Final = {name: title for name, (title, *_) in tasks.NETWORKS.items()}
PAGE: Final = "evaluation.md"
ALL_ROWS: Final = "evaluation_rows.md"
MARK: Final = "<!-- {name}: python -m benchmarks paper tables -->"
END: Final = "<!-- end -->"

PLOTTED: Final = ("svd-tuned", "kmeans-tuned", "residual-tuned", "smaller", "hashed", "pq", "pq-tuned", "codebook-pq")
"""Methods in the plot of a network, besides onnxpq and onnxruntime's own."""

Groups = dict[tuple[str, float], list[Row]]
"""The rows of all seeds by method and factor."""


def groups(rows: Sequence[Row]) -> Groups:
    """Rows by method and factor, in the order of the methods' table."""
    from benchmarks.paper.methods import METHODS  # noqa: PLC0415 -- torch takes seconds to load

    order = {name: number for number, name in enumerate(METHODS)}
    found: Groups = {}
    for row in sorted(rows, key=lambda row: (order.get(row["method"], len(order)), row["factor"], row["seed"])):
        found.setdefault((row["method"], row["factor"]), []).append(row)
    return found


def title(method: str) -> str:
    """A method's name in tables."""
    from benchmarks.paper.methods import METHODS  # noqa: PLC0415

    return METHODS[method].title if method in METHODS else method


def spread(rows: Sequence[Row], *, digits: int = 2) -> str:
    """Mean error, and the lowest and highest where there are several seeds; a dash where the method cannot do it."""
    errors = [row["error"] for row in rows if row["error"] is not None]
    if not errors:
        return "-"
    mean = f"{statistics.mean(errors):.{digits}f}"
    return mean if len(errors) == 1 else f"{mean} [{min(errors):.{digits}f}, {max(errors):.{digits}f}]"


def summary(rows: Sequence[Row]) -> str:
    """Error by method and factor, as a Markdown table; methods with a factor of their own stand in its column."""
    found = groups(rows)
    original = next((some[0] for (name, _), some in found.items() if name == "original"), None)
    factors = sorted({factor for method, factor in found if factor > 1})
    head = [f"{factor:g}x{_file_factor(rows, factor)}" for factor in factors]
    lines = [f"| FC layers (whole file) | {' | '.join(head)} |", "|---" * (len(factors) + 1) + "|"]
    for method in dict.fromkeys(method for method, _ in found if method != "original"):
        cells = [spread(found[method, factor]) if (method, factor) in found else "" for factor in factors]
        lines.append(f"| {title(method)} | {' | '.join(cells)} |")
    if original is not None:
        lines.append("")
        lines.append(f"Test error in per cent; the original has {original['error']:.2f} %.")
    return "\n".join(lines)


def _file_factor(rows: Sequence[Row], factor: float) -> str:
    """The whole file's factor where the layers' is exactly so."""
    row = next((row for row in rows if row["method"] == "original"), None)
    if row is None:
        return ""
    rest, layers = row["file_bytes"] - row["layer_bytes"], row["layer_bytes"]
    return f" ({row['file_bytes'] / (rest + layers / factor):.1f}x)"


def against_others(store: Store) -> str:
    """Errors of onnxpq and of the best other method, by network and factor, as Markdown; the better one in bold."""
    lines = ["| | original | factor | onnxpq | best other | which |", "|---" * 6 + "|"]
    for network, name in NETWORKS.items():
        found = groups([row for row in store.rows(network).values() if row["error"] is not None])
        means = {key: statistics.mean(row["error"] for row in rows) for key, rows in found.items()}
        for factor in sorted({factor for method, factor in means if method == "onnxpq"}):
            others = {m: mean for (m, f), mean in means.items() if f == factor and not m.startswith("onnxpq")}
            own = means["onnxpq", factor]
            best = min(others, key=lambda method: others[method], default=None)
            texts = [f"{own:.2f}", "" if best is None else f"{others[best]:.2f}"]
            if best is not None and texts[0] != texts[1]:
                place = 0 if own < others[best] else 1
                texts[place] = f"**{texts[place]}**"
            first = f"{name} | {means['original', 1.0]:.2f}" if ("original", 1.0) in means else f"{name} | "
            which = "" if best is None else title(best)
            lines.append(f"| {first} | {factor:g}x | {' | '.join(texts)} | {which} |")
    return "\n".join(lines)


def full(rows: Sequence[Row]) -> str:
    """Every method and factor with what it took, as a Markdown table."""
    lines = [
        "| method | wanted | FC layers | by formula | whole file | test error, % | seeds | CPU s | wall s | settings |",
        "|---" * 10 + "|",
    ]
    for (method, factor), some in groups(rows).items():
        row = some[0]
        if row["error"] is None:
            lines.append(f"| {title(method)} | {factor:g}x | - | - | - | {row['reason']} | {len(some)} | - | - | |")
            continue
        formula = "" if row["formula_factor"] is None else f"{row['formula_factor']:.1f}x"
        cpu, wall = (statistics.mean(r[f"{kind}_seconds"] for r in some) for kind in ("cpu", "wall"))
        lines.append(
            f"| {title(method)} | {factor:g}x | {row['layer_factor']:.1f}x | {formula} | {row['file_factor']:.1f}x "
            f"| {spread(some)} | {len(some)} | {cpu:.0f} | {wall:.0f} | {row['settings']} |"
        )
    return "\n".join(lines)


def speeds(rows: Sequence[Row]) -> str:
    """Microseconds a call of one image, as a Markdown table with a column per network."""
    by_name = {tuple(row["method"].split("/")): row for row in rows}
    networks = [network for network in NETWORKS if any(name[0] == network for name in by_name)]
    lines = [f"| | {' | '.join(NETWORKS[network] for network in networks)} |", "|---" * (len(networks) + 1) + "|"]
    for method in latency.TIMED:
        cells = [by_name.get((network, method)) for network in networks]
        if any(cells):
            factor = next(row["factor"] for row in cells if row is not None)
            texts = ["-" if row is None else f"{row['microseconds']:.0f}" for row in cells]
            lines.append(f"| {title(method)}, {factor:g}x | {' | '.join(texts)} |")
    return "\n".join(lines)


def text(store: Store) -> str:
    """The summaries of all networks that have rows."""
    parts = []
    for network, name in NETWORKS.items():
        rows = list(store.rows(network).values())
        if rows:
            parts.append(f"{name} ({network})\n\n{summary(rows)}\n")
    return "\n".join(parts)


def compared(first: Store, again: Store) -> str:
    """The errors of two runs, row by row, as a Markdown table, and how far they are apart; beside them, all seeds'."""
    lines = ["| row | stored | again | difference | all seeds |", "|---" * 5 + "|"]
    differences = []
    for network in NETWORKS:
        runs = first.rows(network), again.rows(network)
        seeds = groups(list(runs[0].values()))
        for key in sorted(runs[0].keys() & runs[1].keys()):
            before, after = (rows[key]["error"] for rows in runs)
            if before is None or after is None:
                continue
            differences.append(abs(after - before))
            all_seeds = spread(seeds[key.method, key.factor])
            lines.append(f"| {key} | {before:.2f} | {after:.2f} | {after - before:+.2f} | {all_seeds} |")
    if not differences:
        return "No row was measured again."
    same = sum(difference == 0 for difference in differences)
    lines += ["", f"{same} of {len(differences)} rows are the same; the largest difference is {max(differences):.2f}."]
    return "\n".join(lines)


def missing(store: Store) -> str:
    """What has been run and what has not, as a sentence per network."""
    from benchmarks.paper.methods import METHODS  # noqa: PLC0415 -- torch takes seconds to load
    from benchmarks.paper.running import keys  # noqa: PLC0415

    lines = []
    for network, name in NETWORKS.items():
        wanted = keys([f"{network}/*"])
        stored = store.rows(network)
        done = sum(key in stored for key in wanted)
        methods = {key.method for key in wanted} - {key.method for key in stored}
        names = [title(name) for name in METHODS if name in methods]
        what = f"; nothing yet of: {'; '.join(names)}" if names else ""
        hours = sum(row.get("cpu_seconds", 0.0) for row in stored.values()) / 3600
        lines.append(f"* {name}: {done} of {len(wanted)} rows, {hours:.1f} hours of processor time{what}.")
    return "\n".join(lines)


def write(store: Store, folder: Path) -> None:
    """Put the tables into the page, all rows into a page of their own, and draw the plots."""
    page = folder / PAGE
    content = page.read_text(encoding="utf-8")
    parts: dict[str, str] = {"stored": missing(store), "best": against_others(store)}
    every = ["# All rows of the evaluation", "", f"Made by `python -m benchmarks paper tables`; see [{PAGE}]({PAGE})."]
    for network, name in NETWORKS.items():
        rows = list(store.rows(network).values())
        if rows:
            parts[network] = f"{summary(rows)}\n\n![Test error against the factor](evaluation_{network}.svg)"
            every += ["", f"## {name}", "", full(rows)]
            plot(rows, name, folder / f"evaluation_{network}.svg")
    if speed := list(store.rows(latency.NAME).values()):
        parts["latency"] = speeds(speed)
    if shapes := list(store.rows("histograms").values()):
        plot_histograms(shapes, folder / "evaluation_histograms.svg")
    page.write_text(filled(content, parts), encoding="utf-8")
    (folder / ALL_ROWS).write_text("\n".join(every) + "\n", encoding="utf-8")


def filled(content: str, parts: Mapping[str, str]) -> str:
    """A page with each marked place filled anew."""
    for name, part in parts.items():
        mark = MARK.format(name=name)
        pattern = re.compile(re.escape(mark) + r".*?" + re.escape(END), re.DOTALL)
        if not pattern.search(content):
            raise SystemExit(f"The page has no place for '{name}': it needs the lines\n{mark}\n{END}")
        made = f"{mark}\n\n{part}\n\n{END}"
        content = pattern.sub(lambda _match, made=made: made, content)
    return content


def plot(rows: Sequence[Row], name: str, file: Path) -> None:
    """Error against the factor of the layers, a line per method."""
    with _figure(file, (8, 5)) as figure:
        axes = figure.subplots()
        found = groups([row for row in rows if row["error"] is not None])
        for number, method in enumerate([*PLOTTED, "onnxpq"]):
            points = [
                (some[0]["layer_factor"], [r["error"] for r in some]) for (m, _), some in found.items() if m == method
            ]
            if not points:
                continue
            factors, means = zip(*((factor, statistics.mean(errors)) for factor, errors in points), strict=True)
            ends = np.array([[m - min(e), max(e) - m] for (_, e), m in zip(points, means, strict=True)]).T
            width = 2.5 if method == "onnxpq" else 1.2
            axes.errorbar(
                factors, means, ends, label=title(method), color=f"C{number}", linewidth=width, marker="o", markersize=3
            )
        for method in ("int8", "int4", "int2", "sign-tuned"):
            for (m, _), (row, *_) in found.items():
                if m == method:
                    axes.plot(row["layer_factor"], row["error"], "k*")
                    axes.annotate(title(method), (row["layer_factor"], row["error"]), fontsize=7)
        for (m, _), (row, *_) in found.items():
            if m == "original":
                axes.axhline(row["error"], color="grey", linestyle=":", label="original")
        axes.set(xscale="log", yscale="log", xlabel="times smaller, FC layers", ylabel="test error, %", title=name)
        axes.set_xticks([4, 8, 16, 32, 64, 128], labels=["4", "8", "16", "32", "64", "128"])
        axes.legend(fontsize=7)


def plot_histograms(rows: Sequence[Row], file: Path) -> None:
    """A row per term; the weights before, in the middle and at the end of training under it."""
    from benchmarks.paper.histograms import EDGES  # noqa: PLC0415 -- torch takes seconds to load
    from benchmarks.paper.terms import ALPHA  # noqa: PLC0415

    order = list(ALPHA)
    rows = sorted(rows, key=lambda row: order.index(row["method"].split("/")[1]))
    with _figure(file, (8, 1.3 * len(rows))) as figure:
        grid = figure.subplots(len(rows), 3, sharex=True, squeeze=False)
        for line, row in zip(grid, rows, strict=True):
            for axes, (done, counts) in zip(line, row["counts"].items(), strict=True):
                axes.stairs(counts, EDGES, fill=True)
                axes.set_yticks([])
                axes.set_title(f"{row['method'].split('/')[1]}, {100 * float(done):g} % done", fontsize=7)


@contextmanager
def _figure(file: Path, size: tuple[float, float]) -> Iterator[Any]:
    """A figure that is written as SVG when the block ends, the same bytes each time."""
    import matplotlib  # noqa: PLC0415 -- of the extra `bench`
    from matplotlib.figure import Figure  # noqa: PLC0415

    with matplotlib.rc_context({"svg.hashsalt": "onnxpq", "svg.fonttype": "none"}):
        figure = Figure(figsize=size, layout="constrained")
        yield figure
        figure.savefig(file, format="svg", metadata={"Date": None})

"""Accuracy at a size: onnxpq beside onnxruntime's low-bit layers, on five models and what each of them is for.

    python -m benchmarks accuracy                            # runs what is not stored yet
    python -m benchmarks accuracy --only minilm --cases 'PQ*' --seeds 0 1 2
    python -m benchmarks accuracy --table                    # only prints the tables

Cases are the original; `MatMulNBits` of 2 bits (block 128), plain and by HQQ, and 4 bits (block 32) on the layers that
onnxpq compresses; and onnxpq through its command line, in a process of its own: product quantization alone ("PQ", no
training) and what a user gets who only says how small ("trained"), each at the size that the model is to reach, at the
bytes of 2 bits, and at half of those; the first once more with `--reorder`; the whole file as small, where the layers
are not most of it; and the smallest that keeps to a `--max-drop`. `benchmarks/common/tasks.py` tells what is measured.
Models and reports stay in the cache folder, under accuracy/, so that an interrupted run does not compress again what it
had.
"""

import argparse
import collections
import fnmatch
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from benchmarks.common import datasets, folders, machine
from benchmarks.common.store import Results

RESULTS = Results.of(__name__)
MODELS: Final = ("mnist_mlp", "mnist_lenet", "minilm", "magika", "rapidocr")

SIZES: Final = {
    "mnist_mlp": ("file 64x", ("--ratio", "64")),
    "mnist_lenet": ("FC 100x", ("--fc-ratio", "100")),
    "minilm": ("FC 16x", ("--fc-ratio", "16")),
    "magika": ("FC 16x", ("--fc-ratio", "16")),
    "rapidocr": ("FC 16x", ("--fc-ratio", "16")),
}
"""The size that each model is to reach, and how a user asks for it."""

FILES: Final = {"minilm": ("file 16x", ("--ratio", "16"))}
"""Models that are to be small with all that is in the file: two thirds of MiniLM's is a table of words."""

DROPS: Final = {
    "mnist_mlp": ("--max-drop", "0.5%"),
    "mnist_lenet": ("--max-drop", "0.5%"),
    "minilm": ("--max-drop", "5%"),
    "magika": ("--max-drop", "2%"),
    "rapidocr": ("--max-drop", "2%"),
}
"""What may be lost: right answers where there are labels, else the share of answers that are other ones; of MiniLM's
output, which has no classes, the share of its square."""

COMMON: Final = {"mnist_mlp": ("--labels", "y"), "mnist_lenet": ("--labels", "y")}
"""What the command line cannot know: which labels there are."""

LAYOUTS: Final = {
    "mnist_mlp": ((13, 16, 4), (4, 256, 1), (4, 16, 64)),
    "mnist_lenet": ((20, 16, 2), (4, 256, 1), (4, 16, 32)),
    "minilm": ((5, 256, 1), (4, 256, 1), (4, 16, 20)),
    "magika": ((3, 16, 40), (2, 16, 30), (4, 16, 5)),
    "rapidocr": ((6, 256, 1), (4, 256, 1), (5, 16, 12)),
}
"""d, K and codebooks of all layers with which product quantization alone is within each of the three sizes."""


@dataclass(frozen=True)
class Case:
    """One way to make a model small.

    Attributes:
        name: of the row.
        flags: of ``onnxpq compress``; None where onnxpq takes no part.
        low_bit: arguments of `nbits.quantize`, or None.
    """

    name: str
    flags: tuple[str, ...] | None = None
    low_bit: dict[str, int] | None = None


def cases(model: str, results: dict[str, Any]) -> Iterator[Case]:
    """The cases of a model; those that need the bytes of 2 bits only once they are known."""
    yield Case("original")
    yield Case("MatMulNBits, 2 bits", low_bit={"bits": 2, "block": 128})
    yield Case("MatMulNBits, 2 bits, HQQ", low_bit={"bits": 2, "block": 128, "half_quadratic": True})
    yield Case("MatMulNBits, 4 bits", low_bit={"bits": 4, "block": 32})
    size, flags = SIZES[model]
    names = (size, "bytes of 2 bits", "half of them")
    for name, (d, codewords, codebooks) in zip(names, LAYOUTS[model], strict=True):
        layout = ("--sub-vector", str(d), "--codewords", str(codewords), "--codebooks", str(codebooks))
        yield Case(f"PQ, {name}", (*layout, "--epochs", "0"))
    yield Case(f"trained, {size}", flags)
    yield Case(f"trained, {size}, reordered", (*flags, "--reorder"))
    if model in FILES:
        whole, flags_of_file = FILES[model]
        yield Case(f"trained, {whole}", flags_of_file)
    yield Case(f"trained, drop {DROPS[model][1].replace('%', ' %')}", DROPS[model])
    baseline = results.get(key_of(model, "MatMulNBits, 2 bits"))
    if baseline is not None:
        before, after = baseline["layer_bytes"]
        for name, part in (("bytes of 2 bits", 1), ("half of them", 2)):
            yield Case(f"trained, {name}", ("--fc-ratio", f"{part * before / after + 5e-4:.3f}"))


def key_of(model: str, case: str, seed: int | None = None) -> str:
    return f"{model}, {case}" + ("" if seed is None else f", seed {seed}")


def folder_of(model: str) -> Path:
    """The folder with a model, the data to train on and those that it is judged by; made where it is not there."""
    if model.startswith("mnist"):
        return folders.mnist_folder(model)
    return folders.material_of(model)


def run(model: str, case: Case, seed: int | None, baseline: dict[str, Any] | None, *, refit: bool) -> dict[str, Any]:
    """Make the model and measure it, and the original too where `baseline`, its row, is of other data."""
    # They load onnxruntime, which --table has no need of.
    from benchmarks.common import tasks  # noqa: PLC0415
    from benchmarks.peers import nbits  # noqa: PLC0415

    folder = folder_of(model)
    kept = datasets.cache_folder() / "accuracy"
    kept.mkdir(parents=True, exist_ok=True)
    target = kept / f"{key_of(model, case.name, seed)}.onnx"
    row: dict[str, Any] = {"model": model, "case": case.name, "seed": seed}
    if case.flags is not None:
        row |= _compressed(folder, target, case.flags + COMMON.get(model, ()), seed or 0)
        if "error" in row:
            return row
    elif case.low_bit is not None:
        found = nbits.quantize(folder / "model.onnx", target, **case.low_bit)
        row |= {"layers": found.layers, "layer_bytes": [found.bytes_before, found.bytes_after]}
        row["block"] = case.low_bit["block"]
    else:
        target = folder / "model.onnx"
    row["file_bytes"] = [file.stat().st_size for file in (folder / "model.onnx", target)]
    source = folder / "source.json"
    if source.exists():
        row["data"] = {name: value for name, value in json.loads(source.read_text()).items() if "/" not in name}
    if baseline is not None and baseline.get("data") != row.get("data"):
        row["original"] = tasks.measure(model, folder, folder / "model.onnx", refit=refit)
    return row | {"figures": tasks.measure(model, folder, target, refit=refit)}


def _compressed(folder: Path, target: Path, flags: tuple[str, ...], seed: int) -> dict[str, Any]:
    """A run of the command line, or what is kept of an earlier one with the same flags."""
    facts, report = target.with_suffix(".run.json"), target.with_suffix(".report.json")
    row: dict[str, Any] = {"flags": list(flags)}
    if not facts.exists() or json.loads(facts.read_text())["flags"] != row["flags"]:
        command = [sys.executable, "-m", "onnxpq", "compress", str(folder / "model.onnx"), "-o", str(target)]
        command += ["--data", str(folder / "train.npz"), "--test", str(folder / "test.npz")]
        work = target.with_suffix(".work")
        command += ["--report", str(report), "--work-dir", str(work), "--seed", str(seed), *flags]
        started, used = time.perf_counter(), _processor_seconds()
        # Not in the repository, whose sources have no operator library beside them.
        run = partial(subprocess.run, cwd=target.parent, stderr=subprocess.PIPE, text=True, check=False)
        done = run(command)
        if done.returncode != 0 and "holds another run" in done.stderr:  # one of an earlier version
            done = run([*command, "--restart"])
        row |= {"seconds": time.perf_counter() - started, "processor_seconds": _processor_seconds() - used}
        row["commit"] = machine.commit()
        if done.returncode != 0:
            return row | {"error": done.stderr.strip().splitlines()[-1]}
        facts.write_text(json.dumps(row))
        shutil.rmtree(work)
    found = json.loads(report.read_text())
    layers = found["layers"]
    layouts = collections.Counter(f"d={layer['sub_vector']} K={layer['codewords']}" for layer in layers)
    sizes = [sum(layer[side] for layer in layers) for side in ("bytes_before", "bytes_after")]
    return json.loads(facts.read_text()) | {"layers": len(layers), "layer_bytes": sizes, "layouts": dict(layouts)}


def _processor_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def table(results: dict[str, Any]) -> str:
    """The results as Markdown: a line per case, the mean of its seeds with the lowest and highest.

    Seeds that were measured on other data than the model's original have a line of their own.
    """
    lines = ["| model | case | seeds | file | FC layers | relative error | figures |", "|---" * 7 + "|"]
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = collections.defaultdict(list)
    for row in results.values():
        groups[row["model"], row["case"], str(row.get("original"))].append(row)
    for model in MODELS:
        lines += [_line(model, case, rows) for (owner, case, _), rows in groups.items() if owner == model]
    return "\n".join(lines)


def _line(model: str, case: str, rows: list[dict[str, Any]]) -> str:
    errors = [row["error"] for row in rows if "error" in row]
    if errors:
        return f"| {model} | {case} | {len(rows)} | | | | {errors[0]} |"
    file = _size([row["file_bytes"] for row in rows])
    layers = _size([row["layer_bytes"] for row in rows]) if "layer_bytes" in rows[0] else ""
    names = list(rows[0]["figures"])
    found = {name: _spread([row["figures"][name] for row in rows], name) for name in names}
    error = found.pop("relative_error")
    original = rows[0].get("original", {})
    was = {
        name: f" (the original here {_spread([original[name]], name)})" for name in found if original.get(name, 1) != 1
    }
    figures = ", ".join(f"{name} {value}{was.get(name, '')}" for name, value in found.items())
    seeds = "" if rows[0]["seed"] is None else str(len(rows))
    return f"| {model} | {case} | {seeds} | {file} | {layers} | {error} | {figures} |"


def _size(pairs: list[list[int]]) -> str:
    before, after = pairs[0][0], max(pair[1] for pair in pairs)
    return f"{after} ({before / after:.1f}x)"


def _spread(values: list[float], name: str) -> str:
    def written(value: float) -> str:
        return f"{value:.3f}" if name in ("relative_error", "lee") else f"{100 * value:.2f} %"

    mean = written(sum(values) / len(values))
    return mean if len(values) == 1 else f"{mean} [{written(min(values))}, {written(max(values))}]"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only print the tables of stored results")
    parser.add_argument("--only", choices=MODELS, nargs="*", default=MODELS, help="run only these models")
    parser.add_argument("--cases", default="*", help="run only the cases whose names match this glob")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2], help="seeds of onnxpq (default: 0 1 2)")
    parser.add_argument(
        "--refit", action="store_true", help="MiniLM: also fit the regression to the model's embeddings"
    )
    options = parser.parse_args()
    results = RESULTS.rows()
    for model in () if options.table else options.only:
        # A list of what is not stored, made anew after each case: the bytes of 2 bits are known then.
        while missing := list(_missing(model, options, results)):
            case, seed = missing[0]
            row = run(model, case, seed, results.get(key_of(model, "original")), refit=options.refit)
            results = RESULTS.add(row, key_of(model, case.name, seed))
            print(_line(model, case.name, [row]), flush=True)
    print(table(results))


def _missing(model: str, options: argparse.Namespace, results: dict[str, Any]) -> Iterator[tuple[Case, int | None]]:
    for case in cases(model, results):
        for seed in options.seeds if case.flags is not None else [None]:
            if fnmatch.fnmatch(case.name, options.cases) and key_of(model, case.name, seed) not in results:
                yield case, seed

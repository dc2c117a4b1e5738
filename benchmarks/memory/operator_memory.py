"""Memory of a session of one layer, by default of 8192 x 8192, 64 million weights, 8.4 MB of codes. Linux.

    python -m benchmarks operator_memory
    python -m benchmarks operator_memory --size 4096 --json

The weight lies beside the model (external data) or in it (embedded). Each form is measured in a process of its own,
which has made and run a small session before, so that what onnxruntime itself takes is not counted. The figures are the
growth of the process as the system counts it (/proc/self/smaps_rollup), in MB of a million bytes. Anonymous memory is
what was allocated and written; the rest of the resident memory are pages of files, which the system can drop and
share: with "two processes" another one runs the same file meanwhile. "Stock" is the function body on onnxruntime's own
operators, "unfolded" the same without constant folding.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime
from pq_layers import model_of, normal_rows, random_layer

import onnxpq
from benchmarks.common import processes
from benchmarks.common.memory import peak
from onnxpq.graph import files

SIZE = 8192
SMALL = 64
FORMS = ("external", "external, two processes", "embedded", "embedded, stock", "embedded, stock, unfolded")
MEGABYTE = 1e6

Memory = dict[str, float]
"""MB, by kind: resident, private, shared, anonymous, peak (the largest resident size so far)."""


def memory() -> Memory:
    """Of this process."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    found = {
        "resident": kilobytes["Rss"],
        "private": kilobytes["Private_Clean"] + kilobytes["Private_Dirty"],
        "shared": kilobytes["Shared_Clean"] + kilobytes["Shared_Dirty"],
        "anonymous": kilobytes["Anonymous"],
    }
    return {kind: value * 1024 / MEGABYTE for kind, value in found.items()} | {"peak": peak() / MEGABYTE}


def write_model(path: Path, size: int, *, external: bool) -> None:
    """One layer with d = 4 and K = 16."""
    files.save(ir.from_proto(model_of(random_layer(0, size, size))), path, external_data=external)


def session_of(path: Path, form: str) -> onnxruntime.InferenceSession:
    """With what the form says, one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxpq.session(path, options=options, use_library="stock" not in form, fold_constants="unfolded" not in form)


def grown(folder: Path, size: int, form: str) -> dict[str, Memory]:
    """Growth of this process by a session of `folder`'s large model: once it is made, and once it has run."""
    small = session_of(folder / "small.onnx", form)
    small.run(None, {"X": normal_rows(0, 1, SMALL)})
    x = normal_rows(0, 1, size)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory()
    session = session_of(folder / "large.onnx", form)
    made = memory()
    session.run(None, {"X": x})
    ran = memory()
    return {"made": _difference(made, before), "ran": _difference(ran, before)}


def _difference(after: Memory, before: Memory) -> Memory:
    return {kind: after[kind] - before[kind] for kind in after}


def measure(form: str, size: int) -> dict[str, Any]:
    """Bytes of the files in MB, and the growth, in a process of its own."""
    external = form.startswith("external")
    with tempfile.TemporaryDirectory(prefix="onnxpq-memory-") as scratch:
        folder = Path(scratch)
        write_model(folder / "small.onnx", SMALL, external=external)
        write_model(folder / "large.onnx", size, external=external)
        files = sum(path.stat().st_size for path in folder.glob("large.onnx*")) / MEGABYTE
        if form.endswith("two processes"):
            other = session_of(folder / "large.onnx", form)
            other.run(None, {"X": normal_rows(0, 1, size)})
        printed = processes.output("operator_memory", "--size", size, "--measure", scratch, "--form", form)
    return {"file": files, **json.loads(printed)}


def table(results: dict[str, dict[str, Any]]) -> str:
    """One line for each form and step."""
    kinds = ["resident", "private", "shared", "anonymous", "peak"]
    lines = ["| weight | files, MB | session | " + " | ".join(kinds) + " |", "|---" * 8 + "|"]
    for form, found in results.items():
        for step in ("made", "ran"):
            cells = " | ".join(f"{found[step][kind]:+.2f}" for kind in kinds)
            lines.append(f"| {form} | {found['file']:.2f} | {step} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=SIZE, help="inputs and outputs of the layer")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--form", choices=FORMS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(grown(options.measure, options.size, options.form)))
        return
    results = {form: measure(form, options.size) for form in FORMS}
    print(json.dumps(results) if options.json else table(results))

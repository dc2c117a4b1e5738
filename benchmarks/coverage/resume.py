"""A run that is killed again and again, beside one that is left alone: the same file? What it costs, what it keeps.

    python -m benchmarks resume digits
    python -m benchmarks resume mnist_mlp --after 20 --epochs 6

Three runs of the command line with the same settings: without a work folder, with one, and with one while it is killed
(SIGKILL) so many seconds after it has saved something, again and again. Printed: CPU seconds of each, whether the three
files are the same, and the largest size of the work folder.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import processes
from benchmarks.common.store import Results

RESULTS = Results.of(__name__)
POLL_SECONDS = 0.25


def arguments(model: str, scratch: Path) -> list[str]:
    models = processes.ROOT / "models"
    if model == "digits":
        data = [models / "digits_train.npz", models / "digits_test.npz"]
        return [str(models / "digits_mlp.onnx"), "--data", str(data[0]), "--test", str(data[1])]
    processes.output("datasets", "mnist", "--out", scratch, *(["--flatten"] if model == "mnist_mlp" else []))
    data = [scratch / "mnist_train.npz", scratch / "mnist_test.npz"]
    return [str(models / f"{model}.onnx"), "--data", str(data[0]), "--test", str(data[1])]


def size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # renamed meanwhile
            continue
    return total


def saved(folder: Path) -> set[tuple[str, int]]:
    """The pieces that are there, and when they were written."""
    pieces = folder / "pieces"
    names = [name for name in os.listdir(pieces) if not name.startswith(".")] if pieces.is_dir() else []
    return {(name, (pieces / name).stat().st_mtime_ns) for name in names}


def run(command: list[str], folder: Path, kill_after: float | None) -> tuple[bool, float, int]:
    """Whether it got to its end, its CPU seconds, and the largest size of the folder."""
    before, largest, there, kill_at = os.times(), 0, saved(folder), float("inf")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            time.sleep(POLL_SECONDS)
            largest = max(largest, size(folder))
            if kill_after is not None and kill_at == float("inf") and saved(folder) != there:
                kill_at = time.monotonic() + kill_after
            if time.monotonic() >= kill_at:
                process.kill()
    if process.returncode not in (0, -9):
        raise SystemExit(f"{' '.join(command)} failed: {process.returncode}")
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return process.returncode == 0, spent, largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["digits", "mnist_mlp", "mnist_lenet"])
    parser.add_argument("--after", type=float, default=4, help="seconds from a save to the kill")
    parser.add_argument("--kills", type=int, default=6, help="after so many it is left alone")
    parser.add_argument("--epochs", type=int)
    options = parser.parse_args()
    found: dict[str, object] = {"after": options.after, "epochs": options.epochs}
    digests = set()
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        program = [sys.executable, "-m", "onnxpq", "compress", *arguments(options.model, scratch)]
        program += [] if options.epochs is None else ["--epochs", str(options.epochs)]
        for name in ("alone", "kept", "killed"):
            target, work = scratch / f"{name}.onnx", scratch / f"work_{name}"
            command = [*program, "-o", str(target), *([] if name == "alone" else ["--work-dir", str(work)])]
            kills, spent, largest, done = 0, 0.0, 0, False
            while not done:
                kill_after = options.after if name == "killed" and kills < options.kills else None
                done, seconds, bytes_kept = run(command, work, kill_after)
                kills, spent, largest = kills + (not done), spent + seconds, max(largest, bytes_kept)
            digests.add(hashlib.sha256(target.read_bytes()).hexdigest())
            found[name] = {"cpu_seconds": round(spent, 1), "kills": kills, "largest": largest, "left": size(work)}
            print(f"{name}: {found[name]}", flush=True)
    found["same_file"] = len(digests) == 1
    print("the three files are the same" if found["same_file"] else f"THE FILES DIFFER: {digests}")
    RESULTS.add(found, options.model)
    sys.exit(not found["same_file"])

"""Random whole models through inspect and compress: what is wrong with their reports, and with the results.

    python -m benchmarks fuzz                # 10,000 models; an interrupted run goes on where it was
    python -m benchmarks fuzz --seed 4711    # one again, with all that is wrong with it

A run is a model, data and settings from one seed (`tests/fuzzing`). Each has a line in a file of the temporary folder
(`--log` names another); those that were wrong are run again by the next call. A run that takes longer than `LIMIT`
seconds is wrong, and so is one that ends the process: the next call finds it begun and not done.
"""

import argparse
import json
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import onnxruntime
import torch
from fuzzing import running

from benchmarks.common.store import Results

RESULTS = Results.of(__name__)
RUNS: Final = 10_000
LIMIT: Final = 300

Line = dict[str, Any]


class Hang(BaseException):
    """A run takes too long; no handler of exceptions on the way may catch it."""


@contextmanager
def limited(seconds: int) -> Iterator[None]:
    """Raises `Hang` in the block after so many seconds."""

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def one(seed: int) -> Line:
    """The line of a run."""
    try:
        with limited(LIMIT):
            return asdict(running.run(seed))
    except Hang:
        return {"seed": seed, "mode": "", "answer": "hang", "faults": [f"no end after {LIMIT} s"], "layers": 0}


def known(log: Path) -> dict[int, Line]:
    """The last line of each seed; of one that is begun and no more, that it ended the process."""
    found: dict[int, Line] = {}
    for text in log.read_text(encoding="utf-8").splitlines() if log.exists() else ():
        line = json.loads(text)
        if "begun" in line:
            seed = line["begun"]
            found[seed] = {"seed": seed, "mode": "", "answer": "crash", "faults": ["ended the process"], "layers": 0}
        else:
            found[line["seed"]] = line
    return found


def summary(lines: dict[int, Line]) -> dict[str, Any]:
    """What is stored of all runs."""
    answers: dict[str, Counter[str]] = {}
    for line in lines.values():
        answers.setdefault(line["mode"], Counter())[line["answer"]] += 1
    seconds = [line["seconds"] for line in lines.values() if "seconds" in line]
    return {
        "runs": len(lines),
        "layers": sum(line["layers"] for line in lines.values()),
        "wrong": sorted(seed for seed, line in lines.items() if line["faults"]),
        "answers": {mode: dict(sorted(found.items())) for mode, found in sorted(answers.items())},
        "mean seconds": round(sum(seconds) / max(1, len(seconds)), 2),
    }


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module's description."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, nargs="+", help="run these, print what is wrong, store nothing")
    parser.add_argument("--runs", type=int, default=RUNS)
    parser.add_argument("--log", type=Path, default=Path(tempfile.gettempdir(), "onnxpq-fuzz.jsonl"))
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    onnxruntime.set_default_logger_severity(4)
    if options.seed:
        found = {seed: one(seed) for seed in options.seed}
        for line in found.values():
            print(f"{line['seed']} ({line['mode']}): {line['answer']}", *line["faults"], sep="\n  ")
        return int(any(line["faults"] for line in found.values()))
    lines = known(options.log)
    with options.log.open("a", encoding="utf-8") as stream:
        for seed in range(options.runs):
            if seed in lines and not lines[seed]["faults"]:
                continue
            print(json.dumps({"begun": seed}), file=stream, flush=True)
            lines[seed] = one(seed)
            print(json.dumps(lines[seed]), file=stream, flush=True)
    found = summary(lines)
    RESULTS.replace(found)
    print(json.dumps(found, indent=1))
    return int(bool(found["wrong"]))


if __name__ == "__main__":
    raise SystemExit(main())

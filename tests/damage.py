"""Damages a model in many ways and sees what onnxpq does: load, find layers, import, run in torch and in onnxruntime.

    python tests/damage.py --cases 20000 --seed 1
    python tests/damage.py --cases 20000 --seed 1 --mapped    # as a large file, which is mapped

Every case has to end in an answer or in an `OnnxpqError`, in bounded time and memory. The number of the case is written
before it is tried, so that a crash shows which one it was.
"""

import argparse
import resource
import signal
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from onnxpq import rewriting, runtime
from onnxpq.data import datasets, input_specs
from onnxpq.errors import OnnxpqError
from onnxpq.graph import files
from onnxpq.graph.normalising import normalise
from onnxpq.network import importing

MODEL = Path(__file__).resolve().parent.parent / "models" / "digits_mlp.onnx"
SECONDS = 20
"""Of the processor for one case; a whole one takes some hundredths."""
MEMORY = 8 << 30
"""Bytes of address space, of which torch and onnxruntime take most before the first case."""


def damaged(content: bytes, structure: np.ndarray, case: int, seed: int) -> bytes:
    """Truncated, or a few flipped bits or overwritten bytes, mostly outside of the weights."""
    rng = np.random.default_rng([seed, case])
    changed = bytearray(content)
    if rng.random() < 0.1:
        return bytes(changed[: rng.integers(len(changed))])
    for _ in range(rng.integers(1, 6)):
        at = int(rng.choice(structure) if rng.random() < 0.9 else rng.integers(len(changed)))
        changed[at] = changed[at] ^ (1 << int(rng.integers(8))) if rng.random() < 0.6 else int(rng.integers(256))
    return bytes(changed)


def use(source: bytes | Path) -> None:
    """What compressing does with a model, but for the training."""
    model = files.load(source)
    rewriting.find(model)
    inputs = datasets.random_inputs(input_specs(model), 2, 0).inputs
    normal = normalise(model)
    runtime.run(runtime.session(model), inputs)
    importing.import_model(normal)({name: torch.from_numpy(array) for name, array in inputs.items()})


def plain_model() -> bytes:
    """The model with each weight as one run of bytes, as most exporters write them."""
    model = onnx.load(MODEL)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    return bytes(model.SerializeToString())


def structure_of(content: bytes) -> np.ndarray:
    """The positions of all bytes of a file that are not those of weights."""
    outside = np.ones(len(content), bool)
    for tensor in onnx.load_from_string(content).graph.initializer:
        if tensor.raw_data:
            start = content.index(tensor.raw_data)
            outside[start : start + len(tensor.raw_data)] = False
    return np.flatnonzero(outside)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mapped", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    content = plain_model()
    structure = structure_of(content)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    # Kills the process: C++ code would not return to Python. Time of the processor, whatever else the machine does.
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    used = refused = 0
    folder = tempfile.TemporaryDirectory()
    if options.mapped:
        files.LARGE_BYTES = 0
    for case in range(options.first, options.first + options.cases):
        sys.stdout.write(f"\rcase {case}")
        sys.stdout.flush()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        source: bytes | Path = damaged(content, structure, case, options.seed)
        if options.mapped:
            path = Path(folder.name, "damaged.onnx")
            path.write_bytes(source)
            source = path
        try:
            use(source)
            used += 1
        except OnnxpqError:
            refused += 1
        signal.setitimer(signal.ITIMER_PROF, 0)
    folder.cleanup()
    print(f"\n{used} used, {refused} refused, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024} MiB")


if __name__ == "__main__":
    main()

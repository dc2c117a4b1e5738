"""Peak memory of compressing models of more and more layers: what it takes beyond the model itself must not grow.

    python benchmarks/compress_memory.py [--layers 4 16 48] [--width 1024] [--epochs 0]

Each run is a process of its own; its peak is the resident set that the system counted. The model is a chain of square
layers in float32 with random weights, the data are random; with --epochs 0 they are clustered for the smallest error of
their outputs and not trained. Printed are MB = 10^6 bytes. Writes results/compress_memory.json.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

RESULTS = Path(__file__).parent / "results" / "compress_memory.json"
SAMPLES = 2048
KIB = 1024


def build(path: Path, layers: int, width: int) -> None:
    random = np.random.default_rng(0)
    nodes, weights = [], []
    for i in range(layers):
        values = (random.standard_normal((width, width)) * (2 / width) ** 0.5).astype(np.float32)
        weights.append(numpy_helper.from_array(values, f"w{i}"))
        nodes.append(helper.make_node("MatMul", [f"a{i}" if i else "x", f"w{i}"], [f"m{i}"], name=f"fc{i}"))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [f"a{i + 1}" if i < layers - 1 else "y"], name=f"act{i}"))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", width])
    graph = helper.make_graph(nodes, "chain", [x], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


def child(model: str, epochs: int, width: int) -> None:
    """Compress, and print the peak before and after it in bytes."""
    import onnxpq  # noqa: PLC0415 -- the parent needs neither
    from onnxpq import pipeline  # noqa: F401, PLC0415 -- what is loaded is not what is measured

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB
    data = {"x": np.random.default_rng(1).standard_normal((SAMPLES, width)).astype(np.float32)}
    config = onnxpq.Config(training=onnxpq.TrainingConfig(epochs=epochs))
    onnxpq.compress(model, data, config=config)
    print(json.dumps([before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB]))


def measure(layers: int, width: int, epochs: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "m.onnx")
        build(model, layers, width)
        command = [sys.executable, __file__, "--child", str(model), "--epochs", str(epochs), "--width", str(width)]
        before, peak = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
        size = model.stat().st_size
    return {"layers": layers, "model": size, "peak": peak - before, "ratio": (peak - before) / size}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 16, 48])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.epochs, options.width)
        return
    rows = []
    for layers in options.layers:
        row = measure(layers, options.width, options.epochs)
        rows.append(row)
        print(
            f"{layers:4d} layers: model {row['model'] / 1e6:7.1f} MB, peak {row['peak'] / 1e6:7.1f} MB above the start"
        )
    slope = (rows[-1]["peak"] - rows[0]["peak"]) / (rows[-1]["model"] - rows[0]["model"])
    print(f"each byte of model more takes {slope:.2f} bytes")
    RESULTS.write_text(
        json.dumps({"width": options.width, "epochs": options.epochs, "rows": rows, "slope": slope}, indent=1)
    )


if __name__ == "__main__":
    main()

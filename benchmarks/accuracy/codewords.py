"""What codewords of int8 add to the error of a weight, with 7 and with 8 bits and one scale for the layer.

It decides which layouts store float16 (`onnxpq.pq.layout.codebook_bytes`): where int8 adds much to an error that is
small. Layers: those of `models/`, quantized without data.
"""

import argparse
from typing import Any, Final

import torch

from benchmarks.common.processes import ROOT
from benchmarks.common.store import Results
from onnxpq import rewriting
from onnxpq.graph import files
from onnxpq.graph.normalising import normalise
from onnxpq.network import matrices
from onnxpq.pq import Layout, codec

RESULTS = Results.of(__name__)
MODELS: Final = ("digits_mlp", "mnist_lenet", "mnist_mlp", "cifar_vgg")
LAYOUTS: Final = ((8, 256), (4, 256), (4, 16), (2, 16), (2, 256), (1, 16), (1, 256))
"""d and K, by growing bits a weight."""
MAGNITUDES: Final = (64, 127)
ROWS: Final = 2048
"""Of a layer, so many rows are enough."""


def rows_of(matrix: torch.Tensor, d: int, codewords: int) -> dict[str, float]:
    """Error of a weight relative to it, and by how much each magnitude of int8 codewords makes it larger."""
    layout = Layout(matrix.shape[0], matrix.shape[1], d, codewords, 1)
    books, codes, scales = codec.encode(matrix, layout, generator=torch.Generator().manual_seed(0))

    def error(codebooks: torch.Tensor) -> float:
        return float((codec.decode(codebooks, codes, scales, layout) - matrix).norm() / matrix.norm())

    exact = error(books)
    row = {"error": round(exact, 4)}
    for magnitude in MAGNITUDES:
        step = books.abs().max() / magnitude
        row[f"{magnitude}"] = round(error((books / step).round() * step) / exact - 1, 4)
    return row


def table(rows: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A line for each layout: the mean error, and the largest increase with 7 and with 8 bits."""
    lines = ["| d, K | weight error | 7 bits add | 8 bits add |", "|---|---|---|---|"]
    for d, codewords in LAYOUTS:
        found = [own[f"{d}, {codewords}"] for own in rows.values() if f"{d}, {codewords}" in own]
        if found:
            mean = sum(row["error"] for row in found) / len(found)
            most = [max(100 * row[f"{magnitude}"] for row in found) for magnitude in MAGNITUDES]
            lines.append(f"| {d}, {codewords} | {mean:.3f} | {most[0]:.1f} % | {most[1]:.1f} % |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command line; see the module's description."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", action="store_true", help="only print the table")
    options = parser.parse_args(arguments)
    for name in () if options.table else MODELS:
        model = normalise(files.load(ROOT / "models" / f"{name}.onnx"))
        for layer in rewriting.find(model)[0]:
            matrix = matrices.weight(model, layer)[:ROWS]
            for d, codewords in LAYOUTS:
                # Fewer points than that are learned by heart.
                if matrix.numel() // d >= 8 * codewords:
                    RESULTS.add(rows_of(matrix, d, codewords), f"{name} {layer.node}", f"{d}, {codewords}")
    print(table(RESULTS.rows()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

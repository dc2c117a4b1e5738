"""What could be done with a model, without doing it: no torch, and onnxruntime only where ONNX's checker refuses it."""

from onnxpq import rewriting, runtime
from onnxpq.config import Config
from onnxpq.graph import files, opset
from onnxpq.quantization import allocation
from onnxpq.support.figures import LeftAlone, left_alone, table


def describe(model: files.Source, config: Config) -> str:
    """The layers that can be compressed and their sizes, and the other nodes with the reason, as text.

    Raises:
        ModelError: the model cannot be read.
        ConfigError: a setting does not fit the model.
    """
    loaded, notes, _ = files.read(model, runtime.refusal)
    layers, skipped = rewriting.find_by(loaded, config)
    total = files.tensor_bytes(loaded)
    lines = [f"{total:,} bytes of constants, opset {opset(loaded)}, IR version {loaded.ir_version}", ""]
    if layers:
        layouts = allocation.layouts(layers, config)
        head = ("layer", "operator", "weight", "out x in", "d", "K", "G", "bytes", "compressed")
        rows, saved = [head], 0
        seen: set[tuple[str, str]] = set()
        for layer in layers:
            layout = layouts[layer.weight]
            before = layer.weight_bytes
            shared = (layer.weight, layer.place) in seen
            saved -= 0 if shared else layout.nbytes
            saved += 0 if any(layer.weight == weight for weight, _ in seen) else before
            seen.add((layer.weight, layer.place))
            size = f"{layer.out_features} x {layer.in_features}"
            counted = ("shared", "shared") if shared else (str(before), str(layout.nbytes))
            cut = (str(layout.sub_vector), str(layout.codewords), str(layout.groups))
            rows.append((layer.node, layer.op_type, layer.weight, size, *cut, *counted))
        lines += ["Can be compressed", table(rows), "", f"Constants after compression: about {total - saved:,} bytes"]
    else:
        lines.append("No layer can be compressed.")
    lines += ["", *(f"Note: {note}" for note in notes)] if notes else []
    if skipped:
        lines += ["", left_alone(LeftAlone(entry.node, entry.op_type, entry.reason, entry.nbytes) for entry in skipped)]
    return "\n".join(lines)

"""What the stages tell each other about a layer: plain records, no behaviour beyond their names.

Letters used everywhere: `out`, `in` sizes of the layer; `d` sub-vector length; `M = ceil(in/d)` sub-vectors;
`K` codewords; `G` codebook groups (G = M: one codebook per sub-vector position; G = 1: one for the layer);
`R` additive stages.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from onnxpq.support.kinds import FULLY_CONNECTED, TABLE


@dataclass(frozen=True)
class Layer:
    """A weight that can be compressed: a fully-connected layer's, a table's, or what else a node takes.

    Attributes:
        node: name of the node in the user's file (its first output's name where the node has none).
        op_type: the ONNX operator that computes it, e.g. "Gemm".
        weight: name of the constant that is the weight: an initializer of the normalised model
            (`onnxpq.graph.normalising.normalise`); in the user's file maybe a value that is cut out of one.
        out_features: `out`; for a stack of matrices, of all of them together.
        in_features: `in`.
        weight_is_in_out: the constant has shape [..., in, out] (MatMul, Gemm transB=0), not [..., out, in].
        bias: name of the bias' constant, where the layer has a constant one.
        weight_bytes: bytes of the weight in the type that the model stores it in.
        place: the subgraph that the node lies in, e.g. "choice.then_branch"; empty for the main graph.
        kind: one of `onnxpq.support.kinds`. A convolution with a kernel of one point may be "fc", over its channels.
        input_bytes: what brings its inputs to one scale and into the order in which they quantize well
            (`onnxpq.quantization.arranging`); the first of the layers that share it counts it.
    """

    node: str
    op_type: str
    weight: str
    out_features: int
    in_features: int
    weight_is_in_out: bool
    bias: str | None
    weight_bytes: int = 0
    place: str = ""
    kind: str = FULLY_CONNECTED
    input_bytes: int = field(default=0, compare=False)

    @property
    def is_table(self) -> bool:
        """Whether its rows are looked up (Gather), not multiplied by."""
        return self.kind == TABLE


def tables(layers: Iterable[Layer]) -> frozenset[str]:
    """The weights that are looked up and that no layer multiplies by, by name."""
    known = list(layers)
    return frozenset(layer.weight for layer in known) - {layer.weight for layer in known if not layer.is_table}


@dataclass(frozen=True)
class Skipped:
    """A node with a constant weight that is left as it is, and why (a whole sentence).

    Attributes:
        node: its name, as of a layer.
        op_type: its operator.
        weight: name of the constant.
        reason: a sentence.
        nbytes: of all its constants in the file, without those that a node before it counts or that become codes.
    """

    node: str
    op_type: str
    weight: str | None
    reason: str
    nbytes: int = field(default=0, compare=False)

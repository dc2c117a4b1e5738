"""Writing compressed weights into an ONNX model, in standard operators: constants, and nodes that decode them.

Every number that a comparator stores is a float16 or a code of 1, 2, 4 or 8 bits, so that no method is charged for
bytes that it does not need. onnxruntime computes the decoded weights once, when it loads the model.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxpq.graph.layers import Layer

CODE_BITS: Final = (1, 2, 4, 8)
MIN_OPSET: Final = 13
"""Slice, Range, Mod and integer Div as used here, and axes as inputs."""


class Builder:
    """Puts other forms in the place of weights of a model that it changes.

    Attributes:
        model: the model.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        opset = next(entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
        if opset < MIN_OPSET:
            raise SystemExit(f"The model has opset {opset}; the benchmark's comparators need {MIN_OPSET} or newer.")
        self.model = model
        self._first: list[onnx.NodeProto] = []
        self._before: dict[str, list[onnx.NodeProto]] = {}
        self._count = 0

    def constant(self, array: NDArray[np.generic]) -> str:
        """A new initializer; its name."""
        name = self._name("constant")
        # Not `ascontiguousarray`, which makes a vector of a scalar.
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))
        return name

    def integers(self, *numbers: int) -> str:
        """A new int64 initializer [n]."""
        return self.constant(np.array(numbers, np.int64))

    def floats(self, array: NDArray[np.floating]) -> str:
        """Numbers stored as float16, decoded to float32."""
        return self.node("Cast", self.constant(array.astype(np.float16)), to=TensorProto.FLOAT)

    def node(self, op_type: str, *inputs: str, **attributes: object) -> str:
        """A new node before all others; the name of its output."""
        name = self._name(op_type)
        self._first.append(helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name

    def codes(self, codes: NDArray[np.integer], codewords: int) -> str:
        """Codes of any shape, packed into bytes; decoded to int64 of that shape."""
        bits = code_bits(codewords)
        wide = self.node("Cast", self.constant(pack(codes.reshape(-1), bits)), to=TensorProto.INT64)
        if bits < 8:
            places = [2 ** (bits * place) for place in range(8 // bits)]
            column = self.node("Reshape", wide, self.integers(-1, 1))
            shifted = self.node("Div", column, self.integers(*places))
            digits = self.node("Mod", shifted, self.integers(2**bits))
            flat = self.node("Reshape", digits, self.integers(-1))
            wide = self.node("Slice", flat, self.integers(0), self.integers(codes.size))
        return self.node("Reshape", wide, self.integers(*codes.shape))

    def range_of(self, count: int) -> str:
        """0, 1, ..., count - 1 as int64."""
        start, limit, delta = (self.constant(np.array(number, np.int64)) for number in (0, count, 1))
        return self.node("Range", start, limit, delta)

    def redefine(self, layer: Layer, matrix: str) -> None:
        """Let the value `matrix` [out, in] be the layer's weight."""
        self.remove(layer.weight)
        last = "Transpose" if layer.weight_is_in_out else "Identity"
        self._first.append(helper.make_node(last, [matrix], [layer.weight], name=self._name("weight")))

    def factorize(self, layer: Layer, first: str, second: NDArray[np.floating]) -> None:
        """Let the layer's input pass a MatMul by the value `first` [in, rank], then the weight `second` [out, rank]."""
        node = next(node for node in self.model.graph.node if layer.weight in node.input)
        if any(attribute.name == "transA" and attribute.i for attribute in node.attribute):
            raise SystemExit(f"Node '{node.name}' transposes its input: the benchmark cannot factorize it.")
        narrow = self._name("narrow")
        product = helper.make_node("MatMul", [node.input[0], first], [narrow], name=narrow)
        self._before.setdefault(node.output[0], []).append(product)
        node.input[0] = narrow
        self.redefine(layer, self.floats(second))

    def replace(self, name: str, array: NDArray[np.generic]) -> None:
        """Another value for an initializer."""
        self.remove(name)
        self.model.graph.initializer.append(numpy_helper.from_array(np.asarray(array, order="C"), name))

    def remove(self, name: str) -> None:
        """Take an initializer out."""
        graph = self.model.graph
        graph.initializer.remove(next(tensor for tensor in graph.initializer if tensor.name == name))

    def finish(self) -> bytes:
        """The file's content; the model is checked first."""
        graph = self.model.graph
        nodes = list(self._first)
        for node in graph.node:
            nodes += [*self._before.get(node.output[0], []), node]
        kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(kept)
        # Shapes between layers may have changed.
        del graph.value_info[:]
        onnx.checker.check_model(self.model, full_check=True)
        return self.model.SerializeToString()

    def _name(self, kind: str) -> str:
        self._count += 1
        return f"paper.{kind}.{self._count}"


def code_bits(codewords: int) -> int:
    """Bits that a file spends on a code: the least of `CODE_BITS` that holds it."""
    return next(bits for bits in CODE_BITS if codewords <= 2**bits)


def pack(codes: NDArray[np.integer], bits: int) -> NDArray[np.uint8]:
    """Codes [n] below 2**bits in ceil(n * bits / 8) bytes, the first in the lowest bits."""
    per_byte = 8 // bits
    padded = np.zeros(-(-len(codes) // per_byte) * per_byte, np.uint8)
    padded[: len(codes)] = codes
    places = (padded.reshape(-1, per_byte) << (bits * np.arange(per_byte, dtype=np.uint8))).astype(np.uint8)
    return np.bitwise_or.reduce(places, axis=1)


def packed_bytes(count: int, codewords: int) -> int:
    """Bytes that so many codes take."""
    return -(-count * code_bits(codewords) // 8)


def model_bytes(model: onnx.ModelProto) -> int:
    """Bytes of all constants of a model's main graph, as its file holds them."""
    return sum(tensor_bytes(tensor) for tensor in model.graph.initializer)


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes of a constant; types of less than a byte count by their bits."""
    count = int(np.prod(tensor.dims, dtype=np.int64))
    small: Sequence[int] = (TensorProto.UINT4, TensorProto.INT4)
    if tensor.data_type in small:
        return -(-count // 2)
    return count * helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize

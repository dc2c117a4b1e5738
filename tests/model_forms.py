"""The forms in which exporters write a fully-connected layer, and those of its relatives, each as a small model.

Every model takes ``x`` and gives ``y``. `FORMS` says of each what becomes of it: how many layers are compressed, or a
part of the reason why none is.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

IN, OUT = 96, 160
OPSET, IR_VERSION = 17, 8


@dataclass(frozen=True)
class Form:
    """One form.

    Attributes:
        text: the model in ONNX's text form, without the tensors.
        tensors: initializers; a shape stands for random float32 values.
        layers: nodes that are compressed.
        reason: part of the sentence why nothing is, where `layers` is empty.
        x: shape of the input.
        opset: of ai.onnx.
        ir_version: of the model.
        functions: local functions in ONNX's text form, with the domains "local" and com.microsoft imported.
        settings: of `onnxpq.Config`.
        runs: whether onnxruntime runs the form on a CPU.
        expose: names of initializers that are graph inputs as well.
        inner: names of initializers that belong to the subgraph that uses them.
    """

    text: str
    tensors: Mapping[str, NDArray[Any] | tuple[int, ...]]
    layers: tuple[str, ...] = ()
    reason: str = ""
    x: tuple[int, ...] = (5, IN)
    opset: int = OPSET
    ir_version: int = IR_VERSION
    functions: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    runs: bool = True
    expose: tuple[str, ...] = ()
    inner: tuple[str, ...] = ()

    def model(self) -> onnx.ModelProto:
        """The model."""
        domains = f'"" : {self.opset}, "com.microsoft" : 1, "local" : 1'
        head = f"<ir_version: {self.ir_version}, opset_import: [{domains}]>"
        proto = onnx.parser.parse_model(f"{head}\nform {self.text}\n{self.functions}")
        for name, value in self.tensors.items():
            array = weight(*value, seed=len(name)) if isinstance(value, tuple) else value
            proto.graph.initializer.append(numpy_helper.from_array(array, name))
            if name in self.inner:
                _subgraph_that_uses(proto, name).initializer.append(proto.graph.initializer.pop())
            if name in self.expose:
                proto.graph.input.append(
                    onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, list(array.shape))
                )
        return proto

    def inputs(self, *, seed: int = 0, rows: int | None = None) -> dict[str, NDArray[Any]]:
        """Random data for ``x``, and for what else the model takes."""
        rng = np.random.default_rng(seed)
        shape = self.x if rows is None else (rows, *self.x[1:])
        if "int64[N" in self.text.split("=>", maxsplit=1)[0]:
            return {"x": rng.integers(0, OUT, shape)}
        return {"x": rng.standard_normal(shape).astype(np.float32)}


def _subgraph_that_uses(model: onnx.ModelProto, name: str) -> onnx.GraphProto:
    graphs = [attribute.g for node in model.graph.node for attribute in node.attribute if attribute.HasField("g")]
    return next(graph for graph in graphs if any(name in node.input for node in graph.node))


def weight(*shape: int, seed: int = 0, dtype: Any = np.float32) -> NDArray[Any]:
    """A random weight, scaled so that outputs are of the size of inputs."""
    values = np.random.default_rng(seed).standard_normal(shape) / np.sqrt(shape[0] if len(shape) == 2 else IN)
    return values.astype(dtype)


def integers(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


def _dense(body: str, **tensors: NDArray[Any] | tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    return f"(float[N,{IN}] x) => (float[N,{OUT}] y) {{ {body} }}", dict(tensors)


def _two(body: str, **tensors: NDArray[Any] | tuple[int, ...]) -> tuple[str, dict[str, Any]]:
    return f"(float[N,{IN}] x) => (float[N,{IN}] y) {{ {body} }}", dict(tensors)


def _constant_node() -> tuple[str, dict[str, Any]]:
    numbers = ", ".join(f"{number:.6g}" for number in weight(IN, OUT).reshape(-1))
    return _dense(f"w = Constant<value = float[{IN},{OUT}] {{{numbers}}}>() [fc] y = MatMul(x, w)")


def _typed(dtype: Any, number: int) -> tuple[str, dict[str, Any]]:
    return _dense(
        f"h = Cast<to = {number}>(x) [fc] p = MatMul(h, w) q = Add(p, b) y = Cast<to = 1>(q)",
        w=weight(IN, OUT, dtype=dtype),
        b=weight(OUT, seed=2, dtype=dtype),
    )


def _if(then: str, other: str, *, outer: str = "", **tensors: Any) -> tuple[str, dict[str, Any]]:
    sub = (
        f"then_branch = a () => (float[N,{OUT}] p) {{ {then} }}, else_branch = b () => (float[N,{OUT}] q) {{ {other} }}"
    )
    text = f"{outer} s = ReduceSum<keepdims = 0>(x) c = Greater(s, zero) [choice] y = If(c) <{sub}>"
    return _dense(text, zero=np.array(0, np.float32), **tensors)


def _loop() -> tuple[str, dict[str, Any]]:
    body = """again = Identity(c) [fc] p = MatMul(h, w) r = Tanh(p)"""
    sub = f"body = step (int64 i, bool c, float[N,{IN}] h) => (bool again, float[N,{IN}] r) {{ {body} }}"
    return _two(f"[loop] y = Loop(times, yes, x) <{sub}>", times=np.array(3), yes=np.array(True), w=(IN, IN))


def _scan() -> tuple[str, dict[str, Any]]:
    body = "[fc] p = MatMul(h, w) a = Add(p, e) k = Tanh(a) o = Identity(k)"
    row = f"float[N,{IN}]"
    sub = f"body = step ({row} h, {row} e) => ({row} k, {row} o) {{ {body} }}"
    text = f"""(float[N,4,{IN}] x) => (float[N,{IN}] y, float[N,4,{IN}] all) {{
        start = ReduceMean<axes = [1], keepdims = 0>(x)
        [scan] y, all = Scan(start, x) <num_scan_inputs = 1, scan_input_axes = [1], scan_output_axes = [1], {sub}>
    }}"""
    return text, {"w": (IN, IN)}


def _conv(attributes: str = "", height: int = 7, width: int | None = None) -> tuple[str, dict[str, Any]]:
    types = f"(float[N,{IN},7,7] x) => (float[N,{OUT},{height},{width or height}] y)"
    text = f"{types} {{ [fc] y = Conv{attributes}(x, w, b) }}"
    return text, {"w": weight(OUT, IN, 1, 1), "b": (OUT,)}


def _quantized(body: str) -> tuple[str, dict[str, Any]]:
    codes = np.random.default_rng(0).integers(-127, 128, (IN, OUT)).astype(np.int8)
    return _dense(f"{body} [fc] y = MatMul(x, v)", w=codes, s=np.array(0.01, np.float32))


_FUNCTION = """<domain: "local", opset_import: ["" : 17]>
dense (h, w, b) => (r) { [fc] p = MatMul(h, w) [add] r = Add(p, b) }"""
_CALLER = (
    _FUNCTION
    + """
<domain: "local", opset_import: ["" : 17, "local" : 1]>
block (h, w, b) => (r) { d = local.dense(h, w, b) r = Relu(d) }"""
)

FC, CONV, TABLES = ("fc",), {"conv1x1": True}, {"tables": True}


def only(kind: str) -> dict[str, Any]:
    """Settings for one kind of weights."""
    return {"only": (kind,)}


_LOOKUP = (f"(int64[N,3] x) => (float[N,3,{IN}] y) {{ [fc] y = Gather(w, x) }}", {"w": (OUT, IN)})
_FLOAT16, _BFLOAT16, _DOUBLE = (np.float16, 10), (ml_dtypes.bfloat16, 16), (np.float64, 11)

FORMS: dict[str, Form] = {
    # The twelve.
    "MatMul": Form(*_dense("[fc] y = MatMul(x, w)", w=(IN, OUT)), FC),
    "Gemm, transB": Form(*_dense("[fc] y = Gemm<transB = 1>(x, w, b)", w=(OUT, IN), b=(OUT,)), FC),
    "float16": Form(*_typed(*_FLOAT16), FC),
    "bfloat16": Form(*_typed(*_BFLOAT16), FC, runs=False),
    "weight in a Constant node": Form(*_constant_node(), FC),
    "weight -> Transpose": Form(*_dense("t = Transpose<perm = [1, 0]>(w) [fc] y = MatMul(x, t)", w=(OUT, IN)), FC),
    "inside a local function": Form(
        *_dense("y = local.dense(x, w, b)", w=(IN, OUT), b=(OUT,)), FC, functions=_FUNCTION
    ),
    "inside If branches": Form(
        *_if("[one] p = MatMul(x, v)", "[two] q = Gemm<transB = 1>(x, w, b)", v=(IN, OUT), w=(OUT, IN), b=(OUT,)),
        ("one", "two"),
    ),
    "3-D weight (batched MatMul)": Form(
        f"(float[4,N,{IN}] x) => (float[4,N,{OUT}] y) {{ [fc] y = MatMul(x, w) }}",
        {"w": (4, IN, OUT)},
        FC,
        x=(4, 5, IN),
    ),
    "one weight in two MatMuls": Form(
        *_two("[one] h = MatMul(x, w) r = Relu(h) [two] y = MatMul(r, w)", w=(IN, IN)), ("one", "two")
    ),
    "Conv 1x1": Form(*_conv(), reason="--conv1x1 takes it", x=(2, IN, 7, 7)),
    "Gather (embedding)": Form(*_LOOKUP, reason="--tables takes it", x=(5, 3)),
    # More of the same.
    "MatMul + Add": Form(*_dense("[fc] p = MatMul(x, w) y = Add(b, p)", w=(IN, OUT), b=(OUT,)), FC),
    "Gemm, alpha, beta, transA": Form(
        *_dense(
            "t = Transpose(x) [fc] y = Gemm<alpha = 0.5, beta = 2.0, transA = 1>(t, w, c)", w=(IN, OUT), c=(1, OUT)
        ),
        FC,
    ),
    "weight on the left": Form(
        f"(float[{IN},N] x) => (float[{OUT},N] y) {{ [fc] y = MatMul(w, x) }}", {"w": (OUT, IN)}, FC, x=(IN, 5)
    ),
    "double": Form(*_typed(*_DOUBLE), FC),
    "bfloat16 weight -> Cast": Form(
        *_dense("v = Cast<to = 1>(w) [fc] y = MatMul(x, v)", w=weight(IN, OUT, dtype=ml_dtypes.bfloat16)), FC
    ),
    "float16 weight -> Cast": Form(
        *_dense("v = Cast<to = 1>(w) [fc] y = MatMul(x, v)", w=weight(IN, OUT, dtype=np.float16)), FC
    ),
    "float16, opset 13": Form(*_typed(*_FLOAT16), FC, opset=13),
    "weight -> Reshape": Form(
        *_dense("v = Reshape(w, s) [fc] y = MatMul(x, v)", w=(2, IN // 2, OUT), s=integers(IN, OUT)), FC
    ),
    "weight -> Unsqueeze, Transpose, Squeeze": Form(
        *_dense(
            "u = Unsqueeze(w, a) t = Transpose<perm = [0, 2, 1]>(u) v = Squeeze(t, a) [fc] y = MatMul(x, v)",
            w=(OUT, IN),
            a=integers(0),
        ),
        FC,
    ),
    "weight -> Split": Form(
        *_dense(
            "q, k = Split<axis = 1>(w, s) [one] a = MatMul(x, q) [two] b = MatMul(x, k) y = Concat<axis = 1>(a, b)",
            w=(IN, OUT),
            s=integers(64, OUT - 64),
        ),
        ("one", "two"),
    ),
    "weight -> Slice": Form(
        *_dense(
            "p = Slice(w, z, h, a) q = Slice(w, h, e, a) [one] f = MatMul(x, p) [two] g = MatMul(x, q) y = Add(f, g)",
            w=(IN, 2 * OUT),
            z=integers(0),
            h=integers(OUT),
            e=integers(2**62),
            a=integers(1),
        ),
        ("one", "two"),
    ),
    "part of a weight that stays": Form(
        *_dense(
            "p = Slice(w, z, h, a) r = ReduceSum<keepdims = 0>(w) [fc] f = MatMul(x, p) y = Add(f, r)",
            w=(IN, 2 * OUT),
            z=integers(0),
            h=integers(OUT),
            a=integers(1),
        ),
        reason="the weight would stay in the file",
    ),
    "initializers are graph inputs, IR 3": Form(
        *_dense("[fc] y = MatMul(x, w)", w=(IN, OUT)), FC, opset=8, ir_version=3, expose=("w",)
    ),
    "initializers are graph inputs, IR 8": Form(
        *_dense("[fc] y = MatMul(x, w)", w=(IN, OUT)), reason="is a graph input too", expose=("w",)
    ),
    "inside two functions": Form(
        *_two("h = local.block(x, w, b) y = local.block(h, v, b)", w=(IN, IN), v=weight(IN, IN, seed=9), b=(IN,)),
        ("fc", "fc_2"),
        functions=_CALLER,
    ),
    "weights that belong to the branches": Form(
        *_if("[one] p = MatMul(x, v)", "[two] q = MatMul(x, w)", v=(IN, OUT), w=weight(IN, OUT, seed=9)),
        ("one", "two"),
        inner=("v", "w"),
    ),
    "weight of the main graph and a branch": Form(
        *_if("[one] p = MatMul(x, w)", "[two] q = MatMul(z, w)", w=(IN, OUT), outer="z = MatMul(x, v)", v=(IN, IN)),
        ("z", "one", "two"),
    ),
    "inside a Loop": Form(*_loop(), FC),
    "inside a Scan": Form(*_scan(), FC, x=(5, 4, IN)),
    "3-D weight, one matrix": Form(
        f"(float[N,3,{IN}] x) => (float[N,3,{OUT}] y) {{ [fc] y = MatMul(x, w) }}",
        {"w": (1, IN, OUT)},
        FC,
        x=(2, 3, IN),
    ),
    "3-D weight, 2-D input": Form(
        f"(float[N,{IN}] x) => (float[4,N,{OUT}] y) {{ [fc] y = MatMul(x, w) }}",
        {"w": (4, IN, OUT)},
        reason="more axes than its input",
    ),
    "3-D weight of 65 matrices": Form(
        f"(float[65,N,{IN}] x) => (float[65,N,32] y) {{ [fc] y = MatMul(x, w) }}",
        {"w": (65, IN, 32)},
        reason="65 matrices, more than the 64",
        x=(65, 5, IN),
    ),
    "Conv 1x1, --conv1x1": Form(*_conv(), FC, x=(2, IN, 7, 7), settings=CONV),
    "Conv 1x1, strides, --conv1x1": Form(*_conv("<strides = [2, 2]>", 4), FC, x=(2, IN, 7, 7), settings=CONV),
    "Conv 1x1, pads, --conv1x1": Form(*_conv("<pads = [1, 1, 1, 1]>", 9), FC, x=(2, IN, 7, 7), settings=CONV),
    "Conv 1x1, pads and strides, opset 9, --conv1x1": Form(
        *_conv("<pads = [1, 0, 0, 2], strides = [2, 3]>", 4, 3), FC, x=(2, IN, 7, 7), opset=9, settings=CONV
    ),
    "Gather, --tables": Form(*_LOOKUP, FC, x=(5, 3), settings=TABLES),
    "Gather, tied to a MatMul, --tables": Form(
        f"(int64[N,3] x) => (float[N,3,{OUT}] y) {{ [one] h = Gather(w, x) t = Transpose(w) [two] y = MatMul(h, t) }}",
        {"w": (OUT, IN)},
        ("one", "two"),
        x=(5, 3),
        settings=TABLES,
    ),
    "Conv 3x3": Form(
        f"(float[N,{IN},7,7] x) => (float[N,{OUT},5,5] y) {{ [fc] y = Conv(x, w) }}",
        {"w": weight(OUT, IN, 3, 3)},
        reason="is a convolution. --only conv takes it",
        x=(2, IN, 7, 7),
    ),
    "FusedMatMul": Form(*_dense("[fc] y = com.microsoft.FusedMatMul<transB = 1, alpha = 0.5>(x, w)", w=(OUT, IN)), FC),
    "FusedGemm": Form(
        *_dense('[fc] y = com.microsoft.FusedGemm<activation = "Relu">(x, w, b)', w=(IN, OUT), b=(OUT,)), FC
    ),
    "Einsum": Form(*_dense('[fc] y = Einsum<equation = "ni,io->no">(x, w)', w=(IN, OUT)), FC),
    "Einsum, weight first": Form(*_dense('[fc] y = Einsum<equation = "oi, ni -> no">(w, x)', w=(OUT, IN)), FC),
    "Einsum, any leading axes": Form(
        f"""(float[N,3,{IN}] x) => (float[N,3,{OUT}] y) {{ [fc] y = Einsum<equation = "...i,io->...o">(x, w) }}""",
        {"w": (IN, OUT)},
        FC,
        x=(5, 3, IN),
    ),
    "Einsum, to heads and back": Form(
        f"""(float[N,3,{IN}] x) => (float[N,3,{IN}] y) {{
            [one] h = Einsum<equation = "btd,dnh->bnth">(x, w)
            r = Tanh(h)
            [two] y = Einsum<equation = "bnth,nhd->btd">(r, v)
        }}""",
        {"w": weight(IN, 4, 24), "v": weight(4, 24, IN, seed=3)},
        ("one", "two"),
        x=(5, 3, IN),
    ),
    "Einsum, a matrix for each head": Form(
        f"""(float[N,4,{IN}] x) => (float[N,4,32] y) {{ [fc] y = Einsum<equation = "bni,nio->bno">(x, w) }}""",
        {"w": weight(4, IN, 32)},
        reason="--only other takes it",
        x=(5, 4, IN),
    ),
    "tied embedding": Form(
        f"""(int64[N,3] x) => (float[N,3,{OUT}] y) {{
            e = Gather(w, x) h = Tanh(e) t = Transpose<perm = [1, 0]>(w) [fc] y = MatMul(h, t)
        }}""",
        {"w": (OUT, IN)},
        reason="is used by node 'e' (Gather) too",
        x=(5, 3),
    ),
    "matrix and its transpose": Form(
        *_two("[one] h = MatMul(x, w) r = Tanh(h) [two] y = Gemm<transB = 1>(r, w)", w=(IN, OUT)),
        reason="is used as it is and transposed",
    ),
    "int8 -> DequantizeLinear": Form(*_quantized("v = DequantizeLinear(w, s)"), reason="quantized already (INT8)"),
    "int8 -> Cast -> Mul": Form(*_quantized("c = Cast<to = 1>(w) v = Mul(c, s)"), reason="quantized already (INT8)"),
    "weight -> Abs": Form(*_dense("v = Abs(w) [fc] y = MatMul(x, v)", w=(IN, OUT)), reason="computes other numbers"),
    "LSTM": Form(
        f"(float[3,N,{IN}] x) => (float[3,1,N,40] y) {{ [fc] y, h, c = LSTM<hidden_size = 40>(x, w, r) }}",
        {"w": (1, 160, IN), "r": (1, 160, 40)},
        reason="It is a recurrent layer. --only recurrent takes it",
        x=(3, 5, IN),
    ),
    "Conv 3x3, --only conv": Form(
        f"(float[N,{IN},7,7] x) => (float[N,{OUT},7,7] y) {{ [fc] y = Conv<pads = [1, 1, 1, 1]>(x, w, b) }}",
        {"w": weight(OUT, IN, 3, 3), "b": (OUT,)},
        FC,
        x=(2, IN, 7, 7),
        settings=only("conv"),
    ),
    "Conv of groups, 1-D, opset 9, --only conv": Form(
        f"(float[N,{IN},9] x) => (float[N,{OUT},7] y) {{ [fc] y = Conv<group = 2>(x, w) }}",
        {"w": weight(OUT, IN // 2, 3)},
        FC,
        x=(2, IN, 9),
        opset=9,
        settings=only("conv"),
    ),
    "ConvTranspose, --only conv": Form(
        f"(float[N,{IN},4,4] x) => (float[N,20,9,9] y) {{ [fc] y = ConvTranspose<strides = [2, 2]>(x, w) }}",
        {"w": weight(IN, 20, 3, 3)},
        FC,
        x=(2, IN, 4, 4),
        settings=only("conv"),
    ),
    "LSTM, --only recurrent": Form(
        f"(float[3,N,{IN}] x) => (float[3,1,N,40] y) {{ [fc] y, h, c = LSTM<hidden_size = 40>(x, w, r) }}",
        {"w": (1, 160, IN), "r": (1, 160, 40)},
        ("fc", "fc"),
        x=(3, 5, IN),
        settings=only("recurrent"),
    ),
    "GRU both ways, --only recurrent": Form(
        f"(float[3,N,{IN}] x) => (float[3,2,N,40] y) {{"
        ' [fc] y, h = GRU<hidden_size = 40, direction = "bidirectional">(x, w, r) }',
        {"w": (2, 120, IN), "r": (2, 120, 40)},
        ("fc", "fc"),
        x=(3, 5, IN),
        settings=only("recurrent"),
    ),
}

"""The custom operators as data: what Python writes into a file and C++ reads from it.

``onnxpq::PQMatMul``, version 1, computes a fully-connected layer whose weight is product-quantized:

    Y[..., o] = bias[o] + scales[o] * sum_m < X[..., m*d : (m+1)*d], sum_r C[r, g(m), code[o, r, m], :] >

with ``g(m) = m // ceil(M / G)`` and ``M = ceil(in / d)``; where ``d`` does not divide ``in``, X counts as
padded with zeros.

=========== ===================================== ==============================================================
input       shape, type                           content
=========== ===================================== ==============================================================
X           [..., in] float32 or float16          the layer's input; Y has its type, sums are float32
codebooks   [R, G, K, d] int8, float16, float32   codewords, one per row; 2 <= K <= 256
codes       [B, S, 16] uint8, S = R*M             see below
scales      [out] float16 or float32              one factor per output
bias        [out] float16 or float32              zeros where the layer has none
=========== ===================================== ==============================================================

The last four are constants. ``codes`` is stored in the order in which the kernels read it: one unit of 16 bytes holds
the codes of one sub-vector (index ``r*M + m``) for a block of consecutive outputs.

* K <= 16, two codes a byte: blocks of 32 outputs, ``B = ceil(out/32)``; byte i of a unit holds output i of the
  block in its low nibble and output i + 16 in its high nibble.
* K > 16, one code a byte: blocks of 16 outputs, ``B = ceil(out/16)``; byte i is output i of the block.

Codes of outputs past ``out`` are zero.

``onnxpq::PQDynamicQuantizeMatMul`` computes the same from the same inputs, and the library's kernel is the same. Only
its body differs: it multiplies in int8, as onnxruntime's DynamicQuantizeMatMul does, and needs int8 codebooks of 7 bits
(`MAX_MAGNITUDE`).

``onnxpq::PQGather``, version 1, looks rows of such a matrix up, as Gather along the first axis does: Y[..., :] is row
``rows[...]`` of the weight, where rows are int32 or int64 and negative ones count from the end. Its other inputs are
``codebooks``, ``codes`` and ``scales``, stored as above (so that a table which a layer multiplies by too is stored
once), and Y is float32. Only the rows that are asked for are decoded.

``onnxpq::PQConv`` is Conv, whose kernel [out, C, ...] is such a matrix of one row for each output; its inputs are those
of PQMatMul, the bias in X's type or left out. ``onnxpq::PQWeight`` (codebooks, codes, scales) is the constant itself in
its own shape, for nodes that take it as they would take any: recurrent layers, what enters a loop. Both are functions
only, so that runtimes decode once and then run what they always ran; PQConv may get a kernel.

``onnxpq::PQDecode`` (codebooks, codes) is what the bodies have in common: the matrix [out, in] before its scales, in
the codebooks' type. It is a function only: the library has no operator of this name, so that runtimes compute it once.

The kernels read one attribute each, ``fast`` and ``columns``; all other sizes follow from the shapes. The other
attributes serve the function bodies that stock runtimes use (`onnxpq.operators.body`); they are tensors because
``Constant(value=...)`` by reference works in every opset, where ``Constant(value_ints=...)`` needs opset 12.
"""

from typing import Final

DOMAIN: Final = "onnxpq"
OP_TYPE: Final = "PQMatMul"
VERSION: Final = 1

INTEGER_OP_TYPE: Final = "PQDynamicQuantizeMatMul"
LOOKUP_OP_TYPE: Final = "PQGather"
CONV_OP_TYPE: Final = "PQConv"
WEIGHT_OP_TYPE: Final = "PQWeight"
DECODE_OP_TYPE: Final = "PQDecode"

MATMUL_OP_TYPES: Final = (OP_TYPE, INTEGER_OP_TYPE)
KERNEL_OP_TYPES: Final = (*MATMUL_OP_TYPES, LOOKUP_OP_TYPE)
"""Those that the operator library has."""

OP_TYPES: Final = (*KERNEL_OP_TYPES, CONV_OP_TYPE, WEIGHT_OP_TYPE)
"""Those that a model's graphs may have."""

INPUTS: Final = ("X", "codebooks", "codes", "scales", "bias")
LOOKUP_INPUTS: Final = ("rows", "codebooks", "codes", "scales")
DECODE_INPUTS: Final = ("codebooks", "codes")
OUTPUTS: Final = ("Y",)
CODEBOOKS_RANK: Final = 4
WEIGHT_INPUTS: Final = ("codebooks", "codes", "scales")
INPUTS_OF: Final = {
    OP_TYPE: INPUTS,
    INTEGER_OP_TYPE: INPUTS,
    CONV_OP_TYPE: INPUTS,
    LOOKUP_OP_TYPE: LOOKUP_INPUTS,
    WEIGHT_OP_TYPE: WEIGHT_INPUTS,
    DECODE_OP_TYPE: DECODE_INPUTS,
}
"""By operator. The bias of PQConv may be missing."""

UNIT_BYTES: Final = 16
"""Bytes of one unit of ``codes``: one vector register of NEON, half of one of AVX2."""

MAX_CODEWORDS: Final = 256
MAX_NIBBLE_CODEWORDS: Final = 16
"""Up to this many codewords, two codes share a byte and a table fits one register."""

MAX_MAGNITUDE: Final = 64
"""Largest magnitude of int8 codewords that a body multiplies in int8. Processors without VNNI add two products of uint8
and int8 in 16 bits, with saturation: 2 * 255 * 64 is the largest that fits, and the machine that compresses cannot see
whether another one saturates."""

ATTR_SHAPE: Final = "shape"
"""``[out, in]``: an int64 tensor [2], or plain integers at opset 9."""

ATTR_FIRST: Final = "first"
"""int32 tensor [S], or [1] where all is zero: the row of the codewords, laid end to end as [R*G*K, d], at which the
codebook of each unit begins."""

ATTR_PLACE: Final = "place"
"""int32 tensor: [2, 1, 1, 1] = 1, 16 where a byte holds two codes, [1, 1, 1, 1] = 1 where it holds one.
``byte // place % radix`` is a code. Only in models that have both kinds."""

ATTR_RADIX: Final = "radix"
"""int32 tensor []: 16 where a byte holds two codes, else 256. Only in models that have both kinds."""

ATTR_STAGES: Final = "stages"
"""int64 tensor [3]: ``-1, R, M*d``. Only in models in which some R > 1."""

ATTR_PADDED: Final = "padded"
"""int64 tensor of PQGather: ``[M*d]``, or ``[R, M*d]`` in models in which some R > 1."""

ATTR_KEPT: Final = "kept"
"""int64 tensor [in] of PQGather: ``0, 1, ..., in - 1``. Only at opset 9, where some d does not divide ``in``."""

ATTR_WEIGHT_SHAPE: Final = "weight_shape"
"""int64 tensor: the shape of the weight as the node takes it, of PQConv and PQWeight."""

ATTR_TO: Final = "to"
"""int: the weight's element type there, of ONNX's `TensorProto.DataType`."""

ATTR_FAST: Final = "fast"
"""int, 0 or 1; the operator takes a node without it as 0. 1 asks for tables of 8 bits instead of 15, where K <= 16: 1.1
to 1.2 times as fast (custom_ops/bench), about 1 % error of an output instead of 0.2 %. The body is exact either way."""

ATTR_COLUMNS: Final = "columns"
"""int: ``in`` once more, of PQGather: its kernel has no X that tells it, and onnxruntime gives out no tensors of
attributes while shapes are inferred."""


def codes_per_byte(codewords: int) -> int:
    """Number of codes in a byte of ``codes`` for a codebook of `codewords` (K)."""
    return 2 if codewords <= MAX_NIBBLE_CODEWORDS else 1


def block_outputs(codewords: int) -> int:
    """Number of consecutive outputs in one block of ``codes``."""
    return UNIT_BYTES * codes_per_byte(codewords)

"""The operators in standard operators, as model-local functions: what runtimes without the operator library compute.

`PQDecode` is what they share: from codes to the matrix. All of it depends on constants alone, so onnxruntime does it
once, when a session is made. `PQMatMul` is left with a MatMul and an Add, `PQDynamicQuantizeMatMul` with what
onnxruntime fuses to its DynamicQuantizeMatMul. `PQGather` keeps one byte for each code, and decodes the rows that are
asked for. `PQWeight` is a constant again, and `PQConv` a Conv.

A function serves all nodes of its name in a model, whatever their sizes; what differs is an attribute. What no node of
the model needs is left out: taking two codes out of a byte, adding stages up. Statements are few, since hosts may limit
them (onnxruntime's `session.function_expansion_node_limit`) and 300 layers load in their number. Every one has a name
(onnxruntime mixes unnamed nodes of inlined functions up), and operators and signatures are those of the model's opset,
from 9 on.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx.parser
import onnx_ir as ir

from onnxpq.errors import ModelError
from onnxpq.operators.schema import (
    ATTR_COLUMNS,
    ATTR_FAST,
    ATTR_FIRST,
    ATTR_KEPT,
    ATTR_PADDED,
    ATTR_PLACE,
    ATTR_RADIX,
    ATTR_SHAPE,
    ATTR_STAGES,
    ATTR_TO,
    ATTR_WEIGHT_SHAPE,
    CONV_OP_TYPE,
    DECODE_OP_TYPE,
    DOMAIN,
    INPUTS_OF,
    INTEGER_OP_TYPE,
    LOOKUP_OP_TYPE,
    MATMUL_OP_TYPES,
    MAX_NIBBLE_CODEWORDS,
    OP_TYPE,
    OUTPUTS,
    VERSION,
    WEIGHT_OP_TYPE,
    codes_per_byte,
)

MIN_OPSET: Final = 9
"""First opset with ConstantOfShape and Flatten of integers."""

MIN_INTEGER_OPSET: Final = 11
"""First opset with DynamicQuantizeLinear."""

CAST_LIKE_OPSET: Final = 15
"""First opset with CastLike, without which the body cannot give back X's own type."""

_SLICE_BY_INPUTS: Final = 10
_MOD: Final = 10
_REDUCE_BY_INPUTS: Final = 13
"""First opsets in which an operator is, or takes its limits or axes as inputs."""

_FLOAT: Final = 1
_UINT8: Final = 2
_INT32: Final = 6
_INT64: Final = 7

_DOCUMENTATION: Final = {
    OP_TYPE: "Y = X W^T + bias; W is product-quantized.",
    INTEGER_OP_TYPE: "Y = X W^T + bias; W is product-quantized, X is quantized to uint8.",
    LOOKUP_OP_TYPE: "Y = W[rows]; W is product-quantized.",
    CONV_OP_TYPE: "Conv; W is product-quantized.",
    WEIGHT_OP_TYPE: "A product-quantized weight in the shape that its node takes.",
    DECODE_OP_TYPE: "W [out, in] without scales: W[o, m*d + i] = sum of codebooks[r, g(m), codes[o, r, m], i] over r.",
}


@dataclass(frozen=True)
class Sizes:
    """Of one quantized matrix [out, in], whose codebooks are [R, G, K, d]."""

    out_features: int
    in_features: int
    stages: int
    groups: int
    codewords: int
    sub_vector: int

    @property
    def sub_vectors(self) -> int:
        """M."""
        return -(-self.in_features // self.sub_vector)

    @property
    def padded(self) -> int:
        """M*d, the columns that the codes stand for."""
        return self.sub_vectors * self.sub_vector


@dataclass(frozen=True)
class Stored:
    """A weight as its node takes it: shape, and element type."""

    shape: tuple[int, ...]
    dtype: ir.DataType


@dataclass(frozen=True)
class Dialect:
    """What the functions of one model have to know of all its nodes.

    Attributes:
        opset: the model's version of ai.onnx.
        places: the numbers of codes a byte that occur.
        has_stages: some R > 1.
        crops_rows: rows that are looked up may be shorter than M*d.
        has_fast: some node says whether the operator is to be fast; all say it then.
        conv: names and types of the attributes of Conv that occur, as a function refers to them.
        any_float: X may be float16 (or another floating-point type) and Y has its type; needs opset 15. Otherwise both
            are float32, which is one Cast less.
    """

    opset: int
    places: frozenset[int]
    has_stages: bool = False
    crops_rows: bool = False
    has_fast: bool = False
    any_float: bool = False
    conv: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(
        cls,
        opset: int,
        sizes: Iterable[Sizes],
        *,
        lookups: Iterable[Sizes] = (),
        has_fast: bool = False,
        any_float: bool = False,
        conv: Iterable[tuple[str, str]] = (),
    ) -> "Dialect":
        """The dialect of a model with nodes of such sizes, among them some that look rows up."""
        known = list(sizes)
        return cls(
            opset,
            frozenset(codes_per_byte(each.codewords) for each in known),
            any(each.stages > 1 for each in known),
            any(each.padded != each.in_features for each in lookups),
            has_fast,
            any_float,
            tuple(sorted(set(conv))),
        )

    @property
    def row_axes(self) -> int:
        """How many axes of ``by_output`` (`_digits`) are those of the rows."""
        return 2 if self.places == {1} else 3

    @property
    def decoding(self) -> tuple[str, ...]:
        """The attributes that `PQDecode` reads."""
        mixed = (ATTR_PLACE, ATTR_RADIX) if len(self.places) > 1 else ()
        return (ATTR_SHAPE, ATTR_FIRST, *mixed, *((ATTR_STAGES,) if self.has_stages else ()))


def function(op_type: str, dialect: Dialect) -> ir.Function:
    """The model-local function of one operator.

    The model must import the domain `onnxpq` (`onnxpq.operators.schema.VERSION`) and have IR version 8 or newer, the
    first with functions, and needs `PQDecode` beside the function that multiplies.

    Args:
        op_type: a name of `onnxpq.operators.schema`.
        dialect: of the model.

    Raises:
        ModelError: the opset is older than 9, than 11 for int8, or than 15 with `any_float`.
    """
    needed = MIN_OPSET
    if op_type == INTEGER_OP_TYPE:
        needed = MIN_INTEGER_OPSET
    if op_type in MATMUL_OP_TYPES and dialect.any_float:
        needed = CAST_LIKE_OPSET
    if dialect.opset < needed:
        raise ModelError(
            f"The model uses opset {dialect.opset}; the function body of {DOMAIN}::{op_type} needs opset {needed} or"
            " newer. Convert the model first, for instance with onnx.version_converter."
        )
    names = [*_attributes_of(op_type, dialect)]
    names += [name for name, _ in dialect.conv] if op_type == CONV_OP_TYPE else []
    return _parsed(op_type, dialect, names, INPUTS_OF[op_type], _statements(op_type, dialect))


def _statements(op_type: str, dialect: Dialect) -> Iterator[str]:
    if op_type == DECODE_OP_TYPE:
        yield from _digits(dialect)
        yield from _matrix(dialect)
    elif op_type == LOOKUP_OP_TYPE:
        yield from _lookup(dialect)
    elif op_type == WEIGHT_OP_TYPE:
        yield from _weight(dialect)
    elif op_type == CONV_OP_TYPE:
        yield from _convolution(dialect)
    else:
        yield from _product(op_type, dialect)


def functions(op_types: Iterable[str], dialect: Dialect) -> list[ir.Function]:
    """The functions of several operators, and of what they need, callees first (ONNX's reference evaluator asks it).

    Raises:
        ModelError: as `function`.
    """
    wanted = dict.fromkeys(op_types)
    callees = [WEIGHT_OP_TYPE] if CONV_OP_TYPE in wanted else []
    if any(name != LOOKUP_OP_TYPE for name in wanted):
        callees = [DECODE_OP_TYPE, *callees]
    return [function(name, dialect) for name in dict.fromkeys((*callees, *wanted))]


def attributes(
    op_type: str, sizes: Sizes, dialect: Dialect, *, fast: bool = False, weight: Stored | None = None
) -> tuple[ir.Attr, ...]:
    """The attributes of a node, in a model of the dialect.

    Args:
        op_type: of the node.
        sizes: of its matrix.
        dialect: of the model.
        fast: whether `PQMatMul` is to use tables of 8 bits; K <= 16 only.
        weight: what the matrix is to the node, of `PQConv` and `PQWeight`.
    """
    known = dict(_known(sizes, dialect)) | {ATTR_FAST: ir.AttrInt64(ATTR_FAST, int(fast))}
    if weight is not None:
        known[ATTR_WEIGHT_SHAPE] = _tensor(ATTR_WEIGHT_SHAPE, weight.shape, np.int64)
        known[ATTR_TO] = ir.AttrInt64(ATTR_TO, int(weight.dtype))
    return tuple(known[name] for name in _attributes_of(op_type, dialect))


def _attributes_of(op_type: str, dialect: Dialect) -> tuple[str, ...]:
    """The names of our own attributes that a function reads and its nodes carry."""
    if op_type in MATMUL_OP_TYPES:
        return (*dialect.decoding, *((ATTR_FAST,) if dialect.has_fast else ()))
    if op_type == LOOKUP_OP_TYPE:
        read = [name for name in dialect.decoding if name != ATTR_STAGES]
        crops_by_list = dialect.crops_rows and dialect.opset < _SLICE_BY_INPUTS
        return (*read, ATTR_PADDED, ATTR_COLUMNS, *((ATTR_KEPT,) if crops_by_list else ()))
    if op_type == DECODE_OP_TYPE:
        return dialect.decoding
    return (*dialect.decoding, ATTR_WEIGHT_SHAPE, ATTR_TO)


def _known(sizes: Sizes, dialect: Dialect) -> Iterator[tuple[str, ir.Attr]]:
    shape = [sizes.out_features, sizes.in_features]
    as_tensor = dialect.opset >= _SLICE_BY_INPUTS
    yield ATTR_SHAPE, _tensor(ATTR_SHAPE, shape, np.int64) if as_tensor else ir.AttrInt64s(ATTR_SHAPE, shape)
    m = np.arange(sizes.stages * sizes.sub_vectors) % sizes.sub_vectors
    stage = np.arange(sizes.stages * sizes.sub_vectors) // sizes.sub_vectors
    codebook = stage * sizes.groups + m // -(-sizes.sub_vectors // sizes.groups)
    yield ATTR_FIRST, _tensor(ATTR_FIRST, codebook * sizes.codewords if codebook.any() else [0], np.int32)
    places = codes_per_byte(sizes.codewords)
    values = np.array([1, MAX_NIBBLE_CODEWORDS][:places]).reshape(places, 1, 1, 1)
    yield ATTR_PLACE, _tensor(ATTR_PLACE, values, np.int32)
    yield ATTR_RADIX, _tensor(ATTR_RADIX, 256 if places == 1 else MAX_NIBBLE_CODEWORDS, np.int32)
    yield ATTR_STAGES, _tensor(ATTR_STAGES, [-1, sizes.stages, sizes.padded], np.int64)
    row_shape = [sizes.stages, sizes.padded] if dialect.has_stages else [sizes.padded]
    yield ATTR_PADDED, _tensor(ATTR_PADDED, row_shape, np.int64)
    yield ATTR_COLUMNS, ir.AttrInt64(ATTR_COLUMNS, sizes.in_features)
    yield ATTR_KEPT, _tensor(ATTR_KEPT, np.arange(sizes.in_features), np.int64)


def _tensor(name: str, values: object, dtype: type) -> ir.Attr:
    return ir.AttrTensor(name, ir.tensor(np.array(values, dtype)))


def _digits(dialect: Dialect) -> Iterator[str]:
    """``by_output``: bytes [B, S, 16] to codes, int32, outputs before units."""
    yield f"bytes = Cast <to = {_INT32}> (codes)"
    if dialect.places == {1}:
        yield "by_output = Transpose <perm = [0, 2, 1]> (bytes)"  # [B, 16, S]
        return
    if dialect.places == {2}:
        yield f"place = Constant <value = int32[2, 1, 1, 1] {{1, {MAX_NIBBLE_CODEWORDS}}}> ()"
        yield f"radix = Constant <value = int32 {{{MAX_NIBBLE_CODEWORDS}}}> ()"
    else:
        yield f"place = Constant <value: tensor = @{ATTR_PLACE}> ()"
        yield f"radix = Constant <value: tensor = @{ATTR_RADIX}> ()"
    yield "shifted = Div (bytes, place)"  # [places, B, S, 16]
    if dialect.opset >= _MOD:
        yield "digits = Mod (shifted, radix)"
    else:
        yield "shifted_again = Div (shifted, radix)"
        yield "higher = Mul (shifted_again, radix)"
        yield "digits = Sub (shifted, higher)"
    yield "by_output = Transpose <perm = [1, 0, 3, 2]> (digits)"  # [B, places, 16, S]


def _pieces(dialect: Dialect, codes: str) -> Iterator[str]:
    """``pieces``: the codewords [..., d] that int32 codes [..., S] stand for."""
    yield f"first = Constant <value: tensor = @{ATTR_FIRST}> ()"
    yield f"at = Add ({codes}, first)"
    if dialect.has_stages:
        yield f"codebooks_float = Cast <to = {_FLOAT}> (codebooks)"
        yield "codewords = Flatten <axis = 3> (codebooks_float)"
    else:
        yield "codewords = Flatten <axis = 3> (codebooks)"  # [R*G*K, d]
    yield "pieces = Gather <axis = 0> (codewords, at)"


def _crop(dialect: Dialect, source: str, target: str) -> Iterator[str]:
    """The first `out` rows and `in` columns, or as many as there are."""
    if dialect.opset < _SLICE_BY_INPUTS:
        yield f"{target} = Slice <starts = [0, 0], ends: ints = @{ATTR_SHAPE}> ({source})"
        return
    yield "start = Constant <value = int64[2] {0, 0}> ()"
    yield f"end = Constant <value: tensor = @{ATTR_SHAPE}> ()"
    yield f"{target} = Slice ({source}, start, end)"


def _sum_of_stages(dialect: Dialect, target: str) -> Iterator[str]:
    """``by_stage`` [..., R, M*d] to [..., M*d]."""
    if dialect.opset < _REDUCE_BY_INPUTS:
        yield f"{target} = ReduceSum <axes = [-2], keepdims = 0> (by_stage)"
    else:
        yield "stage_axis = Constant <value = int64[1] {-2}> ()"
        yield f"{target} = ReduceSum <keepdims = 0> (by_stage, stage_axis)"


def _matrix(dialect: Dialect) -> Iterator[str]:
    """The matrix [out, in] of ``by_output``, in the codebooks' type."""
    yield from _pieces(dialect, "by_output")
    if dialect.has_stages:
        yield f"stages = Constant <value: tensor = @{ATTR_STAGES}> ()"
        yield "by_stage = Reshape (pieces, stages)"
        yield from _sum_of_stages(dialect, "padded")
    else:
        yield f"padded = Flatten <axis = {dialect.row_axes}> (pieces)"
    yield from _crop(dialect, "padded", OUTPUTS[0])


def _product(op_type: str, dialect: Dialect) -> Iterator[str]:
    """A layer: X and the decoded matrix to Y."""
    yield f"units = {_call(DECODE_OP_TYPE, dialect)} (codebooks, codes)"
    yield "units_in_out = Transpose <perm = [1, 0]> (units)"
    yield f"scales_float = Cast <to = {_FLOAT}> (scales)"
    yield f"bias_float = Cast <to = {_FLOAT}> (bias)"
    x, y = ("X_float", "Y_float") if dialect.any_float else ("X", "Y")
    if dialect.any_float:
        yield f"X_float = Cast <to = {_FLOAT}> (X)"
    if op_type == OP_TYPE:
        yield f"units_float = Cast <to = {_FLOAT}> (units_in_out)"
        yield "weight = Mul (units_float, scales_float)"
        yield f"product = MatMul ({x}, weight)"
    else:
        yield f"X_bytes, X_scale, X_zero = DynamicQuantizeLinear ({x})"
        yield "sums = MatMulInteger (X_bytes, units_in_out, X_zero)"
        yield f"sums_float = Cast <to = {_FLOAT}> (sums)"
        # Not (sums * X_scale) * scales, which onnxruntime does not fuse.
        yield "both_scales = Mul (X_scale, scales_float)"
        yield "product = Mul (sums_float, both_scales)"
    yield f"{y} = Add (product, bias_float)"
    if dialect.any_float:
        yield "Y = CastLike (Y_float, X)"


def _weight(dialect: Dialect) -> Iterator[str]:
    """The weight in its shape and type."""
    yield f"units = {_call(DECODE_OP_TYPE, dialect)} (codebooks, codes)"
    yield f"units_float = Cast <to = {_FLOAT}> (units)"
    yield from _scale_column()
    yield "matrix = Mul (units_float, scale_column)"
    yield f"shape = Constant <value: tensor = @{ATTR_WEIGHT_SHAPE}> ()"
    yield "weight = Reshape (matrix, shape)"
    yield f"Y = Cast <to: int = @{ATTR_TO}> (weight)"


def _scale_column() -> Iterator[str]:
    """``scale_column``: the scales of the rows, [out, 1]."""
    yield f"scales_float = Cast <to = {_FLOAT}> (scales)"
    yield "column = Constant <value = int64[2] {-1, 1}> ()"
    yield "scale_column = Reshape (scales_float, column)"


def _convolution(dialect: Dialect) -> Iterator[str]:
    """Conv, with its attributes; those that a node does not have keep their defaults, as its bias does."""
    yield f"weight = {_call(WEIGHT_OP_TYPE, dialect)} (codebooks, codes, scales)"
    references = ", ".join(f"{name}: {kind} = @{name}" for name, kind in dialect.conv)
    yield f"Y = Conv <{references}> (X, weight, bias)" if references else "Y = Conv (X, weight, bias)"


def _call(op_type: str, dialect: Dialect) -> str:
    """A call of another function with the attributes of the same names."""
    names = _attributes_of(op_type, dialect)
    return f"{DOMAIN}.{op_type} <{', '.join(f'{name}: {_kind(name, dialect)} = @{name}' for name in names)}>"


def _lookup(dialect: Dialect) -> Iterator[str]:
    """Rows of the table. What is known without ``rows`` is constant: one byte for each code."""
    yield from _digits(dialect)
    yield f"padded_codes = Flatten <axis = {dialect.row_axes}> (by_output)"
    yield f"padded_bytes = Cast <to = {_UINT8}> (padded_codes)"  # [B*places*16, S]
    yield from _scale_column()
    yield from _chosen_codes(dialect)
    yield f"chosen = Cast <to = {_INT32}> (chosen_bytes)"
    yield from _pieces(dialect, "chosen")
    # All sizes by number: a size of 0 among the rows' copies that of the same axis, which is 0 then.
    yield f"row_shape = Constant <value: tensor = @{ATTR_PADDED}> ()"
    yield "rows_shape = Shape (rows)"
    yield "units_shape = Concat <axis = 0> (rows_shape, row_shape)"
    yield f"{'by_stage' if dialect.has_stages else 'units'} = Reshape (pieces, units_shape)"
    if dialect.has_stages:
        yield from _sum_of_stages(dialect, "units")
    yield f"units_float = Cast <to = {_FLOAT}> (units)"
    # By the numbers as they were given: that refuses those which are too large or too small.
    yield "row_scales = Gather <axis = 0> (scale_column, rows)"
    if not dialect.crops_rows:
        yield "Y = Mul (units_float, row_scales)"
        return
    yield "padded_rows = Mul (units_float, row_scales)"
    yield from _crop_columns(dialect)


def _chosen_codes(dialect: Dialect) -> Iterator[str]:
    """``chosen_bytes`` [..., S]; numbers that count from the end count from `out`, not from the end of the padding."""
    yield "out_features = Shape (scales)"
    yield "zero = Constant <value = int64[1] {0}> ()"
    if dialect.opset >= _SLICE_BY_INPUTS:
        yield "code_bytes = Slice (padded_bytes, zero, out_features)"
        yield "chosen_bytes = Gather <axis = 0> (code_bytes, rows)"
        return
    yield f"numbers = Cast <to = {_INT64}> (rows)"
    yield "is_negative = Less (numbers, zero)"
    yield "from_the_end = Add (numbers, out_features)"
    yield "counted = Where (is_negative, from_the_end, numbers)"
    # A scalar has become [1] by then.
    yield "given_shape = Shape (rows)"
    yield "row = Reshape (counted, given_shape)"
    yield "chosen_bytes = Gather <axis = 0> (padded_bytes, row)"


def _crop_columns(dialect: Dialect) -> Iterator[str]:
    """``Y``: the first `in` columns of rows [..., M*d]; onnxruntime is 15 times as fast with Slice as with Gather."""
    if dialect.opset >= _SLICE_BY_INPUTS:
        yield f"shape = Constant <value: tensor = @{ATTR_SHAPE}> ()"
        yield "one = Constant <value = int64[1] {1}> ()"
        yield "in_features = Gather <axis = 0> (shape, one)"
        yield "last_axis = Constant <value = int64[1] {-1}> ()"
        yield "Y = Slice (padded_rows, zero, in_features, last_axis)"
        return
    # Slice names its axes by numbers from the front here, and the rank is not known.
    yield f"kept = Constant <value: tensor = @{ATTR_KEPT}> ()"
    yield "Y = Gather <axis = -1> (padded_rows, kept)"


def _kind(attribute: str, dialect: Dialect) -> str:
    if attribute == ATTR_TO:
        return "int"
    return "ints" if attribute == ATTR_SHAPE and dialect.opset < _SLICE_BY_INPUTS else "tensor"


def _parsed(
    op_type: str, dialect: Dialect, attributes: Sequence[str], inputs: Sequence[str], statements: Iterable[str]
) -> ir.Function:
    head = f'<domain: "{DOMAIN}", opset_import: ["" : {dialect.opset}, "{DOMAIN}" : {VERSION}]>'
    signature = f"{op_type} <{', '.join(attributes)}> ({', '.join(inputs)}) => ({', '.join(OUTPUTS)})"
    body = "\n".join(statements)
    parsed = onnx.parser.parse_function(f"{head}\n{signature}\n{{\n{body}\n}}")
    for node in parsed.node:
        node.name = node.output[0]
    parsed.doc_string = _DOCUMENTATION[op_type]
    return ir.serde.deserialize_function(parsed)

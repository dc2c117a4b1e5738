"""`PQMatMul` and `PQGather` in standard operators.

That of `PQMatMul` is what runtimes without the operator library compute: it decodes the weight and multiplies. All of
the decoding depends on constants alone, so onnxruntime does it once, when a session is made, and is left with a MatMul
and an Add. That of `PQGather` decodes the rows that are asked for.

One body serves all shapes, K, G and R; it uses operators and signatures that are the same from opset 9 on, so that it
can use the opset of the model that it is put into: Gather by a range for Slice (changed at 10), MatMul with ones for
ReduceSum (changed at 13), Reshape for Unsqueeze (changed at 13), Div and Mul for bit operations (opset 18). Only Range,
which is younger (opset 11), has a substitute. NonZero and Compress would serve too, but onnxruntime does not fold them.
"""

import re
from collections.abc import Sequence
from typing import Final

import numpy as np
import onnx.parser
import onnx_ir as ir

from onnxpq.errors import ModelError
from onnxpq.operators.schema import (
    ATTR_COLUMNS,
    ATTR_FAST,
    ATTR_IN_FEATURES,
    ATTR_PLACE_VALUES,
    ATTRIBUTES,
    DOMAIN,
    INPUTS,
    LOOKUP_ATTRIBUTES,
    LOOKUP_INPUTS,
    LOOKUP_OP_TYPE,
    OP_TYPE,
    OUTPUTS,
    UNIT_BYTES,
    codes_per_byte,
)

MIN_OPSET: Final = 9
"""First opset with ConstantOfShape and Flatten of integers."""

CAST_LIKE_OPSET: Final = 15
"""First opset with CastLike, without which the body cannot give back X's own type."""

_FLOAT: Final = 1
_INT32: Final = 6
_INT64: Final = 7

_RANGE: Final = "@range"
"""``@range_of_n`` in the body stands for the nodes that compute ``range_of_n`` = 0, 1, ..., n - 1."""

_CROP: Final = "@crop"
"""Stands for the nodes that give the first `in_features` columns of `padded` the name `unscaled`."""

# Shapes: P codes a byte, B blocks, M = ceil(in/d) sub-vectors, `width` = ceil(M/G) of them to a codebook group.
_DIGITS: Final = f"""
    zero = Constant <value = int64[1] {{0}}> ()
    one = Constant <value = int64[1] {{1}}> ()
    three = Constant <value = int64[1] {{3}}> ()
    flat = Constant <value = int64[1] {{-1}}> ()

    # `radix` is 16 with two codes a byte, 256 with one.
    places = Constant <value: tensor = @{ATTR_PLACE_VALUES}> ()
    byte_values = Constant <value = int32[1] {{256}}> ()
    largest_place = ReduceMax <keepdims = 1> (places)
    radix = Div (byte_values, largest_place)
"""

_CODEWORDS: Final = f"""
    # Where the codebook of sub-vector j = r*M + m begins: row (r*G + m / width) * K of `codewords`.
    codebooks_shape = Shape (codebooks)
    stages = Gather (codebooks_shape, zero)
    groups = Gather (codebooks_shape, one)
    codebook_size = Gather (codebooks_shape, three)
    codes_shape = Shape (codes)
    units = Gather (codes_shape, one)
    {_RANGE}_of_units
    sub_vectors = Div (units, stages)
    sub_vectors_and_groups = Add (sub_vectors, groups)
    rounded_up = Sub (sub_vectors_and_groups, one)
    width = Div (rounded_up, groups)
    r = Div (range_of_units, sub_vectors)
    first_of_stage = Mul (r, sub_vectors)
    m = Sub (range_of_units, first_of_stage)
    group = Div (m, width)
    groups_before = Mul (r, groups)
    codebook = Add (groups_before, group)
    first_row = Mul (codebook, codebook_size)
    first_row_int32 = Cast <to = {_INT32}> (first_row)

    # Codewords [R*G*K, d].
    codebooks_float = Cast <to = {_FLOAT}> (codebooks)
    codewords_last = Transpose <perm = [0, 1, 3, 2]> (codebooks_float)
    codewords = Flatten <axis = 3> (codewords_last)
    in_features = Constant <value: tensor = @{ATTR_IN_FEATURES}> ()
    scales_float = Cast <to = {_FLOAT}> (scales)
    stage_ones = ConstantOfShape <value = float[1] {{1}}> (stages)
"""

_BODY: Final = f"""
{{
{_DIGITS}
    # Bytes to codes [out, R*M].
    bytes = Cast <to = {_INT32}> (codes)
    bytes_by_output = Transpose <perm = [0, 2, 1]> (bytes)
    bytes_shape = Constant <value = int64[4] {{0, 1, {UNIT_BYTES}, -1}}> ()
    bytes_with_place = Reshape (bytes_by_output, bytes_shape)
    places_shape = Constant <value = int64[3] {{-1, 1, 1}}> ()
    place = Reshape (places, places_shape)
    shifted = Div (bytes_with_place, place)
    shifted_once_more = Div (shifted, radix)
    higher_digits = Mul (shifted_once_more, radix)
    digits = Sub (shifted, higher_digits)
    padded_codes = Flatten <axis = 3> (digits)
    out = Shape (bias)
    {_RANGE}_of_out
    output_codes = Gather <axis = 0> (padded_codes, range_of_out)
{_CODEWORDS}
    # The matrix [in, out], scaled.
    rows = Add (output_codes, first_row_int32)
    pieces = Gather <axis = 0> (codewords, rows)
    by_stage_shape = Concat <axis = 0> (zero, stages, flat)
    by_stage = Reshape (pieces, by_stage_shape)
    padded_weight = MatMul (stage_ones, by_stage)
    {_RANGE}_of_in_features
    weight = Gather <axis = 1> (padded_weight, range_of_in_features)
    weight_in_out = Transpose <perm = [1, 0]> (weight)
    scaled_weight = Mul (weight_in_out, scales_float)

    bias_float = Cast <to = {_FLOAT}> (bias)
"""

# `column` has the shape of `rows` with one more axis of size 1; a size of 0 in it copies that of the same axis, which
# is 0 then.
_LOOKUP_BODY: Final = f"""
{{
{_DIGITS}
{_CODEWORDS}
    # The rows [..., 1], without negative ones.
    two = Constant <value = int64[1] {{2}}> ()
    given_shape = Shape (rows)
    column_shape = Concat <axis = 0> (given_shape, one)
    rows_int64 = Cast <to = {_INT64}> (rows)
    column = Reshape (rows_int64, column_shape)
    row_count = Shape (scales)
    is_negative = Less (column, zero)
    from_the_end = Add (column, row_count)
    row = Where (is_negative, from_the_end, column)

    # Which block of `codes` a row is in, which byte of the block's units, and which digit of the byte.
    unit_bytes = Constant <value = int64[1] {{{UNIT_BYTES}}}> ()
    digits_of_byte = Shape (places)
    block_rows = Mul (digits_of_byte, unit_bytes)
    block = Div (row, block_rows)
    block_start = Mul (block, block_rows)
    row_of_block = Sub (row, block_start)
    digit = Div (row_of_block, unit_bytes)
    digit_start = Mul (digit, unit_bytes)
    byte_of_unit = Sub (row_of_block, digit_start)

    # Codes [..., R*M].
    first_unit = Mul (block, units)
    first_byte = Mul (first_unit, unit_bytes)
    byte_of_row = Add (first_byte, byte_of_unit)
    bytes_before = Mul (range_of_units, unit_bytes)
    position = Add (byte_of_row, bytes_before)
    all_bytes = Reshape (codes, flat)
    bytes = Gather <axis = 0> (all_bytes, position)
    bytes_int32 = Cast <to = {_INT32}> (bytes)
    place = Gather <axis = 0> (places, digit)
    shifted = Div (bytes_int32, place)
    shifted_once_more = Div (shifted, radix)
    higher_digits = Mul (shifted_once_more, radix)
    row_codes = Sub (shifted, higher_digits)

    # Codewords [..., R*M, d], added up over the stages, without what fills up the last one.
    codeword_rows = Add (row_codes, first_row_int32)
    pieces = Gather <axis = 0> (codewords, codeword_rows)
    sub_vector = Gather (codebooks_shape, two)
    padded_features = Mul (sub_vectors, sub_vector)
    by_stage_shape = Concat <axis = 0> (given_shape, stages, padded_features)
    by_stage = Reshape (pieces, by_stage_shape)
    padded = MatMul (stage_ones, by_stage)
    {_CROP}
    # By the number that was given: that refuses one which is too large or too small.
    row_scales = Gather <axis = 0> (scales_float, column)
    Y = Mul (unscaled, row_scales)
}}
"""

_FLOAT_PRODUCT: Final = """
    product = MatMul (X, scaled_weight)
    Y = Add (product, bias_float)
}
"""

_ANY_PRODUCT: Final = f"""
    X_float = Cast <to = {_FLOAT}> (X)
    product = MatMul (X_float, scaled_weight)
    Y_float = Add (product, bias_float)
    Y = CastLike (Y_float, X)
}}
"""


def pq_matmul_function(opset: int, *, any_float: bool = False) -> ir.Function:
    """The model-local function `onnxpq::PQMatMul` for a model of the given opset.

    The model must import the domain `onnxpq` (`onnxpq.operators.schema.VERSION`) and have IR version 8 or newer, the
    first with functions.

    Args:
        opset: the model's version of the standard domain.
        any_float: X may be float16 (or another floating-point type) and Y has its type; needs opset 15. Otherwise both
            are float32, which is one Cast less.

    Raises:
        ModelError: the opset is older than 9, or than 15 with `any_float`.
    """
    _check_opset(OP_TYPE, opset, CAST_LIKE_OPSET if any_float else MIN_OPSET)
    function = _parsed(OP_TYPE, ATTRIBUTES, INPUTS, _BODY + (_ANY_PRODUCT if any_float else _FLOAT_PRODUCT), opset)
    function.doc_string = "Fully-connected layer with a product-quantized weight, decoded. See onnxpq.opschema."
    return function


def pq_gather_function(opset: int) -> ir.Function:
    """The model-local function `onnxpq::PQGather` for a model of the given opset; as `pq_matmul_function`.

    Args:
        opset: the model's version of the standard domain.

    Raises:
        ModelError: the opset is older than 9.
    """
    _check_opset(LOOKUP_OP_TYPE, opset, MIN_OPSET)
    function = _parsed(LOOKUP_OP_TYPE, LOOKUP_ATTRIBUTES, LOOKUP_INPUTS, _LOOKUP_BODY, opset)
    function.doc_string = "Rows of a product-quantized table, looked up by number and decoded. See onnxpq.opschema."
    return function


def node_attributes(in_features: int, codewords: int, *, fast: bool = False) -> tuple[ir.Attr, ...]:
    """The attributes that a `PQMatMul` node carries (`onnxpq.operators.schema`).

    Args:
        in_features: `in`.
        codewords: K.
        fast: whether the operator is to use tables of 8 bits; K <= 16 only.
    """
    return (*_sizes(in_features, codewords), ir.AttrInt64(ATTR_FAST, int(fast)))


def lookup_attributes(in_features: int, codewords: int) -> tuple[ir.Attr, ...]:
    """The attributes that a `PQGather` node carries."""
    return (*_sizes(in_features, codewords), ir.AttrInt64(ATTR_COLUMNS, in_features))


def _sizes(in_features: int, codewords: int) -> tuple[ir.Attr, ...]:
    """`in` and K, as tensors."""
    place_values = [16**i for i in range(codes_per_byte(codewords))]
    return (
        ir.AttrTensor(ATTR_IN_FEATURES, ir.tensor(np.array([in_features], np.int64))),
        ir.AttrTensor(ATTR_PLACE_VALUES, ir.tensor(np.array(place_values, np.int32))),
    )


def _check_opset(op_type: str, opset: int, needed: int) -> None:
    if opset < needed:
        raise ModelError(
            f"The model uses opset {opset}; the function body of {DOMAIN}::{op_type} needs opset {needed} or newer."
            " Convert the model first, for instance with onnx.version_converter."
        )


def _parsed(op_type: str, attributes: Sequence[str], inputs: Sequence[str], body: str, opset: int) -> ir.Function:
    written = re.sub(rf"{_RANGE}_of_(\w+)", lambda found: _range(found[1], opset), body.replace(_CROP, _crop(opset)))
    head = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>'
    signature = f"{op_type} <{', '.join(attributes)}> ({', '.join(inputs)}) => ({', '.join(OUTPUTS)})"
    return ir.serde.deserialize_function(onnx.parser.parse_function(f"{head}\n{signature}\n{written}"))


def _crop(opset: int) -> str:
    """A Slice where its limits are inputs: onnxruntime takes over 15 times as long for a Gather of columns.

    `flat` is -1, the last axis.
    """
    if opset >= 10:
        return "unscaled = Slice (padded, zero, in_features, flat)"
    return f"{_RANGE}_of_in_features\n    unscaled = Gather <axis = -1> (padded, range_of_in_features)"


def _range(size: str, opset: int) -> str:
    """Nodes for ``range_of_{size}`` = 0, 1, ..., n - 1, where the value called `size` is n as an int64 tensor [1]."""
    if opset >= 11:
        return f"""
    first_{size} = Constant <value = int64 {{0}}> ()
    step_{size} = Constant <value = int64 {{1}}> ()
    scalar_shape_{size} = Constant <value = int64[0] {{}}> ()
    end_{size} = Reshape ({size}, scalar_shape_{size})
    range_of_{size} = Range (first_{size}, end_{size}, step_{size})"""
    return f"""
    row_shape_{size} = Concat <axis = 0> (one, one, {size})
    row_{size} = ConstantOfShape (row_shape_{size})
    pooled_{size}, places_{size} = MaxPool <kernel_shape = [1]> (row_{size})
    range_of_{size} = Reshape (places_{size}, flat)"""

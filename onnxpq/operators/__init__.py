"""The contract with `custom_ops/`: names, inputs and layouts of the operators, and their bodies as local functions.

The names that this face imports are plain numbers and words, so that settings may use them; of the modules, `schema` is
the description and `body` needs onnx.
"""

from onnxpq.operators.schema import (
    CONV_OP_TYPE,
    DOMAIN,
    INPUTS_OF,
    INTEGER_OP_TYPE,
    KERNEL_OP_TYPES,
    LOOKUP_OP_TYPE,
    MATMUL_OP_TYPES,
    MAX_CODEWORDS,
    MAX_MAGNITUDE,
    MAX_NIBBLE_CODEWORDS,
    OP_TYPE,
    OP_TYPES,
    UNIT_BYTES,
    VERSION,
    WEIGHT_OP_TYPE,
    block_outputs,
    codes_per_byte,
)

__all__ = [
    "CONV_OP_TYPE",
    "DOMAIN",
    "INPUTS_OF",
    "INTEGER_OP_TYPE",
    "KERNEL_OP_TYPES",
    "LOOKUP_OP_TYPE",
    "MATMUL_OP_TYPES",
    "MAX_CODEWORDS",
    "MAX_MAGNITUDE",
    "MAX_NIBBLE_CODEWORDS",
    "OP_TYPE",
    "OP_TYPES",
    "UNIT_BYTES",
    "VERSION",
    "WEIGHT_OP_TYPE",
    "block_outputs",
    "body",
    "codes_per_byte",
    "schema",
]

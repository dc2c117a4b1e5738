"""The contract with `custom_ops/`: names, inputs and layouts of the operators, and their bodies as local functions.

The names that this face imports are plain numbers and words, so that settings may use them; the module `body`
needs onnx.
"""

from onnxpq.operators.schema import (
    CODES,
    DOMAIN,
    INPUTS,
    LOOKUP_INPUTS,
    LOOKUP_OP_TYPE,
    MAX_CODEWORDS,
    MAX_NIBBLE_CODEWORDS,
    OP_TYPE,
    OP_TYPES,
    UNIT_BYTES,
    VERSION,
    block_outputs,
    codes_per_byte,
)

__all__ = [
    "CODES",
    "DOMAIN",
    "INPUTS",
    "LOOKUP_INPUTS",
    "LOOKUP_OP_TYPE",
    "MAX_CODEWORDS",
    "MAX_NIBBLE_CODEWORDS",
    "OP_TYPE",
    "OP_TYPES",
    "UNIT_BYTES",
    "VERSION",
    "block_outputs",
    "body",
    "codes_per_byte",
]

"""The contract with `custom_ops/`: names, inputs and layouts of the operators, and their bodies as local functions."""

from onnxpq.operators.body import (
    CAST_LIKE_OPSET,
    lookup_attributes,
    node_attributes,
    pq_gather_function,
    pq_matmul_function,
)
from onnxpq.operators.schema import (
    CODES,
    DOMAIN,
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
    "CAST_LIKE_OPSET",
    "CODES",
    "DOMAIN",
    "LOOKUP_OP_TYPE",
    "MAX_CODEWORDS",
    "MAX_NIBBLE_CODEWORDS",
    "OP_TYPE",
    "OP_TYPES",
    "UNIT_BYTES",
    "VERSION",
    "block_outputs",
    "codes_per_byte",
    "lookup_attributes",
    "node_attributes",
    "pq_gather_function",
    "pq_matmul_function",
]

"""The graph before and after: which nodes are layers, and the model in which codes take the place of their weights.

In: a model; later the quantized weights by name. Out: layers with reasons for what is left alone; the compressed model.
Neither torch nor onnxruntime is needed.
"""

from onnxpq.rewriting.decompressing import decompress
from onnxpq.rewriting.listing import find, find_by, find_layers
from onnxpq.rewriting.replacing import constant_names, rewrite, update_initializers
from onnxpq.rewriting.rules.context import describe
from onnxpq.rewriting.rules.editor import Editor
from onnxpq.rewriting.trimming import trimmed

__all__ = [
    "Editor",
    "constant_names",
    "decompress",
    "describe",
    "find",
    "find_by",
    "find_layers",
    "rescaling",
    "rewrite",
    "trimmed",
    "update_initializers",
]

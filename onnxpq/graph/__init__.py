"""ONNX files and the graphs in them, without running them and without torch.

In: a file or a model of anyone's. Out: a model that was checked, and answers about its nodes, constants and subgraphs.
It knows neither layouts nor codes.
"""

from onnxpq.graph.checking import check
from onnxpq.graph.constants import (
    FLOATS,
    constant,
    element_type,
    is_standard,
    matrix_base,
    roots,
    shape_of,
    values_of,
)
from onnxpq.graph.finite import check_weights
from onnxpq.graph.forms import Forms
from onnxpq.graph.inlining import inline
from onnxpq.graph.layers import Layer, Skipped, tables
from onnxpq.graph.normalising import normalise
from onnxpq.graph.opsets import opset
from onnxpq.graph.preparing import prepare
from onnxpq.graph.private import is_private
from onnxpq.graph.protobuf import structure, tensor_bytes
from onnxpq.graph.walking import graph_of, graphs_of, node_label, subgraphs_of, used_values

__all__ = [
    "FLOATS",
    "Forms",
    "Layer",
    "Skipped",
    "check",
    "check_weights",
    "constant",
    "element_type",
    "files",
    "graph_of",
    "graphs_of",
    "inline",
    "is_private",
    "is_standard",
    "matrix_base",
    "node_label",
    "normalise",
    "opset",
    "prepare",
    "roots",
    "shape_of",
    "structure",
    "subgraphs",
    "subgraphs_of",
    "tables",
    "tensor_bytes",
    "used_values",
    "values_of",
]

"""What nodes read, hold and are called, on a hand-made graph."""

import onnx
import onnx_ir as ir
import pytest

from onnxpq.graph.walking import graph_of, node_label, subgraphs_of, used_values

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
main (float[4] x, float[4] z, bool c) => (float[4] y) {
    [choice] y = If(c) <
        then_branch = a () => (float[4] p) { p = Add(x, x) },
        else_branch = b () => (float[4] q) {
            q = If(c) <
                then_branch = d () => (float[4] r) { r = Neg(z) },
                else_branch = e () => (float[4] s) { s = Abs(x) }
            >
        }
    >
}"""


def choice() -> ir.Node:
    return next(iter(ir.from_proto(onnx.parser.parse_model(TEXT)).graph))


def test_a_node_reads_what_its_subgraphs_take_from_outside() -> None:
    assert {value.name for value in used_values(choice())} == {"c", "x", "z"}


def test_a_node_holds_its_own_subgraphs() -> None:
    assert [graph.name for graph in subgraphs_of(choice())] == ["a", "b"]


def test_a_label_is_the_name_or_the_first_output() -> None:
    node = choice()
    assert node_label(node) == "choice"
    node.name = None
    assert node_label(node) == "y"
    node.outputs[0].name = ""
    assert node_label(node) == "If"


def test_the_graph_of_a_node() -> None:
    node = choice()
    graph = graph_of(node)
    assert graph.name == "main"
    graph.remove(node)
    with pytest.raises(LookupError, match="Node 'choice' lies in no graph"):
        graph_of(node)

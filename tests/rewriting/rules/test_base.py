import onnx_ir as ir
import pytest
from model_forms import FORMS
from rule_checks import initializer, parse, quantized

from onnxpq.errors import VerificationError
from onnxpq.graph import files
from onnxpq.graph.preparing import prepare
from onnxpq.rewriting.rules import RULES
from onnxpq.rewriting.rules.base import Editor, interface
from onnxpq.rewriting.rules.context import describe
from onnxpq.rewriting.rules.matmul import MatMulRule


class LeavesTheNode(MatMulRule):
    def rewrite(self, *_):
        pass


class PutsNothingInItsPlace(MatMulRule):
    def rewrite(self, node, *others):
        editor = others[-1]
        editor.replace([node], [ir.Node("", "Relu", node.inputs[:1])])


class RenamesTheOutput(MatMulRule):
    def rewrite(self, node, layer, tensor, context, editor):
        super().rewrite(node, layer, tensor, context, editor)
        editor.graph.outputs[0].name = "renamed"


class ChangesTheShape(MatMulRule):
    def rewrite(self, node, layer, tensor, context, editor):
        super().rewrite(node, layer, tensor, context, editor)
        editor.graph.outputs[0].shape = ir.Shape([1, 2, 3])


class AddsAnInput(MatMulRule):
    def rewrite(self, node, layer, tensor, context, editor):
        super().rewrite(node, layer, tensor, context, editor)
        editor.graph.inputs.append(ir.Value(name="more"))


@pytest.mark.parametrize(
    ("rule", "sentence"),
    [
        (LeavesTheNode(), r"The rule LeavesTheNode left node 'fc' \(MatMul\) in the graph\. This is a defect"),
        (PutsNothingInItsPlace(), r"removed node 'fc' and put no operator of 'onnxpq' of that name in its place"),
        (RenamesTheOutput(), r"changed the inputs or outputs of the graph when it rewrote node 'fc'.*renamed"),
        (ChangesTheShape(), r"changed the inputs or outputs of the graph.*\[1,2,3\].*expected"),
        (AddsAnInput(), r"changed the inputs or outputs of the graph.*more"),
    ],
)
def test_a_rule_that_breaks_its_promise_is_caught(rule, sentence):
    model = parse("(float[N,6] x) => (float[N,6] y) { [fc] y = MatMul(x, w) }", initializer("w", 6, 6))
    context, node = describe(model), model.graph.node("fc")
    layer = rule.check(node, context)
    with pytest.raises(VerificationError, match=sentence):
        rule.apply(node, layer, quantized(layer), context, Editor(model.graph, 17))


def test_interface_lists_names_types_and_shapes():
    model = parse("(float[N,6] x, int64 k) => (float[N,6] y) { y = Relu(x) }")
    inputs, outputs = interface(model.graph)
    assert inputs == ("x: FLOAT[N,6]", "k: INT64[]")
    assert outputs == ("y: FLOAT[N,6]",)


def test_no_node_matches_two_rules():
    text = "(float[N,6] x) => (float[N,6] z) { y = MatMul(x, w) z = Gemm(y, w) }"
    model = parse(text, initializer("w", 6, 6))
    context = describe(model)
    assert [sum(rule.match(node, context) for rule in RULES) for node in model.graph] == [1, 1]


@pytest.mark.parametrize("name", FORMS)
def test_no_form_matches_two_rules(name):
    model = prepare(files.load(FORMS[name].model()))
    context = describe(model)
    for node in model.graph.all_nodes():
        matching = [type(rule).__name__ for rule in RULES if rule.match(node, context)]
        # A kernel of one point is a layer over the channels, and a kernel.
        assert len(matching) <= 1 or matching == ["Conv1x1Rule", "ConvRule"]

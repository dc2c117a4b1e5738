"""Back to dense weights: every form of every kind computes what it computed compressed."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from form_checks import quantized as quantized_form
from model_forms import FORMS
from pq_layers import FLOAT_BUDGET, PQLayer, lookup_model_of, model_of, normal_rows, random_layer
from rule_checks import initializer, largest_difference, parse, quantized, run

from onnxpq.config.settings import Config
from onnxpq.errors import ModelError
from onnxpq.graph import files, preparing
from onnxpq.graph.normalising import normalise
from onnxpq.operators.schema import DOMAIN
from onnxpq.pq.reference import decode
from onnxpq.rewriting import decompress, find, rewrite
from onnxpq.rewriting.decompressing import matrix_of

COMPRESSED = [name for name, form in FORMS.items() if form.layers and form.runs]


@pytest.mark.parametrize("name", COMPRESSED)
def test_every_form_computes_the_same(name: str) -> None:
    form = FORMS[name]
    model = preparing.prepare(files.load(form.model()))
    config = Config(**form.settings)
    layers, _ = find(model, conv1x1=config.conv1x1, tables=config.takes_tables, kinds=config.kinds)
    normal = normalise(model)
    rewritten = rewrite(model, layers, {layer.weight: quantized_form(normal, layer, config) for layer in layers})
    before = files.to_bytes(rewritten)
    dense = decompress(rewritten)
    assert files.to_bytes(rewritten) == before
    assert not any(node.domain == DOMAIN for node in dense.graph.all_nodes())
    assert not any(domain == DOMAIN for domain, _, _ in dense.functions)
    assert DOMAIN not in dense.opset_imports
    onnx.checker.check_model(ir.to_proto(dense))
    for found, expected in zip(run(dense, form.inputs()), run(rewritten, form.inputs()), strict=True):
        assert found.dtype == expected.dtype
        budget = FLOAT_BUDGET if found.dtype == np.float32 else 2e-3
        assert largest_difference(found.astype(np.float64), expected.astype(np.float64)) < budget


LAYERS = {
    "nibbles": random_layer(1, 10, 33),
    "stages": random_layer(2, 33, 7, d=3, codewords=5, groups=2, stages=2),
    "bytes": random_layer(3, 40, 64, d=8, codewords=256, groups=3, codebook_type=np.int8),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_weight_has_the_bits_that_its_body_decodes(name: str) -> None:
    """The rows of the identity through a layer without bias are the columns of its weight, exactly."""
    layer = replace(LAYERS[name], bias=np.zeros(len(LAYERS[name].scales), np.float32))
    model = ir.from_proto(model_of(layer))
    (decoded,) = run(model, {"X": np.eye(layer.in_features, dtype=np.float32)})
    found = matrix_of(model.graph.node("fc"))
    np.testing.assert_array_equal(found, decoded.T)
    exact = decode(layer.codebooks, layer.codes, layer.scales, layer.in_features)
    np.testing.assert_allclose(found, exact, rtol=1e-6, atol=1e-6)


def test_rows_of_a_table() -> None:
    table = LAYERS["bytes"]
    model = ir.from_proto(lookup_model_of(table))
    rows = np.array([0, 39, -1, 7])
    np.testing.assert_array_equal(run(decompress(model), {"rows": rows})[0], run(model, {"rows": rows})[0])


def test_float16_layers_give_float16() -> None:
    layer: PQLayer = LAYERS["nibbles"]
    model = ir.from_proto(model_of(layer, x_type=onnx.TensorProto.FLOAT16))
    x: Mapping[str, np.ndarray] = {"X": normal_rows(0, 2, 33).astype(np.float16)}
    found, expected = run(decompress(model), x)[0], run(model, x)[0]
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-3)


def test_two_layers_of_one_weight_share_it_again() -> None:
    text = "(float[N,64] x) => (float[N,64] z) { h = MatMul(x, w) z = MatMul(h, w) }"
    model = parse(text, initializer("w", 64, 64))
    layers, _ = find(model)
    dense = decompress(rewrite(model, layers, {"w": quantized(layers[0])}))
    assert [value.const_value.shape.numpy() for value in dense.graph.initializers.values()] == [(64, 64)]


def test_a_model_without_operators_of_ours_is_refused() -> None:
    with pytest.raises(ModelError, match="no operator of onnxpq: there is nothing to decompress"):
        decompress(parse("(float[N,64] x) => (float[N,64] y) { y = Relu(x) }"))


def test_codes_that_are_computed_are_refused() -> None:
    model = ir.from_proto(model_of(LAYERS["nibbles"], as_inputs=("codes",)))
    with pytest.raises(ModelError, match=r"Input 'codes' of node 'fc' \(onnxpq::PQMatMul\) is no constant"):
        decompress(model)

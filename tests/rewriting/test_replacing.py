import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from skl2onnx import to_onnx
from sklearn.neural_network import MLPClassifier, MLPRegressor

from onnxpq.errors import ConfigError, ModelError, VerificationError
from onnxpq.graph import files
from onnxpq.graph.layers import Layer
from onnxpq.pq.reference import decode
from onnxpq.pq.tensor import PQTensor
from onnxpq.rewriting.listing import find
from onnxpq.rewriting.replacing import rewrite, update_initializers
from onnxpq.rewriting.rules.base import interface

FLOAT32_BUDGET = 1e-5
"""Largest difference, relative to the largest absolute output: the order of float32 sums of up to 100 terms."""


def weight(name: str, *shape: int) -> onnx.TensorProto:
    values = np.random.default_rng(len(name)).standard_normal(shape).astype(np.float32)
    return numpy_helper.from_array(values, name)


def parse(text: str, *initializers: onnx.TensorProto, opset: int = 17, ir_version: int = 8) -> ir.Model:
    proto = onnx.parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\nmain {text}')
    proto.graph.initializer.extend(initializers)
    return files.load(proto)


def quantized(layers: list[Layer]) -> dict[str, PQTensor]:
    rng = np.random.default_rng(0)
    return {
        layer.weight: PQTensor(
            codebooks=rng.standard_normal((1, 1, 16, 4)).astype(np.float16),
            codes=rng.integers(0, 16, (layer.out_features, 1, -(-layer.in_features // 4)), dtype=np.uint8),
            scales=np.full(layer.out_features, 0.1, np.float32),
            in_features=layer.in_features,
        )
        for layer in layers
    }


def run(model: ir.Model, inputs: dict[str, np.ndarray]) -> list:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(files.to_bytes(model), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def check_model(model: ir.Model, inputs: dict[str, np.ndarray]) -> tuple[list[Layer], ir.Model]:
    """Rewrites a model, and compares its first float output with that of the model with the decoded weights."""
    layers, _ = find(model, min_weights=0)
    tensors = quantized(layers)
    rewritten = rewrite(model, layers, tensors)
    assert interface(rewritten.graph) == interface(model.graph)
    values = {}
    for layer in layers:
        t = tensors[layer.weight]
        w = decode(t.codebooks, t.codes, t.scales, t.in_features).astype(np.float32)
        values[layer.weight] = w.T if layer.weight_is_in_out else w
    found, expected = (scores(run(m, inputs)) for m in (rewritten, update_initializers(model, values)))
    assert np.abs(found - expected).max() <= FLOAT32_BUDGET * np.abs(expected).max()
    return layers, rewritten


def scores(outputs: list) -> np.ndarray:
    """The first float output; ZipMap's dictionaries as a matrix."""
    for output in outputs:
        if isinstance(output, list):
            return np.array([list(row.values()) for row in output])
        if output.dtype == np.float32:
            return output
    raise AssertionError("no float output")


TWO_LAYERS = """(float[N,64] x) => (float[N,32] y) {
    [first] h = MatMul(x, w1) [act] r = Relu(h) [second] y = Gemm(r, w2, b2)
}"""


def two_layers(**options: int) -> ir.Model:
    return parse(TWO_LAYERS, weight("w1", 64, 48), weight("w2", 48, 32), weight("b2", 32), **options)


class TestFind:
    def test_layers_and_small_ones(self):
        layers, skipped = find(two_layers(), min_weights=2000)
        assert [(layer.node, layer.weight) for layer in layers] == [("first", "w1")]
        assert [(s.node, s.weight, s.reason) for s in skipped] == [
            ("second", "w2", "It has fewer than 2000 weights (--min-weights), and would gain too little.")
        ]

    def test_include_and_exclude(self):
        layers, skipped = find(two_layers(), include=["f*", "sec*"], exclude=["*ond"])
        assert [layer.node for layer in layers] == ["first"]
        assert [s.reason for s in skipped] == ["Excluded by '*ond'."]
        layers, skipped = find(two_layers(), include=["second"])
        assert [layer.node for layer in layers] == ["second"]
        assert [s.reason for s in skipped] == ["Not included by 'second'."]

    def test_globs_are_case_sensitive_and_names_with_brackets_match_themselves(self):
        model = parse("(float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }", weight("w", 64, 64))
        model.graph.node(0).name = "/fc[0]/MatMul"
        assert len(find(model, include=["/fc[0]/MatMul"])[0]) == 1
        with pytest.raises(ConfigError, match="matches no node"):
            find(model, include=["/FC*"])

    @pytest.mark.parametrize("kind", ["include", "exclude"])
    def test_a_glob_that_matches_nothing(self, kind):
        sentence = f"The '{kind}' pattern 'third' matches no node with a weight. Names there are: 'first', 'second'."
        with pytest.raises(ConfigError, match=sentence):
            find(two_layers(), **{kind: ["third"]})

    def test_a_weight_that_another_node_keeps_is_not_worth_compressing(self):
        text = """(float[N,64] x, int64[N] i) => (float[N,64] y, float[N,64] e) {
            [fc] y = MatMul(x, w) [emb] e = Gather(w, i)
        }"""
        layers, skipped = find(parse(text, weight("w", 64, 64)))
        assert not layers
        assert [s.reason for s in skipped] == [
            "The weight 'w' is used by node 'emb' (Gather) too, which is left as it is: the weight would stay "
            "in the file.",
            "It is a table that is looked up, as an embedding is. --tables takes it.",
        ]

    def test_excluding_one_of_two_users_of_a_weight_leaves_both(self):
        text = "(float[N,64] x) => (float[N,64] y) { [one] h = MatMul(x, w) [two] y = MatMul(h, w) }"
        layers, skipped = find(parse(text, weight("w", 64, 64)), exclude=["two"])
        assert not layers
        assert [s.reason[:37] for s in skipped] == ["The weight 'w' is used by node 'two' ", "Excluded by 'two'."]

    def test_a_weight_used_both_ways(self):
        text = "(float[N,64] x) => (float[N,64] y) { [one] h = Gemm(x, w) [two] y = Gemm<transB=1>(h, w) }"
        _, skipped = find(parse(text, weight("w", 64, 64)))
        assert {s.reason for s in skipped} == {"The weight 'w' is used as it is and transposed by 'one', 'two'."}

    def test_a_weight_that_is_an_output(self):
        text = "(float[N,64] x) => (float[N,64] y, float[64,64] w) { [fc] y = MatMul(x, w) }"
        _, skipped = find(parse(text, weight("w", 64, 64)))
        assert [s.reason for s in skipped] == ["The weight 'w' is a graph output too, and would stay in the file."]

    def test_a_node_without_a_name_is_called_by_its_output(self):
        text = "(float[N,64] x) => (float[N,64] y) { y = MatMul(x, w) }"
        model = parse(text, weight("w", 64, 64))
        layers, rewritten = check_model(model, {"x": np.ones((2, 64), np.float32)})
        assert layers[0].node == "y"
        assert [(node.name, node.outputs[0].name) for node in rewritten.graph] == [("y", "y")]


class TestUpdateInitializers:
    def test_new_values_keep_type_and_leave_the_model(self):
        model = two_layers()
        before = model.graph.initializers["b2"].const_value.numpy().copy()
        updated = update_initializers(model, {"b2": np.arange(32, dtype=np.float64)})
        found = updated.graph.initializers["b2"].const_value
        assert found.dtype == ir.DataType.FLOAT
        np.testing.assert_array_equal(found.numpy(), np.arange(32))
        np.testing.assert_array_equal(model.graph.initializers["b2"].const_value.numpy(), before)
        assert updated.graph.initializers["w1"].const_value is model.graph.initializers["w1"].const_value

    def test_the_callers_array_is_copied(self):
        array = np.zeros(32, np.float32)
        updated = update_initializers(two_layers(), {"b2": array})
        array += 1
        assert not updated.graph.initializers["b2"].const_value.numpy().any()

    def test_constant_nodes(self):
        model = parse("(float[2] x) => (float[2] y) { b = Constant<value_floats = [1.0, 2.0]>() y = Add(x, b) }")
        updated = update_initializers(model, {"b": np.array([5, 7], np.float32)})
        np.testing.assert_array_equal(run(updated, {"x": np.zeros(2, np.float32)})[0], [5, 7])

    def test_float16(self):
        tensor = numpy_helper.from_array(np.ones(2, np.float16), "b")
        model = parse("(float16[2] x) => (float16[2] y) { y = Add(x, b) }", tensor)
        updated = update_initializers(model, {"b": np.array([0.5, 3], np.float32)})
        assert updated.graph.initializers["b"].const_value.dtype == ir.DataType.FLOAT16
        with pytest.raises(ModelError, match="The new value of 'b' is NaN or infinite as float16"):
            update_initializers(model, {"b": np.array([1e6, 3], np.float32)})

    @pytest.mark.parametrize(
        ("name", "value", "sentence"),
        [
            ("nope", np.zeros(1), "The model has no initializer 'nope' to update."),
            ("b2", np.zeros(3), r"The new value of 'b2' has shape \[3\]; expected \[32\]."),
            ("b2", np.zeros(32, np.int64), "The new value of 'b2' has type int64; expected float32."),
            ("b2", np.full(32, np.nan), "The new value of 'b2' is NaN or infinite as float32."),
        ],
    )
    def test_refusals(self, name, value, sentence):
        with pytest.raises(ModelError, match=sentence):
            update_initializers(two_layers(), {name: value})


class TestRewrite:
    def test_names_metadata_and_the_original_stay(self):
        model = two_layers()
        model.metadata_props["mean"] = "0.1307"
        model.doc_string = "about"
        model.graph.node("second").metadata_props["origin"] = "torch"
        before = files.to_bytes(model)
        _, rewritten = check_model(model, {"x": np.ones((3, 64), np.float32)})
        assert files.to_bytes(model) == before
        assert rewritten.metadata_props == {"mean": "0.1307"}
        assert rewritten.doc_string == "about"
        assert [(node.name, node.op_type) for node in rewritten.graph] == [
            ("first", "PQMatMul"), ("act", "Relu"), ("second", "PQMatMul")
        ]  # fmt: skip
        assert [node.outputs[0].name for node in rewritten.graph] == ["h", "r", "y"]
        assert rewritten.graph.node("second").metadata_props == {"origin": "torch"}
        assert rewritten.opset_imports == {"": 17, "onnxpq": 1}
        assert list(rewritten.functions) == [("onnxpq", "PQDecode", ""), ("onnxpq", "PQMatMul", "")]

    @pytest.mark.parametrize("opset", [9, 10, 11, 12, 13, 15, 17, 19, 21, 23])
    def test_opsets(self, opset):
        check_model(two_layers(opset=opset), {"x": np.ones((3, 64), np.float32)})

    @pytest.mark.parametrize(("before", "after"), [(4, 8), (7, 8), (8, 8), (10, 10)])
    def test_ir_version(self, before, after, caplog):
        model = two_layers(opset=9, ir_version=before)
        layers, _ = find(model)
        with caplog.at_level("INFO", "onnxpq"):
            assert rewrite(model, layers, quantized(layers)).ir_version == after
        assert ("IR version" in caplog.text) == (before != after)

    def test_no_layers_no_change(self):
        model = two_layers()
        assert files.to_bytes(rewrite(model, [], {})) == files.to_bytes(model)

    def test_what_is_not_needed_any_more_leaves_the_file(self, tmp_path: Path):
        values = ", ".join(map(str, range(256)))
        text = f"""(float[N,64] x) => (float[N,16] y) {{
            h = MatMul(x, w1)
            w2 = Constant<value = float[16,16] {{ {values} }}>()
            y = MatMul(h, w2)
        }}"""
        model = parse(text, weight("w1", 64, 16), weight("unused", 9))
        files.save(model, tmp_path / "before.onnx")
        layers, _ = find(model, min_weights=0)
        tensors = quantized(layers)
        rewritten = rewrite(model, layers, tensors)
        files.save(rewritten, tmp_path / "after.onnx")
        assert [node.op_type for node in rewritten.graph] == ["PQMatMul", "PQMatMul"]
        assert all(name.startswith(("w1.", "w2.")) for name in rewritten.graph.initializers)
        biases = 4 * 16
        constants = sum(tensor.nbytes for tensor in tensors.values()) + biases
        assert sum(v.const_value.nbytes for v in rewritten.graph.initializers.values()) == constants
        before, after = (files.file_bytes(tmp_path / name) for name in ("before.onnx", "after.onnx"))
        removed = 4 * (64 * 16 + 16 * 16 + 9)
        function_bytes = sum(map(len, rewritten.functions.values())) * 100
        assert after < before - removed + constants + function_bytes
        assert b"unused" not in (tmp_path / "after.onnx").read_bytes()

    def test_a_layer_that_was_dead_before_is_left(self):
        text = "(float[N,64] x) => (float[N,64] y) { y = Relu(x) [dead] z = Neg(x) }"
        model = parse(text)
        assert [node.name for node in rewrite(model, [], {}).graph][1] == "dead"

    def test_a_weight_used_by_a_layer_that_is_not_rewritten_stays(self):
        text = "(float[N,64] x) => (float[N,64] y) { [one] h = MatMul(x, w) [two] y = MatMul(h, w) }"
        model = parse(text, weight("w", 64, 64))
        layers, _ = find(model)
        rewritten = rewrite(model, layers[:1], quantized(layers))
        assert [node.op_type for node in rewritten.graph] == ["PQMatMul", "MatMul"]
        assert "w" in rewritten.graph.initializers

    def test_rewriting_in_two_steps(self):
        model = two_layers()
        layers, _ = find(model)
        tensors = quantized(layers)
        half = rewrite(model, layers[:1], tensors)
        rest, skipped = find(half)
        assert [layer.node for layer in rest] == ["second"]
        assert [s.reason for s in skipped] == ["It is compressed already."]
        whole = rewrite(half, rest, tensors)
        x = {"x": np.random.default_rng(0).standard_normal((3, 64)).astype(np.float32)}
        np.testing.assert_array_equal(run(whole, x)[0], run(rewrite(model, layers, tensors), x)[0])

    def test_refusals(self):
        model = two_layers()
        layers, _ = find(model)
        tensors = quantized(layers)
        with pytest.raises(ConfigError, match=r"no quantized tensor for the weight 'w2' of node 'second'; .* for 'w1'"):
            rewrite(model, layers, {"w1": tensors["w1"]})
        with pytest.raises(
            ConfigError, match=r"weight 'w1' has \[out, in\] = \[32, 48\]; node 'first' needs \[48, 64\]"
        ):
            rewrite(model, layers, {"w1": tensors["w2"], "w2": tensors["w2"]})
        other = parse("(float[N,64] x) => (float[N,64] y) { [first] y = MatMul(x, w) }", weight("w", 64, 64))
        with pytest.raises(ConfigError, match=r"The model has no layer .*node='first'.* Pass layers that find"):
            rewrite(other, layers, tensors)

    def test_an_invalid_result_is_an_error(self, monkeypatch):
        model = two_layers()
        layers, _ = find(model)
        monkeypatch.setattr("onnxpq.rewriting.replacing.VERSION", -1)
        monkeypatch.setattr("onnxpq.rewriting.replacing.DOMAIN", "elsewhere")
        with pytest.raises(VerificationError, match=r"does not pass ONNX's checker.*onnxpq"):
            rewrite(model, layers, quantized(layers))


class Mlp(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3)
        self.fc1 = torch.nn.Linear(4 * 6 * 6, 40)
        self.fc2 = torch.nn.Linear(40, 10, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(torch.relu(self.fc1(torch.relu(self.conv(x)).flatten(1))))


class Tokens(torch.nn.Module):
    """Linear layers on three dimensions: MatMul and Add, not Gemm."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = torch.nn.Linear(24, 48), torch.nn.Linear(48, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


@pytest.mark.parametrize("dynamo", [True, False])
@pytest.mark.parametrize(("network", "shape"), [(Mlp, (2, 1, 8, 8)), (Tokens, (2, 3, 24))])
def test_torch_exports(tmp_path: Path, network, shape, dynamo):
    torch.manual_seed(0)
    x = torch.randn(shape)
    path = tmp_path / "model.onnx"
    dynamic = {"dynamic_shapes": ({0: "batch"},)} if dynamo else {"dynamic_axes": {"input": {0: "batch"}}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(network().eval(), (x,), path, dynamo=dynamo, input_names=["input"], verbose=False, **dynamic)
    layers, rewritten = check_model(files.load(path), {"input": x.numpy()})
    assert len(layers) == 2
    assert [node.op_type for node in rewritten.graph].count("PQMatMul") == 2


@pytest.mark.parametrize("estimator", [MLPClassifier, MLPRegressor])
def test_skl2onnx_exports(estimator):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((60, 8)).astype(np.float32), np.arange(60) % 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        proto = to_onnx(estimator(hidden_layer_sizes=(24, 12), max_iter=3, random_state=0).fit(x, y), x[:1])
    model = files.load(proto)
    layers, rewritten = check_model(model, {"X": x})
    assert [layer.bias is not None for layer in layers] == [True] * 3
    types = [output.type for output in files.to_proto(rewritten).graph.output]
    assert types == [output.type for output in proto.graph.output]

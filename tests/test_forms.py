"""Every form of a layer, end to end: found or refused, compressed, run with and without the library, trained."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from form_checks import outcome
from model_forms import FORMS, IN, OUT, weight
from onnx import numpy_helper

import onnxpq
from onnxpq import runtime
from onnxpq.config.settings import Config, PQConfig, TrainingConfig
from onnxpq.errors import DataError, NothingToCompressError
from onnxpq.verification import proof

PQ = PQConfig()

COMPRESSED = [name for name, form in FORMS.items() if form.layers]
REFUSED = [name for name, form in FORMS.items() if not form.layers]

TWELVE = 12

FLOAT32_BUDGET = 1e-5
"""Of the function body, relative L2, where the model computes in float32."""

STORED_TYPE_BUDGETS = {"bfloat16": 1e-2, "float16": 1e-3, "double": 1e-5}
"""Where weights or values are of another type, in which the reference rounds its weights too: a few roundings each."""

LIBRARY_BUDGET = 2e-3
"""Of the operator's int16 tables, which are within 1e-3 of a layer's output."""


@pytest.fixture(autouse=True)
def few_timings(monkeypatch):
    monkeypatch.setattr(proof, "LATENCY_ROUNDS", 3)


def stock_budget(name: str) -> float:
    return next((budget for kind, budget in STORED_TYPE_BUDGETS.items() if name.startswith(kind)), FLOAT32_BUDGET)


def takes_half(name: str) -> bool:
    """Whether X of the operator is float16."""
    return name == "float16"


def test_the_twelve_forms_come_first():
    expected = """MatMul; Gemm, transB; float16; bfloat16; weight in a Constant node; weight -> Transpose; inside a
        local function; inside If branches; 3-D weight (batched MatMul); one weight in two MatMuls; Conv 1x1; Gather
        (embedding)"""
    assert list(FORMS)[:TWELVE] == re.sub(r"\s+", " ", expected).split("; ")


@pytest.mark.parametrize("name", COMPRESSED)
def test_compressed(name):
    form = FORMS[name]
    found = outcome(form, PQ, use_library=not takes_half(name))
    assert found.layers == form.layers
    assert found.trainable
    assert found.bytes_after < found.bytes_before / 2
    budget = stock_budget(name)
    assert found.stock_error <= budget, f"{found.stock_error} > {budget}"
    if found.library_error is not None:
        assert found.library_error <= LIBRARY_BUDGET + budget, f"{found.library_error} > {LIBRARY_BUDGET + budget}"


@pytest.mark.skipif(not runtime.library_available(), reason="the operator library was not built")
def test_float16_on_the_operator_library():
    found = outcome(FORMS["float16"], PQ)
    assert found.library_error <= LIBRARY_BUDGET + STORED_TYPE_BUDGETS["float16"]


def test_the_budgets_see_an_error_of_two_percent():
    assert max(*STORED_TYPE_BUDGETS.values(), FLOAT32_BUDGET, LIBRARY_BUDGET) < 0.02


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(name):
    form = FORMS[name]
    found = outcome(form, PQ)
    assert not found.layers
    assert any(form.reason in reason for reason in found.reasons), found.reasons
    with pytest.raises(NothingToCompressError, match=re.escape(form.reason)):
        onnxpq.compress(form.model(), config=Config(**form.settings))


@pytest.mark.parametrize("name", COMPRESSED)
def test_trained_end_to_end(name, monkeypatch):
    if takes_half(name):
        monkeypatch.setattr(runtime, "library_available", lambda: False)
    form = FORMS[name]
    has_samples_first = form.text.startswith("(float[N")
    # The condition of an If is that of a whole batch, so that a batch is a call.
    is_whole = "branch" in name
    training = TrainingConfig(epochs=2, regularized=0.5, batch_size=2 if is_whole else 16, mixup=0)
    data = [form.inputs(rows=10, seed=seed) for seed in range(6)] if is_whole else form.inputs(rows=40)
    settings = {"batch_axis": "none" if is_whole else None, **form.settings}
    result = onnxpq.compress(
        form.model(), data if has_samples_first else None, config=Config(training=training, **settings)
    )
    report = result.report
    assert tuple(layer.node for layer in report.layers) == form.layers
    assert report.verification.bytes_after < report.verification.bytes_before / 2
    if has_samples_first:
        assert report.training.best <= report.training.quantized
        assert {epoch.phase for epoch in report.training.epochs} == {"regularized", "tuned"}
    stored = sum(layer.bytes_before for layer in report.layers)
    assert stored <= report.verification.bytes_before <= stored + 2000, "the report counts the weights' bytes"


@pytest.mark.rounding
def test_training_changes_what_is_in_a_branch():
    form = FORMS["weight of the main graph and a branch"]
    data = form.inputs(rows=1500, seed=3)
    # With two numbers a code .73 to .93 of the loss are left (five seeds of data and training), with eight up to .97.
    config = Config(pq=PQConfig(sub_vector=2), training=TrainingConfig(epochs=6, batch_size=32, mixup=0))
    untrained = replace(config, training=TrainingConfig(epochs=0))
    trained, plain = (onnxpq.compress(form.model(), data, config=c) for c in (config, untrained))
    assert trained.report.training.best < 0.95 * trained.report.training.quantized
    changed = {
        name
        for graph, other in zip(trained.model.graphs(), plain.model.graphs(), strict=True)
        for name, value in graph.initializers.items()
        if name.endswith(".codebooks")
        and not np.array_equal(value.const_value.numpy(), other.initializers[name].const_value.numpy())
    }
    assert {name.split(".")[0] for name in changed} == {"v", "w"}


def test_a_weight_of_two_graphs_is_one_parameter_and_one_codebook():
    form = FORMS["weight of the main graph and a branch"]
    result = onnxpq.compress(form.model())
    copies = [
        value.const_value.numpy()
        for graph in result.model.graphs()
        for name, value in graph.initializers.items()
        if name.startswith("w.codebooks")
    ]
    assert len(copies) == 2
    np.testing.assert_array_equal(*copies)
    counted = [(layer.place, layer.bytes_before > 0, layer.bytes_after > 0) for layer in result.report.layers]
    assert counted == [("", True, True), ("choice.then_branch", True, True), ("choice.else_branch", False, True)]


def test_the_report_names_the_subgraph():
    report = onnxpq.compress(FORMS["inside If branches"].model()).report
    assert "one in choice.then_branch" in report.to_text()
    assert "two in choice.else_branch" in report.to_text()


def test_bfloat16_says_what_it_was_compared_with():
    report = onnxpq.compress(FORMS["bfloat16"].model()).report
    assert any("are those of the same model in float32" in note for note in report.notes)
    assert report.layers[0].bytes_before == 2 * IN * report.layers[0].shape[0]


def test_constants_of_a_branch_lie_in_the_branch():
    # onnxruntime 1.17 to 1.22 tells an operator in a subgraph that what lies outside is not constant.
    result = onnxpq.compress(FORMS["inside If branches"].model())
    for graph in result.model.graphs():
        for node in graph:
            if node.op_type == "PQMatMul":
                assert all(value.graph is graph for value in node.inputs[1:])


def test_the_committed_table_says_what_is_true():
    table = (Path(__file__).resolve().parent.parent / "docs" / "forms.md").read_text(encoding="utf-8")
    rows = {cells[1]: cells[2] for line in table.splitlines() if len(cells := [c.strip() for c in line.split("|")]) > 3}
    for name, form in FORMS.items():
        verdict = rows[name.replace("|", "\\|")]
        assert verdict.startswith("compressed") == bool(form.layers), name
        if not form.layers:
            assert form.reason in verdict, name


STATEFUL = """<ir_version: 8, opset_import: ["" : 17]>
m (float[N,96] x, float[2,N,96] state, int64 rate) => (float[N,160] y, float[2,N,96] new) {
    high = Equal(rate, fast) new = Tanh(state)
    y = If(high) <
        then_branch = a () => (float[N,160] p) { [one] p = MatMul(x, v) },
        else_branch = b () => (float[N,160] q) { [two] q = MatMul(x, w) }
    >
}"""


def stateful() -> onnx.ModelProto:
    """A model that is called with a scalar and with a state whose first axis is not the batch, as silero-vad is."""
    model = onnx.parser.parse_model(STATEFUL)
    tensors = {"v": weight(IN, OUT), "w": weight(IN, OUT, seed=1), "fast": np.array(16000)}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in tensors.items())
    return model


def call(rate: int = 16000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "x": rng.standard_normal((3, IN)).astype(np.float32),
        "state": rng.standard_normal((2, 3, IN)).astype(np.float32),
        "rate": np.array(rate),
    }


@pytest.mark.parametrize("rate", [16000, 8000])
def test_a_model_without_samples_is_verified_on_one_call(rate, tmp_path):
    np.savez(tmp_path / "call.npz", **call(rate))
    report = onnxpq.compress(stateful(), test=tmp_path / "call.npz", config=Config(pq=PQConfig(8))).report
    assert [layer.node for layer in report.layers] == ["one", "two"]
    verified = report.verification
    assert (verified.samples, verified.data) == (1, "test data, not trained on")
    errors = {output.name: output.relative_error for output in verified.outputs}
    assert errors["new"] == 0
    assert 0.1 < errors["y"] < 1
    assert [latency.batch for latency in verified.latency] == [1]


def test_a_model_without_samples_is_trained_on_calls():
    calls = [call(rate) for rate in (16000, 8000, 16000)]
    config = Config(pq=PQConfig(8), training=TrainingConfig(steps=5))
    report = onnxpq.compress(stateful(), calls, test=calls[:1], config=config).report
    assert (report.verification.samples, report.verification.of_calls) == (1, True)
    assert [layer.training for layer in report.layers] == ["end to end", "end to end"]
    plain = onnxpq.compress(stateful()).report
    assert plain.verification.of_calls


@pytest.mark.parametrize(
    ("data", "test", "sentence"),
    [
        (call(), None, "The training data has 1 call: too few to set some aside"),
        (None, {**call(), "state": np.zeros((3, 3, IN), np.float32)}, r"'state' has shape \[3, 3, 96\]"),
        (None, {**call(), "x": np.full((3, IN), np.nan, np.float32)}, "NaN"),
    ],
)
def test_a_model_without_samples_is_refused(data, test, sentence):
    with pytest.raises(DataError, match=sentence):
        onnxpq.compress(stateful(), data, test=test)


@pytest.mark.parametrize("name", ["inside If branches", "inside a Loop", "inside a Scan"])
def test_weights_in_subgraphs_are_decoded_once_at_load(name, tmp_path):
    result = onnxpq.compress(FORMS[name].model())
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    runtime.session(result.model, use_library=False, options=options)
    graphs = [
        attribute.g
        for node in onnx.load(tmp_path / "optimized.onnx").graph.node
        for attribute in node.attribute
        if attribute.HasField("g")
    ]
    left = {node.op_type for graph in graphs for node in graph.node}
    assert left & {"Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
    assert not left & {"Gather", "Reshape", "ReduceMax", "Flatten"}

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny_models import CLASSES, FEATURES, build, classes, initializer, mlp, samples, save_model

import onnxpq
from benchmarks.common.chain import build as build_chain
from onnxpq import data, runtime
from onnxpq.data import Alignment
from onnxpq.data.datasets import Dataset
from onnxpq.errors import DataError, ModelError, VerificationError
from onnxpq.graph import files
from onnxpq.graph.layers import Layer
from onnxpq.network.matrices import matrix_of
from onnxpq.pq.layout import Layout
from onnxpq.quantization.encoding import quantize
from onnxpq.report.run import Verification
from onnxpq.rewriting.listing import find
from onnxpq.rewriting.replacing import rewrite
from onnxpq.runtime import alignment
from onnxpq.verification import proof

MODELS = Path(__file__).resolve().parents[2] / "models"

FLOAT32_BUDGET = 1e-5
"""Relative difference of figures from two orders of the same float32 sums."""

Verify = Callable[..., Verification]


@pytest.fixture
def verify(tmp_path: Path) -> Verify:
    """`verification.verify` of two models that are written to files first."""

    def run(original: onnx.ModelProto, compressed: onnx.ModelProto, dataset: Dataset, **options: Any) -> Verification:
        paths = [save_model(tmp_path / f"{i}.onnx", model) for i, model in enumerate((original, compressed))]
        settings = {"output": "logits", "description": "test", "held_out": True, "file_bytes": (100, 50), **options}
        specs = data.input_specs(ir.from_proto(original))
        known = aligned(original, dataset, data.batch_of(dataset, specs))
        return proof.verify(*paths, dataset, specs, aligned=known, **settings)

    return run


def aligned(model: runtime.Model, dataset: Dataset, fixed: int | None = None) -> Alignment:
    """Where the samples lie in its outputs."""
    return alignment.measure(partial(runtime.run, runtime.session(model, use_library=False)), dataset, fixed)[0]


def with_scaled_logits(model: onnx.ModelProto, factor: float) -> onnx.ModelProto:
    """The model with another last layer, so that all logits are `factor` times what they were."""
    scaled = onnx.ModelProto()
    scaled.CopyFrom(model)
    for tensor in scaled.graph.initializer:
        if tensor.name in ("W2", "b2"):
            tensor.CopyFrom(numpy_helper.from_array(np.float32(factor) * numpy_helper.to_array(tensor), tensor.name))
    return scaled


def outputs_of(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})


# What is measured


def test_a_model_against_itself(verify: Verify) -> None:
    found = verify(mlp(labels=True), mlp(labels=True), Dataset({"x": samples()}, classes()))
    assert (found.samples, found.data, found.held_out) == (60, "test", True)
    assert (found.bytes_before, found.bytes_after) == (100, 50)
    logits, label = found.outputs
    assert (logits.name, logits.max_error, logits.relative_error, logits.agreement) == ("logits", 0.0, 0.0, 1.0)
    assert (label.name, label.max_error, label.relative_error, label.agreement) == ("label", None, None, 1.0)
    assert found.accuracy is not None
    assert found.accuracy.original == found.accuracy.compressed
    assert found.accuracy.drop.value == 0
    assert found.squared_error is None
    assert [entry.batch for entry in found.latency] == list(proof.LATENCY_BATCHES)
    assert all(entry.original > 0 and (entry.stock or 0) > 0 for entry in found.latency)


def test_figures_over_several_batches_against_numpy(verify: Verify) -> None:
    x, labels = samples(300), classes(300)
    found = verify(mlp(labels=True), mlp(seed=4, labels=True), Dataset({"x": x}, labels))
    (before, first), (after, second) = outputs_of(mlp(labels=True), x), outputs_of(mlp(seed=4, labels=True), x)
    logits, label = found.outputs
    error = np.linalg.norm(after.astype(np.float64) - before) / np.linalg.norm(before.astype(np.float64))
    assert logits.relative_error == pytest.approx(error, rel=FLOAT32_BUDGET)
    assert logits.max_error == pytest.approx(np.abs(after - before).max(), rel=FLOAT32_BUDGET)
    assert logits.agreement == label.agreement == (first == second).mean()
    assert found.accuracy is not None
    assert found.accuracy.original.value == (first == labels).mean()
    assert found.accuracy.compressed.value == (second == labels).mean()
    assert found.accuracy.drop.value == pytest.approx((first == labels).mean() - (second == labels).mean())


def test_an_error_of_2_percent_is_reported_as_such(verify: Verify) -> None:
    found = verify(mlp(), with_scaled_logits(mlp(), 1.02), Dataset({"x": samples()}))
    assert found.outputs[0].relative_error == pytest.approx(0.02, rel=1e-3)


def test_progress_tells_the_samples(verify: Verify) -> None:
    told: list[tuple[int, int]] = []
    verify(mlp(), mlp(), Dataset({"x": samples(300)}), progress=lambda *done: told.append(done))
    assert told == [(256, 300), (300, 300)]


def test_a_compressed_model_runs_both_ways(tmp_path: Path) -> None:
    original = files.load(mlp())
    layers, _ = find(original, min_weights=1)
    tensors = {layer.weight: quantized(original, layer) for layer in layers}
    path = tmp_path / "c.onnx"
    files.save(rewrite(original, layers, tensors), path)
    found = proof.verify(
        original,
        path,
        Dataset({"x": samples()}),
        data.input_specs(original),
        output="logits",
        aligned=aligned(original, Dataset({"x": samples()})),
        description="",
        held_out=False,
        file_bytes=(len(files.to_bytes(original)), files.file_bytes(path)),
    )
    assert 0 < (found.outputs[0].relative_error or 0) < 1
    assert found.bytes_after < found.bytes_before
    if runtime.library_available():
        assert (found.library_agreement or 0) <= proof.LIBRARY_BUDGET
        assert all(entry.library is not None for entry in found.latency)
    else:
        assert found.library_agreement is None
        assert all(entry.library is None for entry in found.latency)


def test_large_models_are_not_folded_and_not_timed_on_stock_operators(tmp_path: Path, monkeypatch: Any) -> None:
    original = files.load(mlp())
    layers, _ = find(original, min_weights=1)
    path = tmp_path / "c.onnx"
    files.save(rewrite(original, layers, {layer.weight: quantized(original, layer) for layer in layers}), path)
    dataset, specs = Dataset({"x": samples()}, classes()), data.input_specs(original)
    options = {"output": "logits", "description": "", "held_out": True, "file_bytes": (10**6, 10**5)}
    options["aligned"] = aligned(original, dataset)
    found = []
    for limit in (10**6, 10**6 - 1):
        monkeypatch.setattr(files, "LARGE_BYTES", limit)
        found.append(proof.verify(original, path, dataset, specs, **options))
    folded, unfolded = found
    assert all(entry.stock is not None for entry in folded.latency)
    assert all(entry.stock is None and entry.original > 0 for entry in unfolded.latency)
    assert unfolded.accuracy == folded.accuracy
    for one, other in zip(folded.outputs, unfolded.outputs, strict=True):
        assert other.agreement == one.agreement
        assert other.relative_error == pytest.approx(one.relative_error, rel=1e-3)


def test_budgets_grow_with_the_layers_that_follow_one_another() -> None:
    usual, fast = ([proof.budget_of(n, fast=fast, integer=False) for n in (1, 11, 44)] for fast in (False, True))
    assert usual == pytest.approx([1e-2, 1e-2, 2e-2])
    assert fast == pytest.approx([1e-1, 1e-1, 2e-1])


@pytest.mark.skipif(not runtime.library_available(), reason="the operator library was not built")
def test_a_deep_model_is_compressed(tmp_path: Path) -> None:
    path = tmp_path / "deep.onnx"
    build_chain(path, 60, 128)
    found = onnxpq.compress(path).report.verification.library_agreement
    assert found is not None
    assert found <= proof.budget_of(60, fast=False, integer=False) / 1.5


def test_times_are_left_out_when_asked(verify: Verify) -> None:
    found = verify(mlp(), mlp(), Dataset({"x": samples()}), is_timed=False)
    assert found.latency == ()
    assert found.outputs[0].agreement == 1


def quantized(model: Any, layer: Layer) -> Any:
    weight = model.graph.initializers[layer.weight].const_value.numpy()
    layout = Layout(layer.out_features, layer.in_features, 4, 16, 1)
    return quantize(matrix_of(weight, layer), layout, seed=0).freeze()


# Other kinds of models


@pytest.mark.parametrize("count", [60, 56, 3])
def test_a_fixed_batch_is_filled_up_but_not_counted(verify: Verify, count: int) -> None:
    dataset = Dataset({"x": samples(count)}, classes(count))
    fixed = verify(mlp(batch=7), mlp(batch=7, seed=4), dataset)
    free = verify(mlp(), mlp(seed=4), dataset)
    assert fixed.accuracy == free.accuracy
    assert fixed.outputs[0].agreement == free.outputs[0].agreement
    assert fixed.outputs[0].relative_error == pytest.approx(free.outputs[0].relative_error, rel=FLOAT32_BUDGET)
    assert [entry.batch for entry in fixed.latency] == [7]


def test_maps_of_scores_are_compared_as_a_matrix() -> None:
    path = MODELS / "digits_mlp.onnx"
    with np.load(MODELS / "digits_test.npz") as archive:
        dataset = Dataset({"X": archive["X"][:50]}, archive["y"][:50])
    found = proof.verify(
        path,
        path,
        dataset,
        data.input_specs(files.load(path)),
        output="output_probability",
        aligned=aligned(path, dataset),
        description="",
        held_out=True,
        file_bytes=(2, 1),
    )
    assert [entry.name for entry in found.outputs] == ["output_label", "output_probability"]
    assert [entry.agreement for entry in found.outputs] == [1.0, 1.0]
    assert found.accuracy is not None
    assert found.accuracy.original.value >= 0.9


def with_text(seed: int) -> onnx.ModelProto:
    model = mlp(seed=seed, labels=True)
    keys = list(range(CLASSES))
    values = [f"class {key}" for key in keys]
    encoder = helper.make_node(
        "LabelEncoder", ["label"], ["name"], domain="ai.onnx.ml", keys_int64s=keys, values_strings=values
    )
    model.graph.node.append(encoder)
    model.graph.output.append(helper.make_tensor_value_info("name", TensorProto.STRING, ["N"]))
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 2))
    return model


def test_text_outputs_are_compared(verify: Verify) -> None:
    found = verify(with_text(0), with_text(4), Dataset({"x": samples()}))
    _, label, name = found.outputs
    assert (name.max_error, name.relative_error) == (None, None)
    assert name.agreement == label.agreement
    assert 0 < (name.agreement or 0) < 1


# Labels


def regression() -> onnx.ModelProto:
    node = helper.make_node("MatMul", ["x", "W"], ["logits"], name="fc")
    return build([node], {"x": ["N", FEATURES]}, {"logits": ["N", 2]}, [initializer("W", FEATURES, 2, seed=0)])


@pytest.mark.parametrize("kind", [np.float64, np.int64])
def test_squared_error_by_hand(verify: Verify, kind: type) -> None:
    x = samples(5)
    before = outputs_of(regression(), x)[0].astype(np.float64)
    labels = np.round(before).astype(kind)
    doubled = regression()
    doubled.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(2 * numpy_helper.to_array(doubled.graph.initializer[0]), "W")
    )
    found = verify(regression(), doubled, Dataset({"x": x}, labels))
    assert found.accuracy is None
    assert found.squared_error is not None
    assert found.squared_error.output == "logits"
    assert found.squared_error.original == pytest.approx(np.mean((before - labels) ** 2), rel=FLOAT32_BUDGET)
    assert found.squared_error.compressed == pytest.approx(np.mean((2 * before - labels) ** 2), rel=FLOAT32_BUDGET)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (classes(60) + 1, "Labels are out of range: found 1 to 10 (the first wrong one is that of sample "),
        (classes(60)[:, None], "Labels of shape [60, 1] do not fit scores of shape [60, 10]: [60] is expected."),
        (
            np.zeros((60, 3)),
            "Labels of shape [60, 3] do not fit the output of shape [60, 10]: as many numbers are expected.",
        ),
    ],
)
def test_labels_that_do_not_fit(verify: Verify, labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(message)}"):
        verify(mlp(), mlp(), Dataset({"x": samples()}, labels))
    with pytest.raises(DataError, match=f"^{re.escape(message)}"):
        proof.check_labels(labels, outputs_of(mlp(), samples(1))[0])


# Outputs of all layouts


STEPS = 5


def steps_model(kind: str, *, batch: int | str = "N", last: float = 1.0, low: float = 0.0) -> onnx.ModelProto:
    """``x [batch, T, 4] -> z = x * factor``, and an output of some kind.

    Args:
        kind: "time major" gives z as [T, batch, 4], "flat" as [batch * T, 4], "sum" the sum of all, "found" the places
            where it is above `low`, and "rows" the steps [K, 4] whose sum is.
        batch: first dimension.
        last: factor of the last step; that of the others is 1.
        low: a limit.
    """
    node = helper.make_node
    nodes = {
        "time major": [node("Transpose", ["z"], ["y"], name="n", perm=[1, 0, 2])],
        "flat": [node("Reshape", ["z", "rows"], ["y"], name="n")],
        "sum": [node("ReduceSum", ["z"], ["y"], name="n", keepdims=0)],
        "found": [node("Greater", ["z", "low"], ["g"], name="g"), node("NonZero", ["g"], ["y"], name="n")],
        "rows": [
            node("Reshape", ["z", "rows"], ["f"], name="f"),
            node("ReduceMax", ["f"], ["m"], name="m", axes=[1], keepdims=0),
            node("Greater", ["m", "low"], ["g"], name="g"),
            node("Compress", ["f", "g"], ["y"], name="n", axis=0),
        ],
    }
    factor = np.ones((STEPS, 1), np.float32)
    factor[-1] = last
    constants = {"factor": factor, "rows": np.array([-1, 4]), "low": np.array(low, np.float32)}
    model = build(
        [node("Mul", ["x", "factor"], ["z"], name="z"), *nodes[kind]],
        {"x": [batch, STEPS, 4]},
        {"y": []},
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
        output_types={"y": TensorProto.INT64} if kind == "found" else {},
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model


def steps_samples(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, STEPS, 4)).astype(np.float32)


@pytest.mark.parametrize("kind", ["time major", "flat"])
@pytest.mark.parametrize("batch", ["N", 1, 7])
def test_every_step_of_every_sample_counts(verify: Verify, kind: str, batch: int | str) -> None:
    """What differs is the last step of each sample; a batch of 7 is filled up, which does not count."""
    x = steps_samples(30)
    models = steps_model(kind, batch=batch), steps_model(kind, batch=batch, last=-1)
    found = verify(*models, Dataset({"x": x}), output="y").outputs[0]
    last = np.linalg.norm(x[:, -1].astype(np.float64))
    assert found.relative_error == pytest.approx(2 * last / np.linalg.norm(x.astype(np.float64)), rel=FLOAT32_BUDGET)
    assert found.max_error == pytest.approx(2 * np.abs(x[:, -1]).max(), rel=FLOAT32_BUDGET)
    assert found.agreement == 1 - 1 / STEPS
    assert (found.is_whole, found.reshaped) == (False, 0)


def test_labels_of_steps(verify: Verify) -> None:
    x = steps_samples(30)
    labels = x.argmax(-1)
    for kind in ("time major", "flat"):
        models = steps_model(kind, batch=7), steps_model(kind, batch=7, last=-1)
        accuracy = verify(*models, Dataset({"x": x}, labels), output="y").accuracy
        assert accuracy is not None
        assert (accuracy.original.value, accuracy.compressed.value) == (1.0, 1 - 1 / STEPS)


@pytest.mark.parametrize("batch", ["N", 1, 7])
def test_a_sum_of_all_is_compared_call_by_call(verify: Verify, batch: int | str) -> None:
    x = steps_samples(14)
    found = verify(
        steps_model("sum", batch=batch), steps_model("sum", batch=batch, last=-1), Dataset({"x": x}), output="y"
    )
    size = 14 if batch == "N" else int(batch)
    sums, wrong = (v.reshape(-1, size).sum(1, dtype=np.float64) for v in (x.sum((1, 2)), -2 * x[:, -1].sum(1)))
    (report,) = found.outputs
    assert report.relative_error == pytest.approx(np.linalg.norm(wrong) / np.linalg.norm(sums), rel=1e-3)
    assert (report.is_whole, report.values) == (True, 14 // size)


def test_places_that_are_found_are_compared_whole(verify: Verify) -> None:
    """Of single samples, as the numbers of a whole batch always differ."""
    x = steps_samples(30)
    found = verify(steps_model("found"), steps_model("found", low=1.0), Dataset({"x": x}), output="y").outputs[0]
    before, after = ((x > low).sum((1, 2)) for low in (0.0, 1.0))
    different = before != after
    assert (found.values, found.reshaped) == (30, different.sum())
    assert found.shapes is not None
    assert (found.max_error, found.relative_error) == (None, None)
    agreeing = sum(3 * n for n, other in zip(before, different, strict=True) if not other)
    assert found.agreement == pytest.approx(agreeing / (3 * before.sum()))


def test_rows_that_are_left_over(verify: Verify) -> None:
    x = steps_samples(30)
    same = verify(steps_model("rows"), steps_model("rows"), Dataset({"x": x}), output="y").outputs[0]
    assert (same.relative_error, same.agreement, same.reshaped) == (0.0, 1.0, 0)
    fewer = verify(steps_model("rows"), steps_model("rows", low=1.5), Dataset({"x": x}), output="y").outputs[0]
    assert fewer.reshaped == ((x.max(-1) > 0).sum(1) != (x.max(-1) > 1.5).sum(1)).sum()
    none = verify(steps_model("rows", low=9.0), steps_model("rows", low=9.0), Dataset({"x": x}), output="y").outputs[0]
    assert (none.is_empty, none.relative_error, none.agreement) == (True, None, None)


def test_labels_of_what_has_no_samples(verify: Verify) -> None:
    x = steps_samples(6)
    message = (
        r"^Output 'y' has shape \[\] for 6 samples: it has no entry for each of them that labels could be compared"
    )
    with pytest.raises(DataError, match=message):
        verify(steps_model("sum"), steps_model("sum"), Dataset({"x": x}, np.zeros(6)), output="y")


# What is no proof


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite(verify: Verify, value: float) -> None:
    dataset = Dataset({"x": samples()})
    broken = with_scaled_logits(mlp(), value)
    with pytest.raises(
        VerificationError, match=r"^Output 'logits' of the compressed model holds NaN or infinite values on"
    ):
        verify(mlp(), broken, dataset)
    with pytest.raises(
        VerificationError, match=r"^Output 'logits' of the original model holds NaN or infinite values on"
    ):
        verify(broken, mlp(), dataset)


@pytest.mark.parametrize("after", [100, 101])
def test_a_file_that_is_not_smaller(verify: Verify, after: int) -> None:
    message = f"^The compressed file would have {after} bytes, the original has 100: nothing was gained and nothing"
    with pytest.raises(VerificationError, match=message):
        verify(mlp(), mlp(), Dataset({"x": samples()}), file_bytes=(100, after))


@pytest.fixture
def library_gives(monkeypatch: pytest.MonkeyPatch) -> Callable[[onnx.ModelProto], None]:
    """Makes sessions with the operator library run another model."""
    real = runtime.session

    def install(other: onnx.ModelProto) -> None:
        def session(model: Any, *, use_library: bool = True, **_: object) -> Any:
            return real(other if use_library else model, use_library=False)

        monkeypatch.setattr(runtime, "library_available", lambda: True)
        monkeypatch.setattr(runtime, "session", session)

    return install


@pytest.mark.parametrize("factor", [1.02, -1.0, 0.0])
def test_library_and_body_that_disagree(
    verify: Verify, library_gives: Callable[[onnx.ModelProto], None], factor: float
) -> None:
    library_gives(with_scaled_logits(mlp(), factor))
    with pytest.raises(
        VerificationError, match=r"^Output 'logits': native operator and function body differ by \d\.\d\de"
    ):
        verify(mlp(), mlp(), Dataset({"x": samples()}))


@pytest.mark.parametrize(("scale", "fits"), [(1e-7, True), (1e-3, False)])
def test_rounding_near_zero_is_no_defect(
    verify: Verify, library_gives: Callable[[onnx.ModelProto], None], scale: float, fits: bool
) -> None:
    """2 % of numbers near 0 are below what onnxruntime's functions round by; 2 % of others are not."""
    library_gives(with_scaled_logits(mlp(), 1.02 * scale))
    both = with_scaled_logits(mlp(), scale), with_scaled_logits(mlp(), scale)
    if fits:
        assert verify(*both, Dataset({"x": samples()})).library_agreement == 0
    else:
        with pytest.raises(VerificationError, match=r"native operator and function body differ by 2\.00e-02"):
            verify(*both, Dataset({"x": samples()}))


def test_a_sum_that_is_small_beside_its_terms_may_differ_more(
    verify: Verify, library_gives: Callable[[onnx.ModelProto], None]
) -> None:
    data = Dataset({"x": steps_samples(14)})
    # The last step is one of five: 2 % of it are more of what is left of the sum.
    for last, fits in ((1.02, True), (3.0, False)):
        library_gives(steps_model("sum", last=last))
        if fits:
            found = verify(steps_model("sum"), steps_model("sum"), data, output="y").library_agreement
            assert found is not None
            assert 0 < found < proof.FEW_NUMBERS_FACTOR * proof.LIBRARY_BUDGET
        else:
            with pytest.raises(VerificationError, match=r"^Output 'y': native operator and function body differ by"):
                verify(steps_model("sum"), steps_model("sum"), data, output="y")


def test_body_alone_that_is_not_finite(verify: Verify, library_gives: Callable[[onnx.ModelProto], None]) -> None:
    library_gives(mlp())
    with pytest.raises(VerificationError, match=r"^Output 'logits': native operator and function body differ by nan"):
        verify(mlp(), with_scaled_logits(mlp(), np.nan), Dataset({"x": samples()}))


def test_outputs_are_those_of_the_library(verify: Verify, library_gives: Callable[[onnx.ModelProto], None]) -> None:
    library_gives(with_scaled_logits(mlp(), 1.005))
    found = verify(mlp(), mlp(), Dataset({"x": samples()}))
    assert found.library_agreement == pytest.approx(0.005, rel=1e-2)
    assert found.outputs[0].relative_error == pytest.approx(0.005, rel=1e-2)
    assert all((entry.library or 0) > 0 for entry in found.latency)


def test_a_file_that_onnxruntime_refuses(tmp_path: Path) -> None:
    path = tmp_path / "c.onnx"
    path.write_bytes(b"no model")
    with pytest.raises(ModelError, match=f"cannot load the model '{path}'"):
        proof.verify(
            files.load(mlp()),
            path,
            Dataset({"x": samples()}),
            [],
            output="logits",
            aligned=Alignment(),
            description="",
            held_out=True,
            file_bytes=(2, 1),
        )

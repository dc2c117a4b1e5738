"""Tables that are looked up, from the whole run's point of view: what takes them, what is trained beside them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from text_models import LENGTH, WORDS, text_model, texts
from tiny_models import FEATURES, initializer

import onnxpq
from onnxpq import runtime
from onnxpq.config.settings import Config, LayerConfig, PQConfig, TargetConfig, TrainingConfig
from onnxpq.data.datasets import Dataset
from onnxpq.errors import TargetError, TrainingError
from onnxpq.graph import files
from onnxpq.graph.layers import Layer, tables
from onnxpq.graph.normalising import normalise
from onnxpq.network import matrices, routing
from onnxpq.pq.layout import Layout
from onnxpq.pq.packing import unpack_codes
from onnxpq.pq.reference import decode
from onnxpq.quantization import calibration, encoding, lookups
from onnxpq.rewriting import listing, replacing
from onnxpq.targeting import searching
from onnxpq.training import jobs, trainer
from onnxpq.workspace.pieces import opened

QUICK = TrainingConfig(steps=60, batch_size=32)
PLAIN = TrainingConfig(steps=0)
NEARLY_EXACT = LayerConfig("fc*", sub_vector=1, codewords=256)
LEARNED = 0.8
"""Of the loss before training, what is left after 120 steps; .59 to .72 with six seeds on four processors."""


def ways(report: onnxpq.Report) -> dict[str, str]:
    return {layer.node: layer.training.partition(":")[0] for layer in report.layers}


def test_what_is_looked_up_is_compressed_and_the_layers_are_trained_beside_it() -> None:
    result = onnxpq.compress(text_model(), texts(), config=Config(tables=True, training=QUICK))
    report = result.report
    assert ways(report) == {"table": "not trained", "fc1": "end to end", "fc2": "end to end"}
    assert {node.op_type for node in result.model.graph} >= {"PQGather", "PQDynamicQuantizeMatMul"}
    assert "words" not in result.model.graph.initializers
    assert report.ratio > 4
    assert not report.notes, "that a table has no inputs to look at is not worth a note"


@pytest.mark.rounding
@pytest.mark.parametrize("by_length", [False, True], ids=["before the layers", "between them too"])
def test_the_layers_learn_to_do_with_what_is_left_of_the_table(by_length: bool) -> None:
    # Where what is looked up does not depend on the samples, the lookup is part of what is trained.
    model = text_model(by_length=by_length)
    training = replace(QUICK, steps=120)
    config = Config(tables=True, training=training, layer=(NEARLY_EXACT, LayerConfig("table", sub_vector=16)))
    found = onnxpq.compress(model, texts(1000), config=config).report.training
    assert found is not None
    assert found.best < LEARNED * found.quantized
    assert abs(found.before) < 1e-3 * found.quantized, "the original is the one with its own tables"
    kept = onnxpq.compress(
        model, texts(1000), config=replace(config, tables=False, layer=(NEARLY_EXACT,))
    ).report.training
    assert kept is not None
    assert kept.quantized < 0.05 * found.quantized, "that was the table's error, not the layers'"


@pytest.mark.parametrize(
    ("settings", "taken"),
    [
        ({}, False),
        ({"tables": True}, True),
        ({"target": TargetConfig(ratio=4)}, True),
        ({"target": TargetConfig(size=60_000)}, True),
        ({"target": TargetConfig(fc_ratio=4)}, False),
        ({"target": TargetConfig(fc_ratio=4), "tables": True}, True),
        ({"target": TargetConfig(max_drop=0.9)}, True),
    ],
    ids=["no target", "asked for", "ratio", "size", "fc_ratio", "fc_ratio, asked for", "max_drop"],
)
def test_a_target_for_the_file_takes_them(settings: dict, taken: bool) -> None:
    report = onnxpq.compress(text_model(), texts(), config=Config(training=PLAIN, **settings)).report
    assert ("table" in {layer.node for layer in report.layers}) == taken
    reasons = {entry.node: entry.reason for entry in report.skipped}
    assert reasons == ({} if taken else {"table": listing.TABLE_REASON})


def test_a_table_gets_fewer_bytes_the_more_the_layers_make_up_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def table_bytes(gain: float, training: TrainingConfig) -> int:
        monkeypatch.setattr(searching, "TABLE_GAIN", gain)
        config = Config(training=training, target=TargetConfig(ratio=8))
        report = onnxpq.compress(text_model(), texts(), config=config).report
        return next(layer.bytes_after for layer in report.layers if layer.node == "table")

    brief = replace(QUICK, steps=2)
    assert table_bytes(1.0, brief) > table_bytes(100.0, brief)
    assert table_bytes(1.0, PLAIN) == table_bytes(100.0, PLAIN), "without training nothing is made up for"


def test_a_file_that_is_out_of_reach_without_them() -> None:
    config = Config(training=PLAIN, target=TargetConfig(ratio=4), tables=False)
    with pytest.raises(TargetError, match=r"Out of reach: a file at least 4 times smaller\..*--tables"):
        onnxpq.compress(text_model(), texts(), config=config)


def test_without_data_too() -> None:
    report = onnxpq.compress(text_model(), config=Config(target=TargetConfig(ratio=4))).report
    assert {layer.node for layer in report.layers} == {"table", "fc1", "fc2"}
    assert report.ratio >= 4


def test_nothing_but_a_table() -> None:
    model = text_model()
    del model.graph.node[2:]
    del model.graph.initializer[1:]
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("mean", TensorProto.FLOAT, ["N", FEATURES]))
    report = onnxpq.compress(model, texts(), config=Config(tables=True, training=QUICK)).report
    assert [layer.training for layer in report.layers] == [trainer.LOOKED_UP]
    assert report.training is None


def test_a_table_that_a_layer_multiplies_by_is_trained_with_it() -> None:
    result = onnxpq.compress(text_model(tied=True), texts(), config=Config(tables=True, training=QUICK))
    assert ways(result.report) == {"table": "end to end", "head": "end to end"}
    codes = [node.inputs[2] for node in result.model.graph if node.domain == "onnxpq"]
    assert codes[0] is codes[1], "stored once"
    assert [layer.bytes_after > 0 for layer in result.report.layers] == [True, False], "and counted once"


def test_statistics_are_those_of_what_is_multiplied() -> None:
    for tied in (False, True):
        model = files.load(text_model(tied=tied))
        layers, _ = listing.find(model, tables=True)
        found = dict(calibration.collect(normalise(model), layers, Dataset(texts()), seed=0))
        assert set(found) == ({"words"} if tied else {"W1", "W2"})
        assert not any(isinstance(entry, str) for entry in found.values())


@pytest.mark.rounding
def test_the_teacher_is_the_model_with_its_own_table(tmp_path: Path) -> None:
    model = files.load(text_model())
    normal = normalise(model)
    layers, _ = listing.find(model, tables=True)
    (name,) = tables(layers)
    table = next(layer for layer in layers if layer.weight == name)
    matrix = matrices.weight(normal, table)
    quantized = encoding.quantize(matrix, Layout(WORDS, FEATURES, 8, 16, 1), seed=0)
    frozen = quantized.freeze()
    decoded = decode(frozen.codebooks, frozen.codes, frozen.scales, frozen.in_features)
    stored = matrices.constant_of(normal, table, decoded)
    assert 0.3 < np.linalg.norm(stored - matrix.numpy()) / np.linalg.norm(matrix.numpy()) < 0.95
    with_stored = replacing.update_initializers(normal, {name: stored})
    job = jobs.Job(
        with_stored,
        [layer for layer in layers if layer is not table],
        "y",
        Dataset(texts()),
        Config(training=QUICK),
        tmp_path,
        (),
        lambda _: None,
        tables={name: quantized},
        original=normal,
    )
    samples = jobs.prepare(job).samples
    assert samples is not None
    taught, learned = samples[0].teacher, samples[0].inputs
    expected = runtime.run(runtime.session(model, use_library=False), texts())["y"]
    np.testing.assert_allclose(taught, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    (start,) = learned.values()
    vectors = stored[texts()["ids"]]
    begins = vectors if start.ndim == 3 else vectors.mean(1)
    np.testing.assert_allclose(start, begins, rtol=1e-4, atol=1e-5)


def normal_with_layers(model: onnx.ModelProto) -> tuple[ir.Model, list[Layer]]:
    loaded = files.load(model)
    layers, _ = listing.find(loaded, tables=True, min_weights=100)
    return normalise(loaded), layers


def counted(model: onnx.ModelProto, data: dict[str, np.ndarray], **settings: Any) -> dict[str, np.ndarray]:
    return calibration.lookups(*normal_with_layers(model), Dataset(data), seed=0, **settings)


def test_what_is_looked_up_is_counted() -> None:
    ids = np.array([[0, 1, 1, 2, -1], [5, 1, 0, -WORDS, 7]])
    found = counted(text_model(by_length=True), {"ids": ids})
    expected = np.zeros(WORDS, int)
    expected[[0, 1, 2, 5, 7, WORDS - 1]] = [3, 3, 1, 1, 1, 1]
    np.testing.assert_array_equal(found["words"], expected)
    np.testing.assert_array_equal(np.flatnonzero(found["factors"]), [LENGTH])
    assert not counted(text_model(tied=True), {"ids": ids}), "a layer's weight has the inputs of the layer instead"


def test_enough_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MAX_LOOKUPS", 100)
    (found,) = counted(text_model(), texts(1000)).values()
    assert 100 <= found.sum() < 100 + calibration.BATCH * LENGTH


def no_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise TrainingError("There are none.")

    monkeypatch.setattr(lookups, "_by_gradients", refuse)


def stored_table(data: dict[str, np.ndarray] | None) -> tuple[np.ndarray, onnxpq.Report]:
    """The table's rows as a model gives them back that is not trained, and its report."""
    config = Config(tables=True, training=PLAIN, pq=PQConfig(sub_vector=4), layer=(NEARLY_EXACT,))
    result = onnxpq.compress(text_model(), data, config=config)
    return looked_up_rows(result.model), result.report


LOST_BY_USE = 1.25
"""By what the mean error of all rows may grow where those in use count for more; 1.15 to 1.17 with eight seeds."""


@pytest.mark.rounding
def test_rows_in_use_are_stored_more_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only counts are known, against the same without data; the mean of all rows loses little by it."""
    no_gradients(monkeypatch)
    exact = numpy_helper.to_array(text_model().graph.initializer[0])
    ids = np.random.default_rng(0).integers(0, 60, (400, LENGTH))  # a tenth of the words
    by_use, evenly = (np.square(stored_table(data)[0] - exact).sum(1) for data in ({"ids": ids}, None))
    assert by_use[:60].mean() < 0.9 * evenly[:60].mean()
    assert by_use.mean() < LOST_BY_USE * evenly.mean()


def looked_up_rows(model: Any) -> np.ndarray:
    values = {name: value.const_value.numpy() for name, value in model.graph.initializers.items()}
    codebooks = values["words.codebooks"]
    codes = unpack_codes(values["words.codes"], WORDS, 1, codebooks.shape[2])
    return decode(codebooks, codes, values["words.scales"], FEATURES)


def test_no_row_counts_for_nothing_and_none_for_all() -> None:
    counts = np.array([0, 0, 0, 10, 10**9] + [0] * 995)
    importance = lookups.importance_of(counts)
    assert importance.min() == lookups.LEAST_IMPORTANT
    assert importance.max() == lookups.MOST_IMPORTANT
    np.testing.assert_allclose(lookups.importance_of(np.full(7, 3)), 1 + lookups.LEAST_IMPORTANT)
    np.testing.assert_allclose(lookups.importance_of(np.zeros(7, int)), lookups.LEAST_IMPORTANT)


LINEAR = """<ir_version: 8, opset_import: ["" : 17]>
text (int64[N,5] ids) => (float[N,6] y) {
    vectors = Gather(words, ids)
    mean = ReduceMean<axes = [1], keepdims = 0>(vectors)
    y = MatMul(mean, weight)
}"""
ROUNDING = 1e-4


def linear_model() -> onnx.ModelProto:
    model = onnx.parser.parse_model(LINEAR)
    for seed, (name, *shape) in enumerate((("words", 40, 48), ("weight", 48, 6))):
        model.graph.initializer.append(initializer(name, *shape, seed=seed))
    return model


def observed(model: onnx.ModelProto, ids: np.ndarray, output: str = "y") -> dict[str, lookups.Lookups]:
    return lookups.observe(*normal_with_layers(model), output, Dataset({"ids": ids}), seed=0)


def gradients_by_hand(
    model: onnx.ModelProto, ids: np.ndarray, batch: int, *, fixed: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """H, and the squared gradients summed by row; a fixed batch draws directions for all its places."""
    weight = next(numpy_helper.to_array(entry) for entry in model.graph.initializer if entry.name == "weight")
    random = torch.Generator().manual_seed(0)
    second, power, rows = np.zeros((48, 48)), np.zeros(40), 0
    for start in range(0, len(ids), batch):
        part = ids[start : start + batch]
        directions = torch.randn(batch if fixed else len(part), 6, generator=random).numpy()
        gradient = np.zeros((40, 48))
        for words, direction in zip(part, directions, strict=False):
            for word in words:
                gradient[word] += weight @ direction / LENGTH
        second += gradient.T @ gradient
        power += np.square(gradient).sum(1)
        rows += len(np.unique(part))
    return second / rows, power


@pytest.mark.rounding
def test_gradients_are_those_of_the_output_by_the_rows() -> None:
    model, ids = linear_model(), np.random.default_rng(0).integers(0, 30, (100, LENGTH))
    use = observed(model, ids)["words"]
    order = np.random.default_rng(0).permutation(len(ids))
    second, power = gradients_by_hand(model, ids[order], lookups.BATCH)
    assert use.statistics is not None
    assert use.importance is not None
    found = use.statistics.second_moment
    np.testing.assert_allclose(found, second, rtol=ROUNDING, atol=ROUNDING * np.abs(second).max())
    np.testing.assert_allclose(use.importance, lookups.importance_of(power), rtol=ROUNDING)
    assert np.abs(1.02 * found - second).max() > ROUNDING * np.abs(second).max(), "an error of 2 % is seen"
    assert set(use.importance[30:]) == {lookups.LEAST_IMPORTANT}


@pytest.mark.rounding
@pytest.mark.rounding
def test_a_table_may_be_stored_turned() -> None:
    model, ids = linear_model(), np.random.default_rng(0).integers(0, 30, (100, LENGTH))
    turned = linear_model()
    (words,) = [tensor for tensor in turned.graph.initializer if tensor.name == "words"]
    words.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(words).T.copy(), "stored"))
    turned.graph.node.insert(0, onnx.helper.make_node("Transpose", ["stored"], ["words"], "turn", perm=[1, 0]))
    (one,), (other,) = (observed(given, ids).values() for given in (model, turned))
    assert one.importance is not None
    assert one.statistics is not None
    assert other.importance is not None
    assert other.statistics is not None
    np.testing.assert_allclose(other.importance, one.importance, rtol=ROUNDING)
    expected = one.statistics.second_moment
    np.testing.assert_allclose(other.statistics.second_moment, expected, atol=ROUNDING * np.abs(expected).max())


def test_their_mean_is_what_errors_cost() -> None:
    """Without random directions: in a linear model an error e of a row costs ``|e W|^2``."""
    model, ids = linear_model(), np.random.default_rng(0).integers(0, 40, (2000, LENGTH))
    (use,) = observed(model, ids).values()
    assert use.statistics is not None
    weight = numpy_helper.to_array(model.graph.initializer[1])
    expected, found = weight @ weight.T, use.statistics.second_moment
    share = np.vdot(expected, found) / np.linalg.norm(expected) / np.linalg.norm(found)
    assert share > 0.99, "the cosine between them"


def part_behind_the_table(model: onnx.ModelProto, ids: np.ndarray) -> routing.Part:
    normal, layers = normal_with_layers(model)
    table = [layer for layer in layers if layer.is_table]
    part = routing.plan(normal, table, "y", Dataset({"ids": ids[:8]})).part
    assert part is not None
    return part


def test_what_fills_a_fixed_batch_up_does_not_count() -> None:
    model, ids = linear_model(), np.random.default_rng(0).integers(0, 40, (14, LENGTH))
    part = part_behind_the_table(model, ids)
    _, power = lookups._moments(replace(part, fixed_batch=8), "y", Dataset({"ids": ids}), 0)["words"]
    np.testing.assert_allclose(power, gradients_by_hand(model, ids, 8, fixed=True)[1], rtol=ROUNDING)
    filled = np.concatenate([ids, ids[-1:], ids[-1:]])
    assert not np.allclose(power, gradients_by_hand(model, filled, 8)[1], rtol=0.02)


def test_the_work_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ids = linear_model(), np.random.default_rng(0).integers(0, 40, (100, LENGTH))
    monkeypatch.setattr(lookups, "SECONDS", 0.0)
    monkeypatch.setattr(lookups, "LEAST_SAMPLES", 16)
    (use,) = observed(model, ids).values()
    seen = ids[np.random.default_rng(0).permutation(len(ids))[:16]]
    assert use.importance is not None
    np.testing.assert_array_equal(np.unique(seen), np.flatnonzero(use.importance > lookups.LEAST_IMPORTANT))


@pytest.mark.rounding
def test_the_output_is_nearer_than_by_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gradients = stored_table(texts(1000))[1]
    no_gradients(monkeypatch)
    by_counts = stored_table(texts(1000))[1]
    errors = [report.verification.outputs[0].relative_error for report in (with_gradients, by_counts)]
    assert errors[0] is not None
    assert errors[1] is not None
    assert errors[0] < 0.8 * errors[1]
    assert not with_gradients.notes
    (note,) = by_counts.notes
    assert note.endswith("by how often its rows are looked up, not by the output's gradients: There are none.")


@pytest.mark.parametrize(
    ("nodes", "output", "reason"),
    [
        ("y = MatMul(mean, weight) h = Mul(y, zero) root = Sqrt(h)", "root", "they are zero, infinite or NaN"),
        ("h = MatMul(mean, weight) y = Round(h)", "y", "lets no gradient through"),
        ("y = MatMul(mean, weight) best = ArgMax(y)", "best", "holds INT64, which has no gradient"),
    ],
)
def test_why_there_is_no_gradient(nodes: str, output: str, reason: str) -> None:
    kind = "int64[N,1]" if output == "best" else "float[N,6]"
    text = LINEAR.replace("float[N,6] y)", f"{kind} {output})").replace("y = MatMul(mean, weight)", nodes)
    model = onnx.parser.parse_model(text)
    model.graph.initializer.extend([*linear_model().graph.initializer, numpy_helper.from_array(np.float32(0), "zero")])
    ids = np.array([[0, 1, 1, 2, 39]] * 20)
    (use,) = observed(model, ids, output).values()
    assert use.statistics is None
    assert use.importance is not None
    np.testing.assert_array_equal(use.importance, lookups.importance_of(np.bincount(ids.ravel(), minlength=40)))
    assert use.remark is not None
    assert reason in use.remark
    assert "'words'" in use.remark


SOMETIMES = """<ir_version: 8, opset_import: ["" : 17]>
sometimes (int64[N,5] ids) => (float[N,5,1] y) {
    limit = Constant<value = int64 {38}>()
    last = Constant<value_ints = [-1]>()
    most = ReduceMax<keepdims = 0>(ids)
    condition = Greater(most, limit)
    y = If(condition) <
        then_branch = one () => (float[N,5,1] p) { h = Gather(words, ids) p = MatMul(h, weight) },
        else_branch = two () => (float[N,5,1] q) { k = Cast<to = 1>(ids) q = Unsqueeze(k, last) }
    >
}"""


def test_batches_that_do_not_reach_the_table() -> None:
    model = onnx.parser.parse_model(SOMETIMES)
    model.graph.initializer.extend([initializer("words", 40, 48, seed=0), initializer("weight", 48, 1, seed=1)])
    ids = np.random.default_rng(0).integers(0, 20, (40, LENGTH))
    ids[3] = 39
    (use,) = observed(model, ids).values()
    assert use.importance is not None
    assert use.statistics is not None
    together = np.random.default_rng(0).permutation(40).reshape(-1, lookups.BATCH)
    (batch,) = (rows for rows in together if 3 in rows)
    np.testing.assert_array_equal(np.flatnonzero(use.importance > lookups.LEAST_IMPORTANT), np.unique(ids[batch]))


IN_BRANCHES = """<ir_version: 8, opset_import: ["" : 17]>
branches (int64[N,4] ids) => (float[N,4,6] y) {
    zero = Constant<value = int64 {0}>()
    sum = ReduceSum<keepdims = 0>(ids)
    condition = Greater(sum, zero)
    y = If(condition) <
        then_branch = one () => (float[N,4,6] p) { [first] h = Gather(v, ids) [fc1] p = MatMul(h, w) },
        else_branch = two () => (float[N,4,6] q) { [second] k = Gather(u, ids) [fc2] q = MatMul(k, w) }
    >
}"""


@pytest.mark.parametrize("target", [None, 5.0])
def test_tables_in_branches(target: float | None) -> None:
    model = onnx.parser.parse_model(IN_BRANCHES)
    for seed, (name, *shape) in enumerate((("u", 300, 48), ("v", 300, 48), ("w", 48, 6))):
        model.graph.initializer.append(initializer(name, *shape, seed=seed))
    config = Config(tables=True, target=TargetConfig(ratio=target), training=replace(QUICK, steps=20), min_weights=100)
    report = onnxpq.compress(model, {"ids": texts()["ids"][:60, :4] % 300}, config=config).report
    assert ways(report) == {
        "first": "not trained",
        "fc1": "end to end",
        "second": "not trained",
        "fc2": "end to end",
    }
    assert report.ratio > 5


def test_what_was_seen_of_the_tables_is_kept_in_a_work_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def written(name: str, **more: Any) -> bytes:
        config = Config(tables=True, training=PLAIN)
        onnxpq.compress(text_model(), texts(), config=config, **more).save(tmp_path / name)
        return (tmp_path / name).read_bytes()

    def stop(stage: str, done: int, of: int) -> None:
        if stage == "clustering":
            raise KeyboardInterrupt

    whole = written("whole.onnx")
    with pytest.raises(KeyboardInterrupt):
        written("none.onnx", work_dir=tmp_path / "w", progress=stop)
    monkeypatch.setattr(lookups, "observe", None)
    assert written("again.onnx", work_dir=tmp_path / "w") == whole


@pytest.mark.parametrize("found", [lookups.Lookups(), lookups.Lookups(np.ones(3, np.float32), None, "Why.")])
def test_what_is_not_known_of_a_table_is_kept_too(found: lookups.Lookups, tmp_path: Path) -> None:
    with opened(tmp_path / "w") as space:
        space.bind({})
        piece = space.piece("lookup", [])
        assert lookups.load(piece) is None
        lookups.save(piece, {"words": found})
        again = (lookups.load(piece) or {})["words"]
    assert (again.statistics, again.remark) == (found.statistics, found.remark)
    np.testing.assert_array_equal(again.importance, found.importance)

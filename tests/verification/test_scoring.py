"""Drops by every metric: worked by hand, and on models whose outputs are known."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper
from tiny_models import build

from onnxpq.data import Alignment, Place, of_objects
from onnxpq.data.datasets import Dataset
from onnxpq.errors import ConfigError, DataError
from onnxpq.support.figures import Interval
from onnxpq.verification import scoring
from onnxpq.verification.metrics import Z95
from onnxpq.verification.scoring import Drop, Metric

FIRST = Alignment({"y": Place(0)})
SCORES = np.eye(3, dtype=np.float32)
LABELS = np.array([0, 1, 2])


def scaled(factor: np.ndarray) -> Any:
    """``y = x * factor``."""
    weight = helper.make_tensor("F", 1, factor.shape, factor.astype(np.float32).ravel())
    nodes = [helper.make_node("Mul", ["x", "F"], ["y"], name="mul")]
    return build(nodes, {"x": ["N", *factor.shape]}, {"y": ["N", *factor.shape]}, [weight])


def drop(metric: Metric, factor: list[float], x: np.ndarray, labels: np.ndarray | None = None, **kwargs: Any) -> Drop:
    """Between the identity and a scaling of columns."""
    models = (scaled(np.ones(len(factor))).SerializeToString(), scaled(np.array(factor)).SerializeToString())
    return scoring.measure(metric, models, Dataset({"x": x}, labels), aligned=FIRST, fixed_batch=None, **kwargs)


# Which metric


@pytest.mark.parametrize(
    ("values", "labels", "expected"),
    [
        (SCORES, LABELS, "accuracy"),
        (SCORES, None, "agreement"),
        (SCORES, SCORES, "mse"),
        (SCORES[:, :1], None, "relative mse"),
        (LABELS, LABELS, "accuracy"),
        (LABELS, None, "agreement"),
    ],
)
def test_automatic_choice(values: np.ndarray, labels: np.ndarray | None, expected: str) -> None:
    assert scoring.choose("auto", "y", values, labels) == Metric(expected, "y")


def test_a_metric_can_be_named() -> None:
    for name in ("agreement", "accuracy"):
        assert scoring.choose(name, "y", SCORES, LABELS, numbers="is none").name == name
    assert scoring.choose("mse", "y", SCORES, LABELS).name == "relative mse"
    assert scoring.choose("mse", "y", SCORES, None).name == "relative mse"
    assert scoring.choose("mse", "y", SCORES, SCORES).name == "mse"


def test_an_embedding_is_judged_by_its_squared_error() -> None:
    found = scoring.choose("auto", "y", SCORES, None, numbers="is computed by Div 'mean'")
    assert found.name == "relative mse"
    assert found.remark is not None
    assert found.remark.startswith("Output 'y' is computed by Div 'mean', so it is taken for numbers and judged by its")
    # Labels tell, and one column or whole numbers need no explanation.
    assert scoring.choose("auto", "y", SCORES, LABELS, numbers="is none") == Metric("accuracy", "y")
    assert scoring.choose("auto", "y", SCORES[:, :1], None, numbers="is none") == Metric("relative mse", "y")
    assert scoring.choose("auto", "y", LABELS, None) == Metric("agreement", "y")


@pytest.mark.parametrize(
    ("name", "values", "labels", "message"),
    [
        ("accuracy", SCORES, None, "The metric 'accuracy' needs labels that name classes of output 'y'."),
        ("accuracy", SCORES, SCORES, "The metric 'accuracy' needs labels that name classes"),
        ("agreement", SCORES[:, :1], None, "output 'y' has one per sample. Choose mse."),
        ("mse", LABELS, None, "The metric 'mse' needs floating-point numbers; output 'y' holds int64."),
        ("no_such_module:f", SCORES, None, "The metric 'no_such_module:f' cannot be imported: No module named"),
        ("math:no_such", SCORES, None, "cannot be imported: module 'math' has no attribute 'no_such'"),
        ("math:pi", SCORES, None, "The metric 'math:pi' is a float, no function."),
    ],
)
def test_a_metric_that_does_not_fit(name: str, values: np.ndarray, labels: np.ndarray | None, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        scoring.choose(name, "y", values, labels)


# By hand


def test_accuracy() -> None:
    # The second sample's largest score changes, from right to wrong; the last one's from wrong to right.
    x = np.array([[4, 1], [3, 2], [1, 3], [3, 2]], np.float32)
    found = drop(Metric("accuracy", "y"), [1, 2], x, np.array([0, 0, 1, 1]))
    assert found.metric == "accuracy"
    assert found.drop.value == 0
    assert (found.samples, found.wrong) == (4, 0.25)
    # Differences 0, 1, 0, -1: standard deviation sqrt(2/3), so a standard error of sqrt(2/3) / 2.
    assert found.drop.high == pytest.approx(Z95 * np.sqrt(2 / 3) / 2)
    assert found.drop.low == -found.drop.high
    assert found.cautious == pytest.approx(np.sqrt(2 / 3) / 2)
    missed = np.square(x[:, 1].astype(float)).sum()
    assert found.relative_error == pytest.approx(np.sqrt(missed / np.square(x.astype(float)).sum()))


def test_labels_that_do_not_count() -> None:
    x = np.array([[[4, 1], [3, 2], [1, 9]], [[1, 3], [9, 1], [9, 1]]], np.float32)  # [N, T, C]
    models = tuple(scaled(np.array([[1, factor]] * 3)).SerializeToString() for factor in (1, 2))
    labels = np.array([[0, 0, -100], [-100, -100, -100]])
    found = scoring.measure(Metric("accuracy", "y"), models, Dataset({"x": x}, labels), aligned=FIRST, fixed_batch=None)
    # Of the first sample's two labels that count one is lost; the second sample has none.
    assert (found.drop.value, found.wrong) == (0.5, 0.0)


@pytest.mark.parametrize(
    ("decided", "proof", "remarked"),
    [
        # By hand: pooled share .0117, standard error .0026 of the difference; .0137 are 5.2 of them.
        ((0.0, 2000), (0.0137, 10000), True),
        ((0.009, 2000), (0.0137, 10000), False),  # 1.7 of them
        ((0.0, 20), (0.0137, 10000), False),
        ((0.02, 2000), (0.0137, 10000), False),
        ((0.0, 2000), (0.0, 10000), False),
    ],
)
def test_samples_that_the_original_knows_by_heart(
    decided: tuple[float, int], proof: tuple[float, int], remarked: bool
) -> None:
    interval = Interval(0.0, 0.0, 0.0)
    first, second = (Drop("accuracy", interval, 0.1, count, wrong) for wrong, count in (decided, proof))
    remark = scoring.by_heart(first, second)
    assert (remark is not None) == remarked
    if remark is not None:
        assert remark.startswith(
            "The original gets 0.00% of the samples that decided wrong, and 1.37% of those that it"
        )
    assert scoring.by_heart(Drop("mse", interval, 0.1, 2000), second) is None


def test_agreement() -> None:
    x = np.array([[4, 1], [3, 2], [1, 3], [1, 5]], np.float32)
    found = drop(Metric("agreement", "y"), [1, 2], x)
    assert (found.drop.value, found.wrong) == (0.25, None)
    assert found.cautious == pytest.approx(0.25 + np.std([0, 1, 0, 0], ddof=1) / 2)


def test_agreement_counts_each_place_of_a_sample() -> None:
    x = np.array([[[4, 1], [3, 2]], [[1, 3], [1, 5]]], np.float32)  # [N, T, C]
    models = tuple(scaled(np.array([[1, factor], [1, factor]])).SerializeToString() for factor in (1, 2))
    found = scoring.measure(Metric("agreement", "y"), models, Dataset({"x": x}), aligned=FIRST, fixed_batch=None)
    assert found.drop.value == 0.25
    assert found.samples == 2


def test_squared_error_against_labels_is_its_relative_increase() -> None:
    x = np.array([[1.0], [2.0], [3.0]], np.float32)
    labels = np.array([2.0, 2.0, 1.0], np.float32)
    # Squared errors 1, 0, 4 before; outputs 2, 4, 6, so 0, 4, 25 after.
    found = drop(Metric("mse", "y"), [2], x, labels)
    assert found.drop.value == pytest.approx((29 - 5) / 5)


def test_squared_error_without_labels_is_a_share_of_the_output() -> None:
    x = np.array([[1.0, 2.0], [2.0, 4.0]], np.float32)
    for labels in (None, np.array([0, 1])):
        found = drop(Metric("relative mse", "y"), [1.0, 0.5], x, labels)
        assert found.drop.value == pytest.approx((1 + 4) / 25)
        assert found.relative_error == pytest.approx(np.sqrt(5 / 25))
        # Both samples lose the same share of theirs: nothing is uncertain.
        assert found.drop.high == pytest.approx(found.drop.value)


def test_an_error_that_was_zero() -> None:
    x = np.ones((3, 1), np.float32)
    found = drop(Metric("mse", "y"), [2], x, np.ones(3, np.float32))
    assert found.drop == Interval(np.inf, np.inf, np.inf)
    assert drop(Metric("mse", "y"), [1], x, np.ones(3, np.float32)).drop == Interval(0, 0, 0)


def test_batches_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
    whole = drop(Metric("agreement", "y"), [1, 2, 0.5], x)
    monkeypatch.setattr(scoring, "BATCH", 7)
    parts = drop(Metric("agreement", "y"), [1, 2, 0.5], x)
    assert parts.drop == whole.drop
    assert parts.relative_error == pytest.approx(whole.relative_error)
    assert whole.drop.value > 0


def test_what_fills_up_a_fixed_batch_does_not_count() -> None:
    x = np.array([[4, 1], [1, 3], [3, 2]], np.float32)
    models = []
    for factor in (1.0, 2.0):
        nodes = [helper.make_node("Mul", ["x", "F"], ["y"], name="mul")]
        weight = helper.make_tensor("F", 1, [2], np.array([1.0, factor], np.float32))
        models.append(build(nodes, {"x": [2, 2]}, {"y": [2, 2]}, [weight]).SerializeToString())
    found = scoring.measure(
        Metric("agreement", "y"), (models[0], models[1]), Dataset({"x": x}), aligned=FIRST, fixed_batch=2
    )
    assert found.samples == 3
    assert found.drop.value == pytest.approx(1 / 3)


@pytest.mark.parametrize("batch", [None, 1, 3])
def test_time_major_outputs_are_judged_by_all_steps(batch: int | None) -> None:
    x = np.random.default_rng(0).standard_normal((8, 5, 4)).astype(np.float32)
    models = []
    for last in (1.0, -1.0):
        factor = helper.make_tensor("F", 1, [5, 1], np.array([1, 1, 1, 1, last], np.float32))
        nodes = [
            helper.make_node("Mul", ["x", "F"], ["z"], name="mul"),
            helper.make_node("Transpose", ["z"], ["y"], name="turn", perm=[1, 0, 2]),
        ]
        size = batch or "N"
        models.append(build(nodes, {"x": [size, 5, 4]}, {"y": [5, size, 4]}, [factor]).SerializeToString())
    aligned = Alignment({"y": Place(1)})
    found = scoring.measure(
        Metric("agreement", "y"), (models[0], models[1]), Dataset({"x": x}), aligned=aligned, fixed_batch=batch
    )
    assert (found.samples, found.drop.value) == (8, pytest.approx(0.2))
    # Each sample loses one step of five, so nothing is uncertain.
    assert found.drop.high == pytest.approx(0.2)
    labels = x.argmax(-1)
    found = scoring.measure(
        Metric("accuracy", "y"), (models[0], models[1]), Dataset({"x": x}, labels), aligned=aligned, fixed_batch=batch
    )
    assert (found.drop.value, found.wrong) == (pytest.approx(0.2), 0.0)


def above(limit: float, kind: str = "NonZero") -> bytes:
    """``y``: the places [1, K] in ``x [N]`` that are above a limit, or the values [K] there."""
    last = helper.make_node(kind, ["g"] if kind == "NonZero" else ["x", "g"], ["y"], name="n")
    nodes = [helper.make_node("Greater", ["x", "F"], ["g"], name="g"), last]
    model = build(
        nodes,
        {"x": ["N"]},
        {"y": []},
        [helper.make_tensor("F", 1, [], [limit])],
        output_types={"y": 7} if kind == "NonZero" else {},
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    return model.SerializeToString()


def test_what_has_another_shape_is_lost() -> None:
    x = np.array([1, 2, 3, 4], np.float32)
    found = scoring.measure(
        Metric("agreement", "y"), (above(0), above(1.5)), Dataset({"x": x}), aligned=Alignment(), fixed_batch=None
    )
    assert (found.drop.value, found.samples) == (0.25, 4)
    values = above(0, "Compress"), above(1.5, "Compress")
    # Of few samples it looked as if each had an entry of its own.
    for aligned in (Alignment(), FIRST):
        found = scoring.measure(
            Metric("relative mse", "y"), values, Dataset({"x": x}), aligned=aligned, fixed_batch=None
        )
        assert found.drop.value == pytest.approx(1 / 30)
        assert found.relative_error == pytest.approx(np.sqrt(1 / 30))


def test_sequences_and_text() -> None:
    data = Dataset({"x": np.array([[1, 2], [3, 4]], np.float32)})

    def models(*nodes: Any, kind: Any) -> tuple[bytes, bytes]:
        found = []
        for factor in (1.0, 1.5):
            first = helper.make_node("Mul", ["x", "F"], ["z"], name="mul")
            weight = helper.make_tensor("F", 1, [2], [1.0, factor])
            model = build([first, *nodes], {"x": ["N", 2]}, {}, [weight])
            model.graph.output.append(kind)
            found.append(model.SerializeToString())
        return found[0], found[1]

    split = models(
        helper.make_node("SplitToSequence", ["z"], ["y"], name="split", axis=1),
        kind=helper.make_tensor_sequence_value_info("y", 1, None),
    )
    metric = scoring.choose("auto", "y", of_objects([np.ones(2), np.ones(2)]), None)
    found = scoring.measure(metric, split, data, aligned=Alignment(), fixed_batch=None)
    assert (metric.name, found.drop.value) == ("relative mse", pytest.approx((1 + 4) / 30))
    text = models(
        helper.make_node("Cast", ["z"], ["i"], name="i", to=7),
        helper.make_node("Cast", ["i"], ["y"], name="text", to=8),
        kind=helper.make_tensor_value_info("y", 8, ["N", 2]),
    )
    metric = scoring.choose("auto", "y", np.array([["1", "2"]], object), None)
    found = scoring.measure(metric, text, data, aligned=FIRST, fixed_batch=None)
    assert (metric.name, found.drop.value) == ("agreement", 0.5)


def test_nothing_on_both_sides_agrees() -> None:
    x = np.array([1, 2, 3, 4], np.float32)
    for metric in ("agreement", "relative mse"):
        found = scoring.measure(
            Metric(metric, "y"), (above(9), above(9)), Dataset({"x": x}), aligned=Alignment(), fixed_batch=None
        )
        assert found.drop == Interval(0, 0, 0)


# Scores of the user's own


def test_a_score_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_metric_of_this_test.py").write_text(
        "def score(outputs, original, labels):\n"
        "    assert sorted(outputs) == sorted(original) == ['y']\n"
        "    return -abs(outputs['y'] - labels[:, None]).mean(1)\n"
        "def whole(outputs, original, labels):\n"
        "    return outputs['y'].sum() / original['y'].sum()\n"
        "def wrong(outputs, original, labels):\n"
        "    return outputs['y'][:1]\n"
        "def missing(outputs, original, labels):\n"
        "    return float('nan')\n"
        "def changing(outputs, original, labels):\n"
        "    return 1.0 if outputs is original else outputs['y'][:, 0]\n"
    )
    monkeypatch.chdir(tmp_path)
    x, labels = np.array([[1.0], [2.0]], np.float32), np.array([1.0, 1.0])
    metric = scoring.choose("my_metric_of_this_test:score", "y", x, labels)
    assert drop(metric, [3], x, labels).drop.value == pytest.approx((2 + 5) / 2 - (0 + 1) / 2)
    metric = scoring.choose("my_metric_of_this_test:whole", "y", x, None)
    assert drop(metric, [0.5], x).drop == Interval(0.5, 0.5, 0.5)
    for name, message in (
        ("wrong", "gave an array of float32[1, 1]; one finite number, or one for each of the 2 samples, is expected"),
        ("missing", "gave an array of float64[]; one finite number"),
        ("changing", "gave one number for one model and one per sample for the other."),
    ):
        metric = scoring.choose(f"my_metric_of_this_test:{name}", "y", x, None)
        with pytest.raises(DataError, match=re.escape(f"The metric 'my_metric_of_this_test:{name}' {message}")):
            drop(metric, [0.5], x)


def test_outputs_of_integers_have_no_relative_error() -> None:
    nodes = [helper.make_node("ArgMax", ["x"], ["y"], name="top", axis=1, keepdims=0)]
    model = build(nodes, {"x": ["N", 3]}, {"y": ["N"]}, [], output_types={"y": 7}).SerializeToString()
    found = scoring.measure(
        Metric("agreement", "y"), (model, model), Dataset({"x": SCORES}), aligned=FIRST, fixed_batch=None
    )
    assert found.relative_error is None
    assert found.drop == Interval(0, 0, 0)

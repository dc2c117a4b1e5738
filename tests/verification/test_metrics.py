import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from onnxpq.data import of_objects
from onnxpq.errors import ConfigError, DataError
from onnxpq.verification import metrics
from onnxpq.verification.metrics import Correct, Difference

ROUNDING = 1e-12
"""Relative difference of float64 sums taken in another order."""


def close(value: float, expected: float) -> bool:
    return math.isclose(value, expected, rel_tol=ROUNDING, abs_tol=ROUNDING)


def test_an_error_of_2_percent_is_found() -> None:
    assert not close(1.02 * 0.4901625, 0.4901625)


# Wilson's interval of a share


def test_wilson_by_hand() -> None:
    # n = 10, p = 0.8, z = 1.96: centre (0.8 + 0.19207) / 1.38415, margin 1.96 / 1.38415 * sqrt(0.016 + 0.0096036)
    found = metrics.wilson(8, 10)
    assert found.value == 0.8
    assert found.low == pytest.approx(0.49016, abs=1e-5)
    assert found.high == pytest.approx(0.94331, abs=1e-4)


@given(st.integers(1, 20000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_against_scipy(counts: tuple[int, int]) -> None:
    successes, total = counts
    found = metrics.wilson(successes, total)
    expected = binomtest(successes, total).proportion_ci(method="wilson")
    assert found.low == pytest.approx(expected.low, abs=1e-9)
    assert found.high == pytest.approx(expected.high, abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high <= 1 + ROUNDING


@pytest.mark.parametrize(("successes", "total"), [(30, 100), (1, 7), (999, 1000)])
def test_wilson_bounds_are_where_the_score_test_turns(successes: int, total: int) -> None:
    found = metrics.wilson(successes, total)
    for bound in (found.low, found.high):
        deviation = abs(found.value - bound) / math.sqrt(bound * (1 - bound) / total)
        assert close(deviation, metrics.Z95)


# Right answers of two models


def counted(both: int, first: int, second: int, neither: int) -> Correct:
    return Correct(both, first, second, neither)


def test_paired_drop_by_hand() -> None:
    # 100 samples, 5 lost, 2 won: drop 0.03; interval of 6/102 and 3/102: centre 0.0294118,
    # variance (0.0882353 - 0.000865052) / 102, margin 1.95996 * 0.0292670 = 0.0573622
    report = counted(85, 5, 2, 8).report("scores")
    assert report.output == "scores"
    assert report.original.value == 0.90
    assert report.compressed.value == 0.87
    assert report.drop.value == 0.03
    assert report.drop.low == pytest.approx(0.0294118 - 0.0573622, abs=1e-6)
    assert report.drop.high == pytest.approx(0.0294118 + 0.0573622, abs=1e-6)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=80))
def test_paired_drop_is_the_mean_of_the_differences(pairs: list[tuple[bool, bool]]) -> None:
    labels = np.zeros(len(pairs), np.int64)
    first, second = (np.array([[1.0, 0.0] if pair[side] else [0.0, 1.0] for pair in pairs]) for side in (0, 1))
    correct = Correct()
    for part in np.array_split(np.arange(len(pairs)), min(3, len(pairs))):
        correct.add(labels[part], first[part], second[part])
    report = correct.report("y")
    differences = np.array([float(a) - float(b) for a, b in pairs])
    assert report.drop.value == pytest.approx(differences.mean(), abs=1e-9)
    # Bonett and Price's interval is Wald's on the samples and two more, one lost and one won.
    more = np.append(differences, [1.0, -1.0])
    margin = metrics.Z95 * more.std() / math.sqrt(len(more))
    assert report.drop.low == pytest.approx(max(-1.0, more.mean() - margin), abs=1e-9)
    assert report.drop.high == pytest.approx(min(1.0, more.mean() + margin), abs=1e-9)
    assert report.original == metrics.wilson(sum(a for a, _ in pairs), len(pairs))
    assert report.compressed == metrics.wilson(sum(b for _, b in pairs), len(pairs))


def test_right_answers_of_sequences() -> None:
    scores = np.eye(3)[[[0, 1], [2, 2]]]
    correct = Correct()
    correct.add(np.array([[0, 1], [2, 0]]), scores, scores[::-1])
    # original: right, right, right, wrong; the other has rows in turn: [2, 2], [0, 1]
    assert correct == counted(both=0, first=3, second=0, neither=1)


# Differences of outputs


def test_difference_by_hand() -> None:
    difference = Difference()
    difference.add(np.array([[3.0, 4.0], [0.0, 0.0]]), np.array([[3.0, 5.0], [0.0, -2.0]]))
    # squared differences 1 + 4, squared reference 25
    report = difference.report("y")
    assert report.name == "y"
    assert report.max_error == 2
    assert report.relative_error is not None
    assert close(report.relative_error, math.sqrt(5 / 25))
    assert report.agreement == 1.0  # the largest of two equal entries is the first one


def test_difference_of_what_is_zero() -> None:
    same, other = Difference(), Difference()
    same.add(np.zeros((2, 3)), np.zeros((2, 3)))
    other.add(np.zeros((2, 3)), np.ones((2, 3)))
    assert same.relative == 0
    assert other.relative == math.inf
    assert Difference().report("nothing").agreement is None


def test_agreement_needs_scores() -> None:
    one_column = Difference()
    one_column.add(np.ones((4, 1), np.float32), np.zeros((4, 1), np.float32))
    assert one_column.report("y").agreement is None
    vector = Difference()
    vector.add(np.ones(4), np.zeros(4))
    assert vector.report("y").agreement is None


@pytest.mark.parametrize("kind", [np.int64, np.bool_, object, np.str_])
def test_agreement_of_what_has_no_difference(kind: type) -> None:
    difference = Difference()
    difference.add(np.array([0, 1, 2, 3]).astype(kind), np.array([0, 1, 2, 0]).astype(kind))
    report = difference.report("label")
    assert (report.max_error, report.relative_error) == (None, None)
    assert report.agreement == 0.75


def test_what_is_not_finite_is_seen_on_either_side() -> None:
    good, bad = np.array([1.0, 2.0]), np.array([1.0, np.nan])
    for reference, other, expected in (
        (good, good, (True, True)),
        (bad, good, (False, True)),
        (good, bad, (True, False)),
    ):
        difference = Difference()
        difference.add(good, good)
        difference.add(reference, other)
        assert (difference.finite_reference, difference.finite) == expected


@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 99))
def test_difference_does_not_depend_on_the_batches(rows: int, parts: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    reference, other = rng.standard_normal((2, rows, 4)).astype(np.float32)
    whole, streamed = Difference(), Difference()
    whole.add(reference, other)
    for part in np.array_split(np.arange(rows), parts):
        streamed.add(reference[part], other[part])
    exact = reference.astype(np.float64)
    expected = np.linalg.norm(other.astype(np.float64) - exact) / np.linalg.norm(exact)
    assert close(streamed.relative, whole.relative)
    assert close(whole.relative, expected)
    assert streamed.largest == whole.largest == np.abs(other.astype(np.float64) - exact).max()
    assert streamed.agreeing == whole.agreeing == (reference.argmax(1) == other.argmax(1)).sum()


# Which output


OUTPUTS = {"label": np.array([1, 2]), "one": np.ones((2, 1), np.float32), "scores": np.ones((2, 3), np.float32)}


def test_scores_are_preferred() -> None:
    assert metrics.choose_output(OUTPUTS, None) == "scores"
    assert metrics.choose_output({"label": OUTPUTS["label"], "one": OUTPUTS["one"]}, None) == "one"
    assert metrics.choose_output({"label": OUTPUTS["label"]}, None) == "label"
    assert metrics.choose_output(OUTPUTS, "one") == "one"


def test_embeddings_are_not() -> None:
    two = {"hidden": OUTPUTS["scores"], **OUTPUTS}
    assert metrics.choose_output(two, None) == "hidden"
    assert metrics.choose_output(two, None, numbers={"hidden"}) == "scores"
    assert metrics.choose_output(two, "hidden", numbers={"hidden"}) == "hidden"
    # Several columns tell more than one.
    assert metrics.choose_output(OUTPUTS, None, numbers={"scores", "one"}) == "scores"


def test_what_others_are_made_of_is_not_either() -> None:
    three = {"words": OUTPUTS["scores"], "sentence": OUTPUTS["scores"], "label": OUTPUTS["label"]}
    numbers = {"words", "sentence"}
    assert metrics.choose_output(three, None, numbers=numbers) == "words"
    assert metrics.choose_output(three, None, numbers=numbers, pooled={"words"}) == "sentence"
    assert metrics.choose_output(three, "words", numbers=numbers, pooled={"words"}) == "words"
    assert metrics.choose_output({**three, **OUTPUTS}, None, numbers=numbers, pooled={"words"}) == "scores"


PROBABILITIES = np.array([[0.25, 0.75], [1, 0]], np.float32)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        (PROBABILITIES, True),
        (PROBABILITIES.reshape(1, 2, 2), True),
        (1.002 * PROBABILITIES, False),
        (np.array([[1.5, -0.5]], np.float32), False),
        (np.array([[np.nan, 1]], np.float32), False),
        (PROBABILITIES[:, :1], False),
        (PROBABILITIES[:0], False),
    ],
)
def test_probabilities(scores: np.ndarray, expected: bool) -> None:
    assert metrics.are_probabilities(scores) is expected


@pytest.mark.parametrize(
    ("outputs", "wanted", "message"),
    [
        (OUTPUTS, "foo", "The model has no output 'foo'. Its outputs are: label, one, scores."),
        (OUTPUTS, "label", "Output 'label' holds int64, which has no gradient. Choose one of: one, scores."),
        (
            {"label": OUTPUTS["label"]},
            "label",
            "Output 'label' holds int64, which has no gradient. Choose one of: none.",
        ),
    ],
)
def test_output_that_cannot_be_used(outputs: dict[str, np.ndarray], wanted: str | None, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}"):
        metrics.choose_output(outputs, wanted)


# Labels


@pytest.mark.parametrize(
    ("labels", "output", "expected"),
    [
        (np.zeros(4, np.int64), np.zeros((2, 3)), True),
        (np.zeros((4, 5), np.uint8), np.zeros((2, 5, 3)), True),
        (np.zeros(4), np.zeros((2, 3)), False),
        (np.zeros(4, np.int64), np.zeros((2, 1)), False),
        (np.zeros((4, 3), np.int64), np.zeros((2, 3)), False),
    ],
)
def test_labels_that_name_classes(labels: np.ndarray, output: np.ndarray, expected: bool) -> None:
    assert metrics.name_classes(labels, output) is expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            np.array([0, 3, 1]),
            "Labels are out of range: found 0 to 3 (the first wrong one is that of sample 1); the output has 3 "
            "classes, so 0 to 2 is expected, or -100 for what is to be ignored.",
        ),
        (np.array([0, 2, -1]), "Labels are out of range: found -1 to 2 (the first wrong one is that of sample 2)"),
        (
            np.array([0, 1, 255], np.uint8),
            "Labels are out of range: found 0 to 255 (the first wrong one is that of",
        ),
        (np.zeros((3, 1), np.int64), "Labels of shape [3, 1] do not fit scores of shape [3, 3]: [3] is expected."),
    ],
)
def test_labels_that_are_no_classes(labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=f"^{re.escape(message)}"):
        metrics.check_classes(labels, np.zeros((1, 3), np.float32))


def test_labels_that_fit() -> None:
    metrics.check_classes(np.array([0, 2]), np.zeros((1, 3)))
    metrics.check_numbers(np.zeros(5), np.zeros((1, 1)))
    metrics.check_numbers(np.zeros((5, 2, 3)), np.zeros((1, 6)))


def test_labels_that_cannot_be_compared() -> None:
    message = "Labels of shape [5, 2] do not fit the output of shape [5, 3]: as many numbers are expected."
    with pytest.raises(DataError, match=re.escape(message)):
        metrics.check_numbers(np.zeros((5, 2)), np.zeros((1, 3)))
    with pytest.raises(DataError, match=re.escape("Labels to be compared with an output must be numbers; found <U1.")):
        metrics.check_numbers(np.array(["a", "b"]), np.zeros((1, 1)))


def test_labels_against_an_output_of_labels() -> None:
    labels, first, second = np.array([0, 1, 2, 2]), np.array([[0], [1], [1], [2]]), np.array([[0], [0], [1], [2]])
    assert metrics.name_classes(labels, first)
    metrics.check_classes(labels, first)
    correct = metrics.Correct()
    correct.add(labels, first, second)
    assert (correct.both, correct.only_original, correct.only_compressed, correct.neither) == (2, 1, 0, 1)
    with pytest.raises(DataError, match="as many numbers are expected"):
        metrics.check_classes(labels, np.zeros((4, 2), np.int64))


# Labels that do not count, and labels of other forms

IGNORE = metrics.IGNORED


def test_what_is_ignored_is_counted_nowhere() -> None:
    scores = np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]
    labels = np.array([0, IGNORE, 1, IGNORE])
    metrics.check_classes(labels, scores)
    found = Correct()
    found.add(labels, scores, scores[::-1])
    assert (found.both, found.only_original, found.only_compressed, found.neither) == (1, 0, 1, 0)
    with pytest.raises(DataError, match=r"^All labels are -100, which says that they do not count"):
        metrics.check_classes(np.full(4, IGNORE), scores)
    with pytest.raises(
        DataError, match=r"found 0 to 3 \(the first wrong one is that of sample 2\).*or -100 for what is"
    ):
        metrics.check_classes(np.array([0, IGNORE, 3, 1]), scores)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (
            np.eye(3, dtype=np.int64),
            "Labels of shape [3, 3] have an integer for each of 3 classes and are one-hot: numb",
        ),
        (
            np.tri(3, dtype=np.int64),
            "for each of 3 classes, several of which may be right (multi-label): that is trained",
        ),
        (
            np.arange(9).reshape(3, 3),
            "for each of 3 classes: give one number of a class for each sample, or floats to be",
        ),
    ],
)
def test_an_integer_for_each_class(labels: np.ndarray, message: str) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        metrics.check_classes(labels, np.zeros((8, 3), np.float32))


def test_where_nothing_holds_numbers_the_first_output_counts() -> None:
    text, flags = np.array(["a"], object), np.array([True])
    assert metrics.choose_output({"text": text, "flags": flags}, None) == "text"
    assert metrics.choose_output({"text": text, "number": np.array([1])}, None) == "number"


def test_a_sequence_as_one_array() -> None:
    one = np.array([1.0, 2.0])
    np.testing.assert_array_equal(metrics.flattened(of_objects([one, one[:1]])), [1, 2, 1])
    assert metrics.flattened(of_objects([np.array(["a"]), one])).tolist() == ["a", 1.0, 2.0]
    assert metrics.flattened(one) is one
    words = np.array(["a", "b"], object)
    assert metrics.flattened(words) is words


def test_one_hot() -> None:
    assert metrics.is_one_hot(np.eye(3, dtype=np.float32))
    for other in (np.tri(3), np.zeros((3, 3)), 2 * np.eye(3), np.eye(3)[0], np.ones((3, 1)), np.eye(2) > 1):
        assert not metrics.is_one_hot(other)


# Values of any shape and type


def add(reference: object, other: object, kind: type | None = None) -> Difference:
    found = Difference()
    found.add(np.asarray(reference, kind), np.asarray(other, kind))
    return found


def test_a_scalar() -> None:
    report = add(4.0, 5.0).report("y")
    assert (report.max_error, report.relative_error, report.agreement) == (1.0, 0.25, None)
    assert add(4, 5).report("y").agreement == 0
    assert add("a", "a", object).report("y").agreement == 1


def test_other_shapes_are_said_and_never_cut_to_fit() -> None:
    found = add([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0]])
    report = found.report("y")
    assert (report.max_error, report.relative_error, report.agreement) == (None, None, 0.0)
    assert (report.values, report.reshaped, report.shapes) == (1, 1, ((2, 2), (1, 2)))
    # What has the same shape in another call counts; the rows of the first one are wrong, all of them.
    found.add(np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[3.0, 4.5], [1.0, 0.0]]))
    report = found.report("y")
    assert report.relative_error == pytest.approx(0.5 / np.sqrt(26))
    assert (report.agreement, report.values, report.reshaped) == (0.5, 2, 1)


def test_more_rows_than_there_were_are_wrong_too() -> None:
    assert add([1, 2], [1, 2, 3, 4]).report("y").agreement == 0
    assert add([1, 2], [1, 2, 3, 4]).compared == 4


def test_nothing_at_all_is_called_so() -> None:
    report = add(np.zeros((0, 3)), np.zeros((0, 3))).report("y")
    assert (report.is_empty, report.relative_error, report.agreement) == (True, None, None)
    assert not add([1.0], [1.0]).report("y").is_empty


def test_sequences_of_arrays() -> None:
    one, other = np.array([3.0, 4.0]), np.array([3.0, 4.5])
    found = Difference()
    found.add(of_objects([one, one]), of_objects([one, other]))
    assert found.report("y").relative_error == pytest.approx(0.5 / np.sqrt(50))
    found.add(of_objects([one, one[:1], one[:1]]), of_objects([one, one, one]))
    assert (found.reshaped, found.values) == (1, 2)
    found.add(of_objects([one]), of_objects([one, one]))
    assert (found.reshaped, found.values) == (2, 3)
    words = Difference()
    words.add(of_objects([np.array(["a", "b"]), one]), of_objects([np.array(["a", "c"]), one]))
    assert words.report("y").agreement == 0.5


@pytest.mark.parametrize(
    ("labels", "output", "shape"),
    [
        (np.zeros((5, 2), int), np.zeros((5, 2, 7)), (5, 2)),
        (np.zeros(5, int), np.zeros((1, 5, 7)), (1, 5)),
        (np.array(3), np.zeros((1, 7)), (1,)),
        (np.zeros((5, 7)), np.zeros((1, 5, 7)), (1, 5, 7)),
        (np.zeros(5, int), np.zeros((5, 1), int), (5, 1)),
        (np.zeros(5), np.zeros(5), (5,)),
    ],
)
def test_labels_of_a_call(labels: np.ndarray, output: np.ndarray, shape: tuple[int, ...]) -> None:
    assert metrics.of_call(labels, output).shape == shape


@pytest.mark.parametrize(("labels", "output"), [((4,), (5, 7)), ((2, 5), (5, 2, 7)), ((), (2, 7))])
def test_labels_that_do_not_fit_a_call(labels: tuple[int, ...], output: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="do not fit a call whose output has shape"):
        metrics.of_call(np.zeros(labels, int), np.zeros(output))

import math

import pytest

from onnxpq.report.floor import FloorReport, StandsStill


@pytest.mark.parametrize(
    ("loss", "kept"), [(0.0, True), (0.05, True), (0.051, False), (math.inf, False), (math.nan, False)]
)
def test_what_is_kept(loss: float, kept: bool) -> None:
    report = FloorReport("y", "share of other answers", loss, 0.05)
    assert report.kept is kept
    assert report.to_text().startswith("Floor kept" if kept else "Floor MISSED")


def test_an_output_that_stands_still_is_no_result() -> None:
    report = FloorReport("y", "share of other answers", 0.0, 0.05, (StandsStill("z", "gives the same numbers"),))
    assert not report.kept
    assert "Output 'z' gives the same numbers; the original's does not." in report.to_text()
    assert "output 'z' gives the same numbers, which the original's does not" in report.sentence()
    assert "more than" not in report.sentence()


def test_the_sentence_says_what_to_do() -> None:
    sentence = FloorReport("y", "relative error", 0.4, 0.3).sentence()
    assert "the relative error of output 'y' is 40 %, more than 30 %" in sentence
    assert "--floor" in sentence

import re

from onnxpq.report.target import TargetReport, Trial, drop_of, percent
from onnxpq.support.figures import Interval

REPORT = TargetReport(
    asked="accuracy at most 0.5 % lower",
    reached=True,
    outcome="a file of 2,000 bytes",
    metric="accuracy",
    decided_on="135 validation samples, not learned from",
    trials=(
        Trial(4000, 3000, 0.0, 0.0156, 0.03125, Interval(0.0, -0.001, 0.001), True),
        Trial(2000, 1000, 1.0, 0.125, None, Interval(0.0025, 0.0, 0.005), True),
        Trial(1500, 500, 0.125, 0.5, 0.25, Interval(0.25, 0.125, 0.5), False),
    ),
    chosen=1,
    proof=Interval(0.004, -0.001, 0.009),
    expected=((1500, 0.5), (2000, 0.125)),
    remark="It knows them by heart.",
)


def test_text() -> None:
    text = re.sub(" +", " ", REPORT.to_text())
    for line in (
        "Target: accuracy at most 0.5 % lower",
        " reached: a file of 2,000 bytes",
        " drop of accuracy on the verification samples: 0.40 % [-0.10, 0.90]",
        " It knows them by heart.",
        "Tried, judged on 135 validation samples, not learned from",
        " file bytes layers trained expected error found drop of accuracy kept to",
        " 4000 3000 no 0.0156 0.0312 0.00 % [-0.10, 0.10] yes",
        " 2000 1000 yes 0.1250 - 0.25 % [0.00, 0.50] yes <- the result",
        " 1500 500 12% 0.5000 0.2500 25.00 % [12.50, 50.00] no",
        " 1500 0.5000",
    ):
        assert line in text.splitlines(), line


def test_text_of_a_miss_without_data() -> None:
    trial = Trial(4000, 3000, 0.0, 0.5, None, None, True)
    report = TargetReport("a file of at most 9 bytes", False, "more", None, None, (trial,), 0, None, ())
    text = re.sub(" +", " ", report.to_text())
    assert " MISSED: more\nTried\n file bytes" in text
    assert " 4000 3000 no 0.5000 - - yes <- the result" in text
    assert "Expected" not in text
    assert "verification" not in text


def test_words() -> None:
    assert drop_of("mse") == "increase of the squared error"
    assert drop_of("relative mse") == "squared error, relative to the output"
    assert drop_of("agreement") == "drop of agreement"
    assert percent(Interval(0.005, 0.0, 0.01)) == "0.50 % [0.00, 1.00]"

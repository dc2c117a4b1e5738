import json
import math
import re
from dataclasses import replace
from typing import Any

import pytest

from onnxpq.report.floor import FloorReport
from onnxpq.report.run import (
    Accuracy,
    Epoch,
    Interval,
    Latency,
    LayerReport,
    LayerTraining,
    OutputReport,
    Report,
    SkippedReport,
    SquaredError,
    Training,
    Verification,
)

LAYERS = (
    LayerReport("fc1", "W1", (96, 64), 8, 16, 2, 24576, 1280, 0.512345),
    LayerReport("fc1_again", "W1", (96, 64), 8, 16, 2, 0, 0, 0.512345),
    LayerReport("fc2", "W2", (10, 96), 8, 16, 1, 3840, 488, 0.25),
)
SKIPPED = (SkippedReport("conv", "Conv", "its constant 'K' is a convolution kernel.", 2304),)
TRAINING = Training(
    loss="cross-entropy",
    samples=900,
    validation_samples=100,
    prefix=3,
    forward_error=1.5e-7,
    forward_node="fc1",
    before=0.1,
    quantized=2.5,
    best=0.125,
    batch=32,
    steps=84,
    epochs=tuple(Epoch(phase, 1.0, 1.0, 0.0) for phase in ("regularized", "tuned", "tuned")),
)
VERIFICATION = Verification(
    data="test data, not trained on",
    samples=450,
    held_out=True,
    bytes_before=1_000_000,
    bytes_after=40_000,
    outputs=(OutputReport("logits", 0.5, 0.015625, 0.9375), OutputReport("label", None, None, 0.98)),
    library_agreement=1.5e-4,
    accuracy=Accuracy("logits", Interval(0.98, 0.97, 0.99), Interval(0.965, 0.95, 0.97), Interval(0.015, -0.01, 0.04)),
    squared_error=None,
    latency=(Latency(1, 0.5, 0.0625, 0.25), Latency(64, 8.0, None, 4.0)),
    floor=FloorReport("logits", "loss of accuracy", 0.015, 0.05, resolution=0.018),
)
REPORT = Report(LAYERS, SKIPPED, TRAINING, VERIFICATION, ("Read me.",), {"seed": 0}, {"training": 1.5})


def squeezed(report: Report) -> str:
    """The text with runs of blanks as one, so that tests do not depend on column widths."""
    return re.sub(r"[ \t]+", " ", report.to_text())


def test_ratios_by_hand() -> None:
    assert REPORT.ratio == 25.0
    assert REPORT.layer_ratio == (24576 + 3840) / (1280 + 488)


def test_json_holds_everything() -> None:
    found = json.loads(REPORT.to_json())
    assert found["ratio"] == 25.0
    assert found["layer_ratio"] == REPORT.layer_ratio
    assert found["layers"][0]["shape"] == [96, 64]
    assert found["layers"][2]["bytes_after"] == 488
    assert found["skipped"] == [
        {
            "node": "conv",
            "op_type": "Conv",
            "reason": "its constant 'K' is a convolution kernel.",
            "nbytes": 2304,
        }
    ]
    assert found["training"]["epochs"][1] == {"phase": "tuned", "loss": 1.0, "validation": 1.0, "alpha": 0.0}
    assert found["verification"]["accuracy"]["drop"] == {"value": 0.015, "low": -0.01, "high": 0.04}
    assert found["verification"]["outputs"][1]["max_error"] is None
    assert found["verification"]["latency"][1]["library"] is None
    assert (found["notes"], found["settings"], found["seconds"]) == (["Read me."], {"seed": 0}, {"training": 1.5})


def test_json_has_no_numbers_that_json_lacks() -> None:
    outputs = (OutputReport("y", math.nan, math.inf, None),)
    text = replace(REPORT, verification=replace(VERIFICATION, outputs=outputs)).to_json()

    def refuse(constant: str) -> Any:
        raise AssertionError(constant)

    found = json.loads(text, parse_constant=refuse)
    (output,) = found["verification"]["outputs"]
    assert {name: output[name] for name in ("name", "max_error", "relative_error", "agreement")} == {
        "name": "y",
        "max_error": None,
        "relative_error": None,
        "agreement": None,
    }


def test_text_names_everything() -> None:
    text = squeezed(REPORT)
    for line in (
        " layer weight out x in d K G bytes before after ratio change of weights",
        " fc1 W1 96 x 64 8 16 2 24576 1280 19.2 0.512",
        " fc1_again W1 96 x 64 8 16 2 0 0 - 0.512",
        " fc2 W2 10 x 96 8 16 1 3840 488 7.9 0.250",
        " 2,304 bytes in 1 Conv (conv): its constant 'K' is a convolution kernel.",
        "Fine-tuned on 900 samples by cross-entropy, in 84 steps of 32 samples (--steps 84 --batch-size 32); "
        "validations: 1 regularized, 2 tuned",
        " torch against onnxruntime before training: relative difference 1.5e-07 (node fc1); "
        "3 nodes run once and cached",
        " loss on 100 validation samples: original 0.1, product quantization alone 2.5, fine-tuned 0.125",
        "Verified on 450 samples: test data, not trained on",
        " file 1,000,000 bytes -> 40,000 bytes, 25.0 times smaller",
        " layers 16.1 times smaller",
        " output logits: relative error 0.0156, largest difference 0.5, same top-1 93.75 %",
        " output label: same value 98.00 %",
        " accuracy 98.00 % -> 96.50 % [95.00, 97.00] (logits); drop 1.50 points [-1.00, 4.00]",
        " native against stock operators: relative difference 1.5e-04",
        " batch 1 0.500 0.062 0.250",
        " batch 64 8.000 - 4.000",
        "Note: Read me.",
    ):
        assert line in text.splitlines(), line


def test_text_leaves_out_what_is_not_there() -> None:
    verification = replace(
        VERIFICATION,
        library_agreement=None,
        accuracy=None,
        latency=(),
        squared_error=SquaredError("y", 0.25, 0.5),
        floor=FloorReport("y", "relative error", 0.1, 0.3),
    )
    text = squeezed(Report(LAYERS, (), None, verification))
    assert " squared error 0.25 -> 0.5 (y)" in text.splitlines()
    for word in ("Left alone", "Fine-tuned", "accuracy", "native", "milliseconds", "Note"):
        assert word not in text


def test_stock_operators_that_were_not_timed_are_said_to_be_so() -> None:
    said = " stock operators were not timed: loading them takes nine times the bytes of the layers"
    assert said not in squeezed(REPORT).splitlines()
    text = squeezed(replace(REPORT, verification=replace(VERIFICATION, latency=(Latency(1, 0.5, 0.0625, None),))))
    assert " batch 1 0.500 0.062 -" in text.splitlines()
    assert said in text.splitlines()


def test_output_of_one_column_has_no_top_1() -> None:
    outputs = (OutputReport("y", 0.5, 0.25, None),)
    text = squeezed(replace(REPORT, verification=replace(VERIFICATION, outputs=outputs)))
    assert " output y: relative error 0.2500, largest difference 0.5" in text.splitlines()


def test_outputs_of_other_shapes_and_of_whole_calls() -> None:
    outputs = (
        OutputReport("boxes", None, None, 0.5, values=8, reshaped=3, shapes=((4, 3), (2, 3)), is_whole=True),
        OutputReport("rows", None, None, None, values=8, is_empty=True),
    )
    lines = squeezed(replace(REPORT, verification=replace(VERIFICATION, outputs=outputs))).splitlines()
    assert (
        " output boxes: as a whole in 8 calls, same value 50.00 %, ANOTHER SHAPE in 3 of 8 calls, such as [2, 3] "
        "instead of [4, 3]"
    ) in lines
    assert " output rows: empty in all calls, so that nothing was compared" in lines


def test_layers_trained_by_themselves_and_not_at_all() -> None:
    epochs = tuple(Epoch("tuned", 0.5, 0.25, 0.0) for _ in range(3))
    alone = LayerTraining("fc1", "operator my::Op version 1 at node 'odd' has no rule", 900, 100, 0.5, 0.125, epochs)
    ways = (f"layer-wise: {alone.reason}", f"layer-wise: {alone.reason}", "not trained: it lies in a subgraph")
    layers = tuple(replace(layer, training=way) for layer, way in zip(LAYERS, ways, strict=True))
    report = replace(REPORT, layers=layers, training=None, layer_wise=(alone,))
    text = squeezed(report)
    assert (
        "Fine-tuned layer by layer, each against the original layer's outputs\n fc1: relative squared error 0.5 by"
        in text
    )
    assert "0.125 fine-tuned on 900 rows, 3 epochs; because operator my::Op version 1 at node 'odd' has no rule" in text
    assert "Not fine-tuned\n fc2: not trained: it lies in a subgraph" in text
    stored = json.loads(report.to_json())
    assert stored["layer_wise"][0]["best"] == 0.125
    assert [layer["training"] for layer in stored["layers"]] == list(ways)
    assert "layer by layer" not in squeezed(REPORT)


def test_the_floor_is_told() -> None:
    told = "Floor kept: loss of accuracy of output 'logits' 1.5 %, at most 5 %; so many samples tell it to 1.8 %"
    assert told in REPORT.to_text()


def test_a_report_without_proof_says_so_first() -> None:
    verification = replace(VERIFICATION, held_out=False, data="random inputs, as no data was given")
    first = replace(REPORT, verification=verification).to_text().splitlines()[0]
    assert first == "Nothing was proven: random inputs, as no data was given."
    assert "Nothing was proven" not in REPORT.to_text()


@pytest.mark.parametrize("held_out", [True, False])
def test_an_empty_output_proves_nothing(held_out: bool) -> None:
    """Boxes that are all filtered out, say; another empty output beside one that counts leaves its proof as it is."""
    empty = OutputReport("boxes", None, None, None, values=8, is_empty=True)
    beside = replace(VERIFICATION, outputs=(*VERIFICATION.outputs, empty))
    assert "Nothing was proven" not in replace(REPORT, verification=beside).to_text()
    counts = replace(beside, floor=replace(beside.floor, output="boxes"), held_out=held_out, data="random inputs")
    first = replace(REPORT, verification=counts).to_text().splitlines()[0]
    reason = "output 'boxes' was empty in all calls, so that nothing was compared."
    assert first == f"Nothing was proven: {'' if held_out else 'random inputs; '}{reason}"

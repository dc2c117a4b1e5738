from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_models as tiny
from onnx import helper, numpy_helper

from onnxpq.runtime import judging, refusal


def unknown_operator() -> onnx.ModelProto:
    return tiny.mlp(activation="Nonsense")


def deadly() -> onnx.ModelProto:
    """onnxruntime 1.32 dies of an operator of its own in a local function."""
    model = tiny.mlp(activation="Act", domain="own")
    ones = numpy_helper.from_array(np.ones(tiny.HIDDEN, np.float32))
    nodes = [
        helper.make_node("Constant", [], ["one"], value=ones),
        helper.make_node("SimplifiedLayerNormalization", ["x", "one"], ["y"], axis=-1),
    ]
    model.functions.append(helper.make_function("own", "Act", ["x"], ["y"], nodes, [helper.make_opsetid("", 17)]))
    return model


@pytest.mark.parametrize("as_file", [True, False])
def test_a_model_that_loads(as_file: bool, tmp_path: Path) -> None:
    model = tiny.mlp()
    assert refusal(tiny.save_model(tmp_path / "m.onnx", model) if as_file else model) is None


def test_a_model_that_does_not_in_onnxruntimes_words() -> None:
    text = refusal(unknown_operator())
    assert text is not None
    assert "Nonsense" in text
    assert "/onnxpq-" not in text, "no path of a temporary folder"


def test_a_model_that_kills_onnxruntime_leaves_us_alive() -> None:
    text = refusal(deadly())
    assert text is not None
    assert "dies (signal" in text or "Nonsense" not in text


def test_a_library_that_is_not_there(tmp_path: Path) -> None:
    text = refusal(tiny.mlp(), custom_ops_libraries=[tmp_path / "none.so"])
    assert text is not None
    assert "none.so' does not exist" in text


def test_a_model_that_takes_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "SECONDS", 0.01)
    assert refusal(tiny.mlp()) == "onnxruntime does not load it within 0.01 seconds."


def test_no_one_is_asked_of_a_model_that_does_not_exist(tmp_path: Path) -> None:
    text = refusal(tmp_path / "none.onnx")
    assert text is not None
    assert "does not exist" in text

"""What a GPU would be asked, on a device that stands for one (`far_device`): all of it happens there, and is right."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from far_device import AVAILABLE, FAR, REASON, Far, everything_far
from model_forms import FORMS
from text_models import text_model, texts
from tiny_models import classes, mlp, samples

import onnxpq
from onnxpq.config.settings import DEFAULT_ALPHA, Config, PQConfig, TargetConfig, TrainingConfig
from onnxpq.support import device
from onnxpq.verification import proof
from onnxpq.workspace import pieces

pytestmark = pytest.mark.skipif(not AVAILABLE, reason=REASON)

SHORT = TrainingConfig(steps=8, batch_size=32)
ROUNDING = 1e-4
"""Relative difference of losses: a product of three axes is not computed in the same order for tensors of a class."""

FLOAT16_BUDGET = 2**-8
"""What is left of that in a file, relative to its largest number: a few units of float16."""

TIES = 0.01
"""Share of a weight's codes that may be the other one of two codewords that are equally near."""

TRAINED = (
    "MatMul",
    "Gemm, transB",
    "float16",
    "double",
    "weight -> Transpose",
    "inside a Loop",
    "inside a Scan",
    "3-D weight (batched MatMul)",
    "3-D weight, one matrix",
    "one weight in two MatMuls",
    "Conv 1x1, --conv1x1",
    "Gather, tied to a MatMul, --tables",
    "FusedGemm",
    "Einsum, to heads and back",
)


@pytest.fixture(autouse=True)
def few_timings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "LATENCY_ROUNDS", 3)


def test_it_is_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.best() == torch.device("cpu")
    assert device.describe().startswith("CPU with ")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    assert device.best() == torch.device("cuda")
    assert device.describe() == "A GPU"


def content(result: onnxpq.Result, folder: Path) -> bytes:
    result.save(folder / "out.onnx")
    return (folder / "out.onnx").read_bytes()


def assert_same_file(there: onnxpq.Result, here: onnxpq.Result, folder: Path) -> None:
    """But for rounding: the two differ where tensors of a class are laid out in another way in memory."""
    assert len(content(there, folder)) == len(content(here, folder))
    for graph, other in zip(there.model.graphs(), here.model.graphs(), strict=True):
        assert [(node.op_type, node.name) for node in graph] == [(node.op_type, node.name) for node in other]
        assert graph.initializers.keys() == other.initializers.keys()
        for name, value in graph.initializers.items():
            assert_same_constant(value.const_value.numpy(), other.initializers[name].const_value.numpy(), name)


def assert_same_constant(found: np.ndarray, expected: np.ndarray, name: str) -> None:
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape), name
    if found.dtype == np.uint8:
        assert np.count_nonzero(found != expected) <= max(1, TIES * found.size), name
    elif found.dtype.kind in "ib":
        np.testing.assert_array_equal(found, expected, name)
    else:
        largest = np.abs(expected).max(initial=0)
        np.testing.assert_allclose(found, expected, rtol=0, atol=FLOAT16_BUDGET * largest, err_msg=name)


def test_other_files_are_told_apart() -> None:
    values = np.linspace(-1, 1, 99, dtype=np.float16)
    codes = np.arange(200, dtype=np.uint8)
    assert_same_constant(values, values, "values")
    for found, expected in ((1.02 * values, values), (codes + 1, codes)):
        with pytest.raises(AssertionError):
            assert_same_constant(found.astype(expected.dtype), expected, "another")


def assert_same_elsewhere(
    monkeypatch: pytest.MonkeyPatch, folder: Path, model: Any, data: Any, least: int = 1000, **settings: Any
) -> None:
    """The device gives the file that the CPU gives, but for rounding, and has at least so much to do."""
    here = onnxpq.compress(model, data, **settings)
    with everything_far(monkeypatch) as far:
        there = onnxpq.compress(model, data, **settings)
    assert_same_file(there, here, folder)
    assert far.operations > least
    assert losses(there) == pytest.approx(losses(here), rel=ROUNDING)


def losses(result: onnxpq.Result) -> list[float]:
    training = result.report.training
    found = [epoch.validation for epoch in training.epochs] if training else []
    return found + [loss for layer in result.report.layer_wise for loss in (layer.quantized, layer.best)]


@pytest.mark.rounding
@pytest.mark.parametrize(
    ("regularizer", "labels"), [*((name, None) for name in DEFAULT_ALPHA), ("codebook", "y"), ("none", "y")]
)
def test_a_whole_compression(
    regularizer: Any, labels: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = {"x": samples(200)} | ({"y": classes(200)} if labels else {})
    config = Config(training=replace(SHORT, regularizer=regularizer))
    assert_same_elsewhere(monkeypatch, tmp_path, mlp(), data, labels=labels, config=config)


def test_a_target(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = Config(target=TargetConfig(ratio=3), training=SHORT)
    assert_same_elsewhere(monkeypatch, tmp_path, mlp(), {"x": samples(200)}, config=config)


@pytest.mark.parametrize("form", [{}, {"tied": True}, {"by_length": True}], ids=["table", "tied", "in the part"])
def test_tables(form: dict[str, bool], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = Config(tables=True, training=SHORT)
    assert_same_elsewhere(monkeypatch, tmp_path, text_model(**form), texts(), config=config)


@pytest.mark.rounding
@pytest.mark.parametrize("name", TRAINED)
def test_every_form_of_a_layer(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    form = FORMS[name]
    config = Config(min_weights=1, pq=PQConfig(sub_vector=4), training=SHORT, **form.settings)
    assert_same_elsewhere(monkeypatch, tmp_path, form.model(), form.inputs(rows=40), least=100, config=config)


def test_an_interrupted_run_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pieces, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(pieces, "SAVE_SHARE", 0.0)
    settings: dict[str, Any] = {"config": Config(training=SHORT)}

    def stop(stage: str, done: int, _: int) -> None:
        if (stage, done) == ("training", 5):
            raise KeyboardInterrupt

    whole = onnxpq.compress(mlp(), {"x": samples(200)}, **settings)
    for interrupted in (True, False):
        with everything_far(monkeypatch) as far:
            try:
                there = onnxpq.compress(
                    mlp(),
                    {"x": samples(200)},
                    work_dir=tmp_path / "w",
                    progress=stop if interrupted else None,
                    **settings,
                )
            except KeyboardInterrupt:
                assert interrupted
    assert_same_file(there, whole, tmp_path)
    assert far.operations > 100, "the rest was computed there"


# The stand-in can fail: it refuses what a GPU refuses.


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (lambda x: x + torch.ones(3), "same device"),
        (lambda x: torch.cat([x, torch.ones(3)]), "same device"),
        (lambda x: torch.where(x > 0, x, torch.ones(3)), "same device"),
        (lambda x: x.index_select(0, torch.tensor([1])), "same device"),
        (lambda x: torch.rand(len(x), device=FAR, generator=torch.Generator()), "device type for generator"),
        (lambda x: x.numpy(), "not supported"),
    ],
)
def test_a_tensor_left_behind_is_noticed(use: Any, message: str) -> None:
    with Far():
        x = torch.ones(3).to(FAR)
        assert (x + 1).cpu().tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match=message):
            use(x)

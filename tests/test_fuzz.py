"""Random whole models through inspect and compress: the report's figures against whole outputs, compared by themselves.

The models are the same in every session, unless ``ONNXPQ_FUZZ_SEED`` is another number, or "fresh" for others each
time: fresh ones still find a fault in one run of a hundred. What fails names its seed;
``python -m benchmarks fuzz --seed N`` repeats it alone.
"""

import os
import random
from collections.abc import Callable
from dataclasses import replace

import onnx_ir as ir
import pytest
from fuzzing import running

import onnxpq

pytestmark = pytest.mark.floor

PARTS, RUNS = 10, 20
"""So many tests, which may run side by side, of so many models each."""

SEEDS = 10**9
FIRST_SEED = "10000"


@pytest.mark.parametrize("part", range(PARTS))
def test_reports_say_what_whole_outputs_say(part: int) -> None:
    given = os.environ.get("ONNXPQ_FUZZ_SEED", FIRST_SEED)
    first = random.SystemRandom().randrange(SEEDS) if given == "fresh" else int(given) + part * RUNS
    print(f"Seeds {first} to {first + RUNS - 1}.")
    outcomes = [running.run(seed) for seed in range(first, first + RUNS)]
    faults = [running.described(outcome) for outcome in outcomes if outcome.faults]
    assert not faults, "\n\n".join(faults)
    assert any(outcome.layers for outcome in outcomes)


def spoilt(result: onnxpq.Result, **changes: object) -> onnxpq.Result:
    """The result with other figures in its verification."""
    return replace(result, report=replace(result.report, verification=replace(result.report.verification, **changes)))


def with_output(result: onnxpq.Result, **changes: object) -> onnxpq.Result:
    first, *others = result.report.verification.outputs
    return spoilt(result, outputs=(replace(first, **changes), *others))


def with_loss(result: onnxpq.Result) -> onnxpq.Result:
    floor = result.report.verification.floor
    return spoilt(result, floor=replace(floor, loss=0.9 * floor.loss))


def with_bytes(result: onnxpq.Result) -> onnxpq.Result:
    return spoilt(result, bytes_after=result.report.verification.bytes_after - 1)


def with_another_model(result: onnxpq.Result) -> onnxpq.Result:
    """A bias is another one: nothing of the report is true any more."""
    model = result.model.clone()
    node = next(node for node in model.graph.all_nodes() if node.op_type == "PQMatMul")
    bias = node.inputs[4]
    assert bias is not None
    assert bias.const_value is not None
    bias.const_value = ir.tensor(bias.const_value.numpy() + bias.const_value.dtype.numpy().type(0.5), name=bias.name)
    return replace(result, model=model)


SEED = 173
"""A model whose first output is floats with rows of scores."""


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda result: with_output(result, relative_error=0.5), "relative_error 0.5 in the report"),
        (lambda result: with_output(result, agreement=0.999), "agreement 0.999 in the report"),
        (lambda result: with_output(result, is_whole=True), "is_whole is True"),
        (lambda result: spoilt(result, library_agreement=0.5), "library against stock: 0.5 in the report"),
        (with_loss, "in the report"),
        (with_bytes, "sizes: "),
        (with_another_model, "from the original with the decoded weights"),
    ],
    ids=["error", "agreement", "whole", "library", "loss", "bytes", "model"],
)
def test_what_is_wrong_is_found(
    monkeypatch: pytest.MonkeyPatch, spoil: Callable[[onnxpq.Result], onnxpq.Result], said: str
) -> None:
    real = onnxpq.compress
    assert not running.run(SEED).faults
    monkeypatch.setattr(onnxpq, "compress", lambda *given, **settings: spoil(real(*given, **settings)))
    assert any(said in fault for fault in running.run(SEED).faults)


def test_what_raises_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise IndexError("list index out of range")

    monkeypatch.setattr(onnxpq, "compress", fails)
    found = running.run(SEED)
    assert found.answer == "traceback"
    assert "IndexError" in found.faults[0]
    assert f"--seed {SEED}" in running.described(found)

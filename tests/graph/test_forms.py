from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
from tiny_models import mlp, save_model

from onnxpq.graph import files
from onnxpq.graph.forms import Forms


def forms(source: files.Source, *, runs: bool = True) -> Forms:
    return Forms.of(source, lambda _: None if runs else "it has no kernel for it")


def test_bytes_of_a_file_and_of_a_model_in_memory(tmp_path: Path) -> None:
    path = save_model(tmp_path / "m.onnx", mlp())
    assert forms(path).file == path
    assert forms(path).bytes_before == path.stat().st_size
    assert forms(mlp()).file is None
    assert forms(mlp()).bytes_before == path.stat().st_size
    assert forms(path.read_bytes()).bytes_before == path.stat().st_size
    assert forms(files.load(path)).bytes_before == len(files.to_bytes(files.load(path)))


def test_bytes_are_those_that_were_given_however_onnxpq_writes_the_model() -> None:
    """A node without a name gets one when it is loaded."""
    nameless = mlp()
    nameless.graph.node[0].ClearField("name")
    assert forms(nameless).bytes_before == nameless.ByteSize()
    assert forms(nameless.SerializeToString()).bytes_before == nameless.ByteSize()


def test_a_large_model_in_memory_is_not_put_together_to_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    model = files.load(mlp())
    small = forms(model).bytes_before
    monkeypatch.setattr(files, "LARGE_BYTES", 0)
    monkeypatch.setattr(files, "to_bytes", None)
    assert forms(model).bytes_before == pytest.approx(small, abs=100)


def bfloat16_model() -> onnx.ModelProto:
    return ir.to_proto(
        ir.from_onnx_text(
            """<ir_version: 8, opset_import: ["" : 17]>
            g (float[N, 4] x) => (float[N, 4] y) {
                h = Cast <to = 16> (x)
                y = Cast <to = 1> (h)
            }"""
        )
    )


@pytest.mark.parametrize("runs", [True, False])
def test_only_what_onnxruntime_cannot_run_is_widened(runs: bool) -> None:
    found = forms(bfloat16_model(), runs=runs)
    assert found.is_widened is not runs
    types = {node.attributes["to"].as_int() for node in found.runnable.graph}
    assert types == ({16, 1} if runs else {1})
    assert {node.attributes["to"].as_int() for node in found.original.graph} == {16, 1}


def test_whether_it_runs_is_asked_only_where_there_is_doubt() -> None:
    def never(_: files.Source) -> str | None:
        raise AssertionError("a float32 model runs")

    found = Forms.of(mlp(), never)
    assert found.runnable is found.original


def test_the_file_is_run_where_that_is_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_model(tmp_path / "m.onnx", mlp())
    found = forms(path)
    assert found.as_it_runs == path
    assert forms(mlp()).file is None
    monkeypatch.setattr(files, "LARGE_BYTES", 10)
    assert found.as_it_runs is found.runnable, "a large one is run with its weights mapped"


def test_a_change_keeps_what_is_trained_and_what_is_rewritten_together() -> None:
    found = forms(mlp())
    changed = found.rewritten(lambda model: model.clone())
    assert changed.original is found.original
    assert changed.prepared is not found.prepared
    assert changed.normal is not found.normal

"""Statistics of what goes into the layers, against the same numbers by numpy."""

import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import tiny_models as tiny
from numpy.typing import NDArray
from onnx import helper

import onnxpq
from onnxpq import rewriting, runtime
from onnxpq.config.settings import Config, PQConfig, TrainingConfig
from onnxpq.data.datasets import Dataset
from onnxpq.errors import DataError
from onnxpq.graph import files
from onnxpq.graph.layers import Layer
from onnxpq.graph.normalising import normalise
from onnxpq.pq.statistics import InputStatistics
from onnxpq.quantization import calibration, subject
from onnxpq.runtime import sessions

pytestmark = pytest.mark.rounding

MODELS = Path(__file__).resolve().parents[2] / "models"

MS = "com.microsoft"

MOMENT_BUDGET = 1e-4
"""Relative error of a moment: onnxruntime's float32 against numpy's."""

Found = dict[str, InputStatistics | str]


def prepare(proto: onnx.ModelProto) -> tuple[ir.Model, list[Layer]]:
    model = normalise(ir.from_proto(proto))
    return model, rewriting.find(model, min_weights=1)[0]


def collect(proto: onnx.ModelProto, x: NDArray[np.float32], **settings: int) -> Found:
    model, layers = prepare(proto)
    return dict(calibration.collect(model, layers, Dataset({"x": x}), seed=settings.get("seed", 0)))


def second_moment(found: InputStatistics | str) -> NDArray[np.float64]:
    assert isinstance(found, InputStatistics), found
    return found.second_moment


def assert_moment(found: InputStatistics | str, rows: NDArray[np.floating]) -> None:
    rows = rows.reshape(-1, rows.shape[-1]).astype(np.float64)
    assert isinstance(found, InputStatistics), found
    assert found.rows == len(rows)
    expected = rows.T @ rows / len(rows)
    error = np.linalg.norm(found.second_moment - expected) / np.linalg.norm(expected)
    assert error <= MOMENT_BUDGET


def run_hidden(x: NDArray[np.float32]) -> NDArray[np.float32]:
    model = tiny.mlp()
    weights = {w.name: onnx.numpy_helper.to_array(w) for w in model.graph.initializer}
    return np.maximum(x @ weights["W1"].T + weights["b1"], 0)


def one_node(nodes: Sequence[onnx.NodeProto], *shape: int | str, weight: tuple[int, ...] = (6, 4)) -> onnx.ModelProto:
    return tiny.build(
        list(nodes),
        {"x": list(shape)},
        {"y": [None] * len(shape)},
        [tiny.initializer("W", *weight, seed=1)],
        domains=(MS,),
    )


def test_each_layer_sees_its_own_inputs() -> None:
    x = tiny.samples(100)
    found = collect(tiny.mlp(), x)
    assert set(found) == {"W1", "W2"}
    assert_moment(found["W1"], x)
    assert_moment(found["W2"], run_hidden(x))


def test_a_two_percent_error_fails() -> None:
    x = tiny.samples(100)
    wrong = InputStatistics(x.shape[1])
    wrong.add(1.01 * x, "x")
    with pytest.raises(AssertionError):
        assert_moment(wrong, x)


def test_a_fixed_batch_counts_each_sample_once() -> None:
    x = tiny.samples(45)
    found = collect(tiny.mlp(batch=32), x)
    assert_moment(found["W1"], x)
    assert_moment(found["W2"], run_hidden(x))


def test_inputs_of_any_rank_are_rows() -> None:
    x = np.random.default_rng(0).standard_normal((10, 5, 6)).astype(np.float32)
    found = collect(one_node([helper.make_node("MatMul", ["x", "W"], ["y"])], "N", 5, 6), x)
    assert_moment(found["W"], x)


def test_a_weight_behind_a_transpose() -> None:
    nodes = [helper.make_node("Transpose", ["W"], ["V"], perm=[1, 0]), helper.make_node("MatMul", ["x", "V"], ["y"])]
    x = tiny.samples(20)[:, :6]
    assert_moment(collect(one_node(nodes, "N", 6, weight=(4, 6)), x)["W"], x)


def test_layers_that_share_a_weight_share_rows() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("MatMul", ["b", "W"], ["y"]),
    ]
    x = tiny.samples(20)[:, :6]
    model = one_node(nodes, "N", 6, weight=(6, 6))
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    assert_moment(collect(model, x)["W"], np.concatenate([x, np.maximum(x @ weight, 0)]))


def test_layers_of_the_same_input_share_statistics() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "W"], ["a"]),
        helper.make_node("MatMul", ["x", "V"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    x = tiny.samples(20)[:, :6]
    model = tiny.build(
        nodes, {"x": ["N", 6]}, {"y": ["N", 4]}, [tiny.initializer(name, 6, 4, seed=1) for name in ("W", "V")]
    )
    found = collect(model, x)
    assert found["W"] is found["V"]


@pytest.mark.parametrize(
    ("node", "weight"),
    [
        pytest.param(helper.make_node("MatMul", ["x", "W"], ["y"]), (6, 4), id="MatMul"),
        pytest.param(helper.make_node("Gemm", ["x", "W"], ["y"], transB=1), (4, 6), id="Gemm"),
        pytest.param(
            helper.make_node("FusedMatMul", ["x", "W"], ["y"], domain=MS, alpha=0.5), (6, 4), id="FusedMatMul"
        ),
        pytest.param(
            helper.make_node("FusedMatMul", ["x", "W"], ["y"], domain=MS, transB=1), (4, 6), id="FusedMatMul of W'"
        ),
        pytest.param(helper.make_node("FusedGemm", ["x", "W"], ["y"], domain=MS), (6, 4), id="FusedGemm"),
    ],
)
def test_a_product_with_rows(node: onnx.NodeProto, weight: tuple[int, int]) -> None:
    x = tiny.samples(20)[:, :6]
    assert_moment(collect(one_node([node], "N", 6, weight=weight), x)["W"], x)


@pytest.mark.parametrize(
    ("node", "weight"),
    [
        pytest.param(helper.make_node("Gemm", ["t", "W"], ["y"], transA=1), (6, 4), id="Gemm"),
        pytest.param(helper.make_node("FusedGemm", ["t", "W"], ["y"], domain=MS, transA=1), (6, 4), id="FusedGemm"),
        pytest.param(helper.make_node("FusedMatMul", ["t", "W"], ["y"], domain=MS, transA=1), (6, 4), id="FusedMatMul"),
        pytest.param(helper.make_node("MatMul", ["W", "t"], ["y"]), (4, 6), id="the weight is on the left"),
    ],
)
def test_a_product_with_columns(node: onnx.NodeProto, weight: tuple[int, int]) -> None:
    x = tiny.samples(20)[:, :6]
    nodes = [helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0]), node]
    assert_moment(collect(one_node(nodes, "N", 6, weight=weight), x)["W"], x)


def test_columns_of_a_stack() -> None:
    node = helper.make_node("FusedMatMul", ["x", "W"], ["y"], domain=MS, transA=1)
    x = np.random.default_rng(0).standard_normal((10, 6, 5)).astype(np.float32)
    assert_moment(collect(one_node([node], "N", 6, 5), x)["W"], x.swapaxes(1, 2))


def unseen() -> onnx.ModelProto:
    """A layer in an If in a Loop, which stacks no values that are there in some iterations only."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\nunseen {UNSEEN_LOOP}')
    model.graph.initializer.extend(
        [tiny.initializer("W", 64, 64, seed=1), onnx.numpy_helper.from_array(np.array(2), "two")]
    )
    return model


UNSEEN_LOOP = """(float[N,64] x) => (float[N,64] y) {
    y = Loop(two, , x) <body = g (int64 i, bool k, float[N,64] s) => (bool k2, float[N,64] r) {
        k2 = Identity(k) c = Cast<to = 9>(i)
        r = If(c) <then_branch = a () => (float[N,64] p) { t = Tanh(s) p = MatMul(t, W) },
                   else_branch = b () => (float[N,64] q) { q = Identity(s) }>
    }>
}"""


def test_weights_whose_inputs_cannot_be_told_are_named() -> None:
    assert collect(unseen(), tiny.samples(6))["W"] == calibration.UNSEEN.format(weight="W")


BRANCHES = """(float[N,6] x, bool[N] c) => (float[N,4] y) {
    d = Cast<to = 1>(c) a = ReduceMax<keepdims = 0>(d) e = Cast<to = 9>(a)
    y = If(e) <
        then_branch = g () => (float[N,4] p) { t = Exp(x) p = MatMul(t, W) },
        else_branch = h () => (float[N,4] q) { q = MatMul(x, V) }
    >
}"""


def branches() -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\nbranches {BRANCHES}')
    model.graph.initializer.extend([tiny.initializer("W", 6, 4, seed=1), tiny.initializer("V", 6, 4, seed=2)])
    return model


def test_inputs_of_layers_in_branches() -> None:
    x = tiny.samples(20)[:, :6]
    model, layers = prepare(branches())
    found = {
        taken: dict(calibration.collect(model, layers, Dataset({"x": x, "c": np.full(20, taken)}), seed=0))
        for taken in (True, False)
    }
    assert_moment(found[True]["W"], np.exp(x))
    assert_moment(found[True]["V"], x)  # a value of the main graph, which is there in any case
    assert found[False]["W"] == calibration.UNREACHED.format(weight="W")


LOOP = """(float[N,6] x) => (float[N,6] y) {
    y = Loop(three, , x) <body = g (int64 i, bool k, float[N,6] s) => (bool k2, float[N,6] r) {
        k2 = Identity(k) t = Tanh(s) r = MatMul(t, W)
    }>
}"""


def test_inputs_of_a_layer_in_a_loop() -> None:
    x = tiny.samples(20)[:, :6]
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\nloop {LOOP}')
    weight = tiny.initializer("W", 6, 6, seed=1)
    proto.graph.initializer.extend([weight, onnx.numpy_helper.from_array(np.array(3), "three")])
    rows = [np.tanh(x)]
    for _ in range(2):
        rows.append(np.tanh(rows[-1] @ onnx.numpy_helper.to_array(weight)))
    assert_moment(collect(proto, x)["W"], np.concatenate(rows))


def test_a_loop_whose_values_grow_gives_none_out() -> None:
    text = LOOP.replace("float[N,6] s) => (bool k2, float[N,6] r)", "float[M,6] s) => (bool k2, float[P,6] r)")
    text = text.replace("r = MatMul(t, W)", "m = MatMul(t, W) r = Concat<axis = 0>(m, m)")
    text = text.replace("float[N,6] y", "float[Q,6] y")
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]>\nloop {text}')
    proto.graph.initializer.extend(
        [tiny.initializer("W", 6, 6, seed=1), onnx.numpy_helper.from_array(np.array(3), "three")]
    )
    assert collect(proto, tiny.samples(20)[:, :6])["W"] == calibration.UNSEEN.format(weight="W")


def test_several_passes_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = tiny.samples(100)
    once = collect(tiny.mlp(), x)
    loaded: list[object] = []
    real = sessions.session
    monkeypatch.setattr(sessions, "session", lambda *a, **k: loaded.append(a) or real(*a, **k))
    monkeypatch.setattr(calibration, "MOMENT_BYTES", 1)
    again = collect(tiny.mlp(), x)
    assert len(loaded) == 1, "the first layer's inputs are the data themselves"
    for name in ("W1", "W2"):
        np.testing.assert_allclose(second_moment(again[name]), second_moment(once[name]), rtol=1e-4, atol=1e-6)


def test_rows_are_limited_and_come_from_many_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MAX_ROWS", 64)
    x = np.repeat(np.random.default_rng(0).standard_normal((320, 1, 6)).astype(np.float32), 50, 1)
    model = one_node([helper.make_node("MatMul", ["x", "W"], ["y"])], "N", 50, 6)
    found = collect(model, x)["W"]
    assert isinstance(found, InputStatistics)
    assert found.rows == 40, "4 rows, a sixteenth, of each of the ten batches"
    assert np.linalg.matrix_rank(found.second_moment) == 6
    few = collect(tiny.mlp(), tiny.samples(200))["W1"]
    assert isinstance(few, InputStatistics)
    assert few.rows == 4 * 7


def test_the_seed_chooses_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MAX_ROWS", 64)
    x = tiny.samples(200)
    first, second, other = (second_moment(collect(tiny.mlp(), x, seed=seed)["W1"]) for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, other)


def test_nan_on_the_way_is_an_error_that_names_the_value() -> None:
    nodes = [helper.make_node("Log", ["x"], ["a"]), helper.make_node("MatMul", ["a", "W"], ["y"])]
    with pytest.raises(DataError, match=r"'a'.*NaN"):
        collect(one_node(nodes, "N", 6), -np.ones((4, 6), np.float32))


def test_compressing_with_data_gives_smaller_errors_than_without() -> None:
    digits = {name: dict(np.load(MODELS / f"digits_{name}.npz")) for name in ("train", "test")}
    config = Config(pq=PQConfig(8), training=TrainingConfig(epochs=0))
    errors = []
    for data in (None, digits["train"]):
        report = onnxpq.compress(
            MODELS / "digits_mlp.onnx", data, test=digits["test"], labels="y", config=config
        ).report
        (error,) = (o.relative_error for o in report.verification.outputs if o.relative_error is not None)
        errors.append(error)
    assert errors[1] < 0.6 * errors[0]


def test_a_layer_whose_inputs_were_not_seen_is_noted() -> None:
    x = tiny.samples(64)
    config = Config(training=TrainingConfig(epochs=0))
    report = onnxpq.compress(unseen(), {"x": x}, test={"x": x[:32]}, config=config).report
    assert calibration.UNSEEN.format(weight="W") in report.notes


def test_what_is_found_does_not_depend_on_what_is_skipped() -> None:
    model, layers = prepare(tiny.mlp())
    data = Dataset({"x": tiny.samples(200)})
    every = dict(calibration.collect(model, layers, data, seed=0))
    (found,) = calibration.collect(model, layers, data, seed=0, skip={"W1"})
    assert found[0] == "W2"
    assert np.array_equal(second_moment(found[1]), second_moment(every["W2"]))


def test_moments_are_let_go_when_they_were_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MOMENT_BYTES", 1)  # a pass per weight
    alive: list[weakref.ref[InputStatistics]] = []
    one_pass = calibration._one_pass

    def recorded(*given: Any) -> dict[tuple[str, ...], InputStatistics]:
        assert all(reference() is None for reference in alive), "moments of the pass before are still there"
        found = one_pass(*given)
        alive.extend(weakref.ref(statistics) for statistics in found.values())
        return found

    monkeypatch.setattr(calibration, "_one_pass", recorded)
    model, layers = prepare(tiny.mlp())
    for _ in calibration.collect(model, layers, Dataset({"x": tiny.samples(9)}), seed=0):
        del _
    assert len(alive) == 2


def test_a_pass_of_which_all_is_skipped_is_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MOMENT_BYTES", 1)  # a pass per weight
    monkeypatch.setattr(calibration, "_one_pass", lambda *_: pytest.fail("it was run"))
    model, layers = prepare(tiny.mlp())
    assert list(calibration.collect(model, layers, Dataset({"x": tiny.samples(9)}), seed=0, skip={"W1", "W2"})) == []


def test_what_was_found_is_kept_for_another_call(monkeypatch: pytest.MonkeyPatch) -> None:
    model, layers = prepare(tiny.mlp())
    data, kept = Dataset({"x": tiny.samples(50)}), calibration.Moments()
    first = dict(calibration.collect(model, layers, data, seed=0, kept=kept))
    monkeypatch.setattr(calibration, "_one_pass", lambda *_: pytest.fail("it was run"))
    for _ in range(2):
        again = dict(calibration.collect(model, layers, data, seed=0, kept=kept))
        for weight, moment in first.items():
            assert np.array_equal(second_moment(again[weight]), second_moment(moment))


def test_only_what_has_room_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    one_pass = calibration._one_pass
    monkeypatch.setattr(calibration, "_one_pass", lambda *given: runs.append(1) or one_pass(*given))
    monkeypatch.setattr(calibration, "MOMENT_BYTES", 1)  # a pass per weight
    model, layers = prepare(tiny.mlp())
    sizes = [8 * layer.in_features**2 for layer in layers]
    monkeypatch.setattr(calibration, "KEPT_BYTES", max(sizes))
    kept = calibration.Moments()
    for _ in range(2):
        dict(calibration.collect(model, layers, Dataset({"x": tiny.samples(9)}), seed=0, kept=kept))
    assert len(runs) == 3, "of the two moments one has room"


def test_large_values_are_computed_for_fewer_samples_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    x = tiny.samples(60)
    sizes: list[int] = []
    run = runtime.run

    def recorded(session: object, inputs: dict[str, NDArray[np.float32]]) -> object:
        sizes.append(len(inputs["x"]))
        return run(session, inputs)

    monkeypatch.setattr(calibration.runtime, "run", recorded)
    a_sample = 4 * (tiny.FEATURES + tiny.HIDDEN)
    monkeypatch.setattr(calibration, "VALUE_BYTES", 5 * a_sample + 1)
    assert_moment(collect(tiny.mlp(), x)["W2"], run_hidden(x))
    assert sizes == [1] + 12 * [5], "one to see how large they are"


@pytest.mark.parametrize(
    ("shapes", "is_large", "batch"),
    [
        ([(1, 8)], False, 32),
        ([(1, 8)], True, 256),
        ([(1, 8), (1, 3, 8)], True, 85),
        ([(1, 100, 8)], True, 32),
        ([(1, 0, 8)], True, 256),
        ([(1, 10**6)], True, 67),
        ([(1, 10**6)], False, 32),
        ([(1, 10**7)], False, 6),
    ],
)
def test_samples_per_run(shapes: Sequence[tuple[int, ...]], is_large: bool, batch: int) -> None:
    # Of broadcast values only the shape takes memory.
    values = [np.broadcast_to(np.float32(0), shape) for shape in shapes]
    assert calibration._batch_size(values, is_large) == batch


def test_a_large_model_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = tiny.samples(300)
    small = collect(tiny.mlp(), x)
    monkeypatch.setattr(files, "LARGE_BYTES", 0)
    large = collect(tiny.mlp(), x)
    for name in ("W1", "W2"):
        np.testing.assert_allclose(second_moment(large[name]), second_moment(small[name]), rtol=1e-4, atol=1e-6)


# What no sample reaches


def filtered(limit: float, size: int = 6) -> onnx.ModelProto:
    """``x [N, size]`` -> V for all rows; and W for those that have a number above a limit."""
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], axes=[1], keepdims=0),
        helper.make_node("Greater", ["m", "limit"], ["g"]),
        helper.make_node("Compress", ["x", "g"], ["c"], axis=0),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MatMul", ["r", "W"], ["y"]),
        helper.make_node("MatMul", ["x", "V"], ["z"]),
    ]
    weights = [tiny.initializer(name, size, 64, seed=1) for name in ("W", "V")]
    weights.append(onnx.numpy_helper.from_array(np.float32(limit), "limit"))
    return tiny.build(nodes, {"x": ["N", size]}, {"y": ["K", 64], "z": ["N", 64]}, weights)


def test_layers_that_no_sample_reaches() -> None:
    x = tiny.samples(200)[:, :6]
    x[-1, 0] = 50
    for limit, expected in ((60.0, {"W"}), (40.0, set())):
        model, layers = prepare(filtered(limit))
        assert calibration.unreached(model, layers, Dataset({"x": x}), seed=0) == expected
    model, layers = prepare(branches())
    for taken in (True, False):
        data = Dataset({"x": x, "c": np.full(200, taken)})
        # That the other branch multiplies a value of the main graph does not tell whether it is run.
        assert calibration.unreached(model, layers, data, seed=0) == (set() if taken else {"W"})


def test_they_are_left_alone() -> None:
    config = Config(min_weights=1, training=TrainingConfig(epochs=0))
    report = onnxpq.compress(filtered(60.0, 64), {"x": tiny.samples(200)}, config=config).report
    assert [layer.weight for layer in report.layers] == ["V"]
    assert [entry.reason for entry in report.skipped if entry.op_type == "MatMul"] == [subject.UNREACHED]
    assert [output.is_empty for output in report.verification.outputs] == [True, False]


@pytest.mark.parametrize("data", [{"x": tiny.samples(200)}, None], ids=["data", "made up"])
def test_an_empty_output_that_counts_proves_nothing(data: dict[str, np.ndarray] | None) -> None:
    config = Config(min_weights=1, output="y", training=TrainingConfig(epochs=0))
    report = onnxpq.compress(filtered(60.0, 64), data, config=config).report
    first = report.to_text().splitlines()[0]
    assert first.startswith("Nothing was proven: ")
    assert first.endswith("output 'y' was empty in all calls, so that nothing was compared.")


def test_a_fixed_batch_counts_each_sample_once_wherever_it_is() -> None:
    nodes = [
        helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["t", "W"], ["y"]),
    ]
    x = np.random.default_rng(0).standard_normal((10, 5, 6)).astype(np.float32)
    assert_moment(collect(one_node(nodes, 4, 5, 6), x)["W"], x)

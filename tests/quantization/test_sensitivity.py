"""Curves and influences against what they stand for."""

import numpy as np
import pytest
import torch
from model_forms import FORMS
from onnx import helper
from tiny_models import FEATURES, HIDDEN, build, initializer, mlp, samples

from onnxpq import rewriting, runtime
from onnxpq.data.datasets import Dataset, first, fixed_batch, input_specs, random_inputs
from onnxpq.graph import files, preparing
from onnxpq.graph.layers import Layer
from onnxpq.graph.normalising import normalise
from onnxpq.network import matrices
from onnxpq.pq.layout import Layout
from onnxpq.pq.statistics import InputStatistics
from onnxpq.quantization import allocation, encoding, sensitivity
from onnxpq.quantization.sensitivity import Curve, Influence

pytestmark = pytest.mark.rounding

OUT, IN = 96, 64


def weight(rows: int = OUT, columns: int = IN) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(3))


def statistics(columns: int = IN) -> InputStatistics:
    found = InputStatistics(columns)
    random = np.random.default_rng(0)
    found.add((random.standard_normal((500, columns)) * np.linspace(0.1, 3, columns)).astype(np.float32), "x")
    return found


LAYOUTS = [Layout(OUT, IN, d, codewords, 1) for codewords in (16, 256) for d in (1, 2, 4, 8, 16)]


@pytest.mark.parametrize("known", [None, statistics()], ids=["weights", "outputs"])
def test_a_curve_falls_with_the_bytes(known: InputStatistics | None) -> None:
    for layouts in (LAYOUTS[:5], LAYOUTS[5:8]):
        errors = sensitivity.measure(weight(), layouts, known, seed=0)
        assert errors == sorted(errors)
        assert 0 <= errors[0] < errors[-1] < 1


def test_a_curve_is_the_error_of_what_comes_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sensitivity, "LEAST_ROWS", OUT)
    known, layout = statistics(), LAYOUTS[2]
    (error,) = sensitivity.measure(weight(), [layout], known, seed=0)
    moment = known.regularized()
    missed = (weight() - sensitivity.approximate(weight(), layout, torch.from_numpy(moment).float(), seed=0)).numpy()
    by_hand = np.trace(missed @ moment @ missed.T) / np.trace(weight().numpy() @ moment @ weight().numpy().T)
    assert error == pytest.approx(by_hand, rel=1e-4)


def test_the_cheap_quantizer_ranks_layouts_as_the_full_one() -> None:
    known = statistics()
    cheap = sensitivity.measure(weight(), LAYOUTS, known, seed=0)
    moment, full = known.regularized(), []
    for layout in LAYOUTS:
        missed = (weight() - encoding.quantize(weight(), layout, seed=0, statistics=known).matrix()).numpy()
        full.append(float(np.trace(missed @ moment @ missed.T)))
    assert np.argsort(cheap).tolist() == np.argsort(full).tolist()


def test_some_rows_of_a_large_weight_stand_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    layouts = [Layout(1024, IN, 4, 16, groups) for groups in (1, 8, 16)]
    monkeypatch.setattr(sensitivity, "ROWS", 1024)
    monkeypatch.setattr(sensitivity, "LEAST_ROWS", 1024)
    whole = sensitivity.measure(weight(1024), layouts, None, seed=0)
    monkeypatch.setattr(sensitivity, "ROWS", 256)
    monkeypatch.setattr(sensitivity, "LEAST_ROWS", 256)
    part = sensitivity.measure(weight(1024), layouts, None, seed=0)
    # With as many codebooks for a fourth of the rows the errors would be up to 10 % too low.
    assert part == pytest.approx(whole, rel=0.05)


def test_lengths_between_those_measured() -> None:
    family = [Layout(OUT, IN, d, 16, 1) for d in range(1, 17)]
    measured = sensitivity.measure(weight(), family, statistics(), seed=0)
    curve = sensitivity.curve(weight(), family, statistics(), seed=0)
    for layout, exact, found in zip(family, measured, curve, strict=True):
        # The sub-vectors of some lengths do not fill a row, which counts against them.
        assert found == pytest.approx(exact, rel=1e-6 if layout.sub_vector in sensitivity.MEASURED else 0.15)
    assert curve == sorted(curve)
    assert sensitivity.curve(weight(), family[4:5], statistics(), seed=0) == pytest.approx(measured[4:5])


def test_a_weight_of_zeros_has_no_error() -> None:
    assert sensitivity.measure(torch.zeros(OUT, IN), LAYOUTS[:2], statistics(), seed=0) == [0.0, 0.0]


def influence_of(model: object, data: Dataset, output: str) -> tuple[Influence, list[Layer], object]:
    loaded = files.load(model)  # type: ignore[arg-type]
    normal = normalise(loaded)
    layers, _ = rewriting.find(loaded)
    return Influence(normal, layers, output, data), layers, normal


def test_the_output_with_one_weight_replaced() -> None:
    x = samples(40)
    probe, layers, normal = influence_of(mlp(), Dataset({"x": x}), "logits")
    assert [layer.weight for layer in layers] == ["W1", "W2"]
    exact = runtime.run(runtime.session(files.load(mlp()), use_library=False), {"x": x})["logits"].astype(float)
    for layer in layers:
        matrix = matrices.weight(normal, layer)  # type: ignore[arg-type]
        assert probe.error(layer, matrix) == 0
        changed = files.load(mlp())
        half = (0.5 * matrix).numpy()
        changed = rewriting.update_initializers(changed, {layer.weight: half})
        found = runtime.run(runtime.session(changed, use_library=False), {"x": x})["logits"]
        expected = np.square(found - exact).sum() / np.square(exact).sum()
        assert probe.error(layer, 0.5 * matrix) == pytest.approx(expected, rel=1e-4)


# The weight is cut out, transposed, stacked, in half precision, in a subgraph, in a fixed batch ...
@pytest.mark.parametrize("name", [name for name, form in FORMS.items() if form.layers])
def test_every_form_of_layer_has_an_influence(name: str) -> None:
    form = FORMS[name]
    model = files.load(form.model())
    if preparing.has_bfloat16(model) and not form.runs:
        model = preparing.widened(model)
    layers, _ = rewriting.find(model, min_weights=1, conv1x1=True, tables=True)
    inputs = input_specs(model)
    data = random_inputs(inputs, 4, 0)
    outputs = runtime.run(runtime.session(model, use_library=False), first(data, fixed_batch(inputs), 4))
    normal = normalise(model)
    probe = Influence(normal, layers, next(iter(outputs)), data)
    changes = []
    for layer in layers:
        matrix = matrices.weight(normal, layer)
        assert probe.error(layer, matrix) == pytest.approx(0, abs=1e-6)
        changes.append(probe.error(layer, torch.zeros_like(matrix)))
    # Of the branches of an If only one is taken.
    assert min(changes) > 0 or (any(layer.place for layer in layers) and max(changes) > 0)


def test_influence_is_per_unit_of_the_layers_error() -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "W1"], ["h"], name="fc", transB=1),
        helper.make_node("Mul", ["h", "tenth"], ["small"], name="scale"),
        helper.make_node("Gemm", ["x", "W2"], ["g"], name="other", transB=1),
        helper.make_node("Add", ["small", "g"], ["y"], name="sum"),
    ]
    weights = [initializer("W1", HIDDEN, FEATURES, seed=0), initializer("W2", HIDDEN, FEATURES, seed=1)]
    weights.append(helper.make_tensor("tenth", 1, [1], [0.1]))
    model = build(nodes, {"x": ["N", FEATURES]}, {"y": ["N", HIDDEN]}, weights)
    known = InputStatistics(FEATURES)
    known.add(samples(500), "x")
    probe, layers, normal = influence_of(model, Dataset({"x": samples(64)}), "y")
    found = {}
    for layer in layers:
        matrix = matrices.weight(normal, layer)  # type: ignore[arg-type]
        (layouts, *_) = allocation.options(layer, 256)
        errors = sensitivity.curve(matrix, layouts, known, seed=0)
        curve = Curve(layer.weight, tuple(layouts), tuple(lay.nbytes for lay in layouts), tuple(errors), 1.0)
        found[layer.weight] = sensitivity.influence(probe, layer, matrix, curve, known)
    # Of the output's energy the first has 1 part in 101, the second 100.
    assert found["W1"] == pytest.approx(1 / 101, rel=0.15)
    assert found["W2"] == pytest.approx(100 / 101, rel=0.15)


def test_costs_are_influence_times_error() -> None:
    curve = Curve("W", (LAYOUTS[0], LAYOUTS[1]), (2, 1), (0.25, 0.5), 3.0)
    assert curve.costs == (0.75, 1.5)


def test_what_the_output_does_not_depend_on_counts_as_usual() -> None:
    curves = [Curve(name, (LAYOUTS[0],), (1,), (0.5,), value) for name, value in (("a", 4.0), ("b", 0.0), ("c", 1.0))]
    assert [curve.influence for curve in sensitivity.filled(curves)] == [4.0, pytest.approx(2.0), 1.0]
    assert sensitivity.filled(curves[1:2])[0].influence == 1.0

"""Influences against what they stand for."""

import math

import numpy as np
import pytest
import torch
from model_forms import FORMS
from onnx import helper, numpy_helper
from tiny_models import FEATURES, HIDDEN, build, initializer, mlp, samples

from onnxpq import rewriting, runtime
from onnxpq.data import Dataset, first, input_specs
from onnxpq.data.datasets import random_inputs
from onnxpq.data.inputs import fixed_batch
from onnxpq.graph import files, preparing
from onnxpq.graph.layers import Layer
from onnxpq.graph.normalising import normalise
from onnxpq.network import matrices
from onnxpq.pq.layout import Layout
from onnxpq.pq.statistics import InputStatistics
from onnxpq.quantization import allocation, sensitivity
from onnxpq.quantization.curves import Weight
from onnxpq.quantization.sensitivity import Curve, Influence

pytestmark = pytest.mark.rounding

OUT, IN = 96, 64
TRUE = 2.0
"""The error of the output is at most this many times the expected one, and at least its inverse."""

LAYOUTS = [Layout(OUT, IN, d, 16, 1) for d in (1, 2)]


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
    layers, _ = rewriting.find(
        model, min_weights=1, conv1x1=True, tables=True, kinds=form.settings.get("only", ("fc",))
    )
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
        own = Weight(matrix, known, seed=0)
        (errors,) = own.curves([layouts])
        found[layer.weight] = sensitivity.influences(probe, layer, own, layouts, errors)
    # Of the output's energy the first has 1 part in 101, the second 100.
    for name, expected in (("W1", 1 / 101), ("W2", 100 / 101)):
        errors = [error for error, _ in found[name]]
        assert errors == sorted(errors)
        assert 2 <= len(errors) <= len(sensitivity.PROBES)
        assert [influence for _, influence in found[name]] == pytest.approx([expected] * len(errors), rel=0.3)


def test_small_errors_that_a_softmax_hides_have_a_smaller_influence() -> None:
    """Samples whose classes are far apart: an error changes the output only once it reaches from one to another."""
    nodes = [
        helper.make_node("Gemm", ["x", "W"], ["h"], name="fc", transB=1),
        helper.make_node("Mul", ["h", "sharp"], ["logits"], name="sharpen"),
        helper.make_node("Softmax", ["logits"], ["y"], name="softmax"),
    ]
    weights = [initializer("W", HIDDEN, FEATURES, seed=0), helper.make_tensor("sharp", 1, [1], [3.0])]
    model = build(nodes, {"x": ["N", FEATURES]}, {"y": ["N", HIDDEN]}, weights)
    many = samples(2000)
    scores = np.sort(many @ numpy_helper.to_array(weights[0]).T, axis=1)
    sure = many[np.argsort(scores[:, -2] - scores[:, -1])[:64]]
    probe, (layer,), normal = influence_of(model, Dataset({"x": sure}), "y")
    matrix = matrices.weight(normal, layer)  # type: ignore[arg-type]
    own, (layouts, *_) = Weight(matrix, seed=0), allocation.options(layer, 256)
    (errors,) = own.curves([layouts])
    influences = sensitivity.influences(probe, layer, own, layouts, errors)
    assert influences[0][1] < influences[-1][1] / 2
    curve = Curve("W", tuple(layouts), tuple(layout.nbytes for layout in layouts), tuple(errors), tuple(influences))
    between = [at for at, error in enumerate(errors) if 0.01 < error < 0.1]
    assert between
    for at in between:
        missed, _ = own.missed(layouts[at])
        ratio = math.sqrt(probe.error(layer, matrix + missed) / curve.costs[at])
        assert 1 / TRUE < ratio < TRUE, (layouts[at], ratio)


def test_costs_are_influence_times_error() -> None:
    curve = Curve("W", (LAYOUTS[0], LAYOUTS[1]), (2, 1), (0.25, 0.5), ((1.0, 3.0),), gain=2.0)
    assert curve.costs == pytest.approx((0.75, 1.5))
    assert curve.final_costs == pytest.approx((0.375, 0.75))
    assert curve.scaled(2.0).costs == pytest.approx((1.5, 3.0))


def test_between_errors_the_influence_is_a_power() -> None:
    errors = (0.001, 0.01, math.sqrt(0.001), 0.1, 0.4)
    curve = Curve("W", tuple(LAYOUTS[:1] * 5), (5, 4, 3, 2, 1), errors, ((0.01, 0.25), (0.1, 1.0)))
    influences = [cost / error for cost, error in zip(curve.costs, errors, strict=True)]
    assert influences == pytest.approx([0.25, 0.25, 0.5, 1.0, 1.0])
    assert Curve("W", (LAYOUTS[0],), (1,), (0.0,)).costs == (0.0,)


def test_no_error_is_for_nothing_because_few_samples_show_none() -> None:
    curve = Curve("W", tuple(LAYOUTS), (2, 1), (0.01, 0.1), ((0.01, 0.0), (0.1, 2.0)))
    assert curve.costs == pytest.approx((0.01 * 2.0 * sensitivity.FAINTEST, 0.2))


def test_what_the_output_does_not_depend_on_counts_as_usual() -> None:
    curves = [
        Curve(name, (LAYOUTS[0],), (1,), (0.5,), ((0.5, value),))
        for name, value in (("a", 4.0), ("b", 0.0), ("c", 1.0))
    ]
    assert [curve.costs[0] for curve in sensitivity.filled(curves)] == pytest.approx([2.0, 1.0, 0.5])
    assert sensitivity.filled(curves[1:2])[0].costs == (0.5,)

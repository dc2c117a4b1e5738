"""Inputs in other units, from other origins: the same function, in whatever form a layer is written."""

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from model_forms import FORMS, Form
from numpy.typing import NDArray

from onnxpq import rewriting, runtime
from onnxpq.graph import files
from onnxpq.graph.layers import Layer
from onnxpq.graph.preparing import prepare
from onnxpq.rewriting import rescaling
from onnxpq.rewriting.rescaling import Group, Scale

SAME_BUDGET, HALF_BUDGET = 2e-6, 2e-3
"""Relative difference between a model and the same one in other units; and where it computes in float16."""

COMPRESSED = [name for name, form in FORMS.items() if form.layers and form.runs and "Gather" not in form.text]


def scale_of(group: Group, seed: int = 0) -> Scale:
    """Units over three decades, and origins of about a unit."""
    rng, size = np.random.default_rng(seed), group[0].layer.in_features
    scale = Scale.by(2.0 ** rng.integers(-5, 5, size), group[0].dtype)
    if all(place.can_be_centred for place in group):
        scale = replace(scale, origin=Scale.at(rng.standard_normal(size), np.full(size, 0.1)).origin)
    return scale


def layers_of(form: Form) -> tuple[ir.Model, list[Layer]]:
    model = prepare(files.load(form.model()))
    settings: dict[str, Any] = {key: value for key, value in form.settings.items() if key in ("conv1x1", "tables")}
    return model, rewriting.find(model, **settings)[0]


def outputs(model: ir.Model | onnx.ModelProto, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return runtime.run(runtime.session(model, use_library=False), inputs)


@pytest.mark.parametrize("name", COMPRESSED)
def test_the_function_stays(name: str) -> None:
    form = FORMS[name]
    model, layers = layers_of(form)
    groups = rescaling.groups(model, layers)
    assert [place.layer for group in groups for place in group]
    changed = rescaling.rescaled(model, [(group, scale_of(group)) for group in groups])
    inputs = form.inputs(seed=1)
    expected, found = outputs(model, inputs), outputs(changed, inputs)
    budget = HALF_BUDGET if "float16" in name else SAME_BUDGET
    for key, value in expected.items():
        missed = np.linalg.norm(found[key].astype(np.float64) - value)
        assert missed <= budget * np.linalg.norm(value.astype(np.float64)), key
    onnx.checker.check_model(ir.to_proto(changed), full_check=True)
    again, _ = rewriting.find(changed, conv1x1=True)
    assert [(layer.node, layer.out_features, layer.in_features) for layer in again] == [
        (layer.node, layer.out_features, layer.in_features) for layer in layers
    ]

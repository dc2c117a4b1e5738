from dataclasses import replace

import numpy as np
from tiny_models import CLASSES, FEATURES, HIDDEN, mlp, samples

from onnxpq import rewriting
from onnxpq.data import Dataset, input_specs
from onnxpq.data.sampling import Evidence
from onnxpq.graph import Forms, files
from onnxpq.quantization.subject import Subject
from onnxpq.verification import Kind


def subject(source: files.Source) -> Subject:
    model = files.load(source)
    layers, skipped = rewriting.find(model)
    evidence = Evidence(Dataset({"x": samples()}), "", True)
    return Subject(
        Forms(source, model, model, model, model, (), file_runs=True),
        layers,
        skipped,
        input_specs(model),
        None,
        evidence,
        "logits",
        np.zeros((1, CLASSES)),
        {"logits": Kind.CLASSES},
        {},
    )


def test_a_weight_that_layers_share_counts_once() -> None:
    found = subject(mlp())
    assert found.layers_before == 4 * (HIDDEN * FEATURES + CLASSES * HIDDEN)
    assert replace(found, layers=[*found.layers, found.layers[0]]).layers_before == found.layers_before

"""Gradients on an accelerator, of which there need be none: torch's device "meta" stands for it.

Its tensors have a shape and a type but no values, and refuse to be computed with tensors of the CPU, as those of a GPU
do. So this shows that a training step leaves nothing on the CPU, not that its numbers are right.
"""

import copy

import numpy as np
import pytest
import torch
from test_finetuning import LAYERS, data, network, start
from test_lookups import LENGTH, linear_model, part_behind_the_table

from onnxpq import device, lookups, objectives
from onnxpq import student as student_module
from onnxpq.config import DEFAULT_ALPHA, TrainingConfig
from onnxpq.data import Dataset
from onnxpq.finetuning import REGULARIZED, TUNED, Problem, Samples, _Trainer
from onnxpq.network import Network
from onnxpq.pq import kmeans
from onnxpq.schedule import Schedule
from onnxpq.student import Student

__all__ = ["data", "network"]  # fixtures


def test_it_is_the_cpu_where_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.best() == torch.device("cpu")
    assert device.describe().startswith("CPU with ")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    assert device.best() == torch.device("cuda")
    assert device.describe() == "A GPU"


@pytest.mark.parametrize("phase", [REGULARIZED, TUNED])
@pytest.mark.parametrize("regularizer", [name for name in DEFAULT_ALPHA if name != "none"])
def test_a_training_step_happens_on_one_device(
    network: Network, data: tuple[Samples, Samples], monkeypatch: pytest.MonkeyPatch, phase: str, regularizer: str
) -> None:
    meta = torch.device("meta")
    elsewhere = copy.deepcopy(network).to(meta)
    quantized = start(network)
    monkeypatch.setattr(device, "best", lambda: meta)
    monkeypatch.setitem(kmeans._CHUNK_ELEMENTS, "meta", 2**20)
    settings = TrainingConfig(regularizer=regularizer)
    problem = Problem(elsewhere, LAYERS, "scores")
    with monkeypatch.context() as patch:  # the one number that is looked at, which the stand-in does not have
        patch.setattr(student_module, "codebook_term", lambda *_: torch.ones(()))
        student = Student(elsewhere, LAYERS, quantized, ())
    trainer = _Trainer(problem, student, objectives.choose(settings, data[0].teacher, data[0].labels), settings, 0)
    batch = data[0].batch(np.arange(32))
    trainer.schedule = Schedule(batch=32, steps=2, round=1, regularized=1)
    student.reassign(0)
    loss, task = trainer.loss(batch, phase, features=1.0)
    loss = loss + sum(student.terms(regularizer))
    loss.backward()
    trainer.stored.step()
    trainer.latent.step()
    made = [task, batch.teacher, loss, *batch.inputs.values(), *student.stored(), *student.latent.values()]
    made += [part.codes for part in student.quantized.values()]
    assert {tensor.device.type for tensor in made} == {"meta"}
    assert all(value.grad is not None for value in student.stored())


def test_the_gradients_of_a_table_are_computed_on_one_device(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.zeros((8, LENGTH), np.int64)
    part = part_behind_the_table(linear_model(), ids)
    monkeypatch.setattr(device, "best", lambda: torch.device("meta"))
    found: list[torch.Tensor] = []
    # What is added up comes back to the CPU, which the stand-in cannot.
    monkeypatch.setattr(lookups, "_add", lambda *parts: found.append(parts[-1]))
    lookups._moments(part, "y", Dataset({"ids": ids}), 0)
    assert [(gradient.device.type, gradient.shape) for gradient in found] == [("meta", (40, 48))]


def test_a_tensor_left_behind_is_noticed() -> None:
    """The stand-in can fail: it refuses what a GPU refuses."""
    with pytest.raises(RuntimeError, match="not on the expected device meta"):
        _ = torch.ones(3, device="meta") + torch.ones(3)

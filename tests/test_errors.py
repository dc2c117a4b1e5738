"""Every class of error has a trigger here, and its sentence says what, where, found, expected and what to do."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper
from tiny_models import FEATURES, HIDDEN, build, initializer, mlp, samples

import onnxpq
from onnxpq import errors, runtime
from onnxpq.config.settings import Config, PQConfig, TrainingConfig
from onnxpq.data import Alignment
from onnxpq.data.datasets import Dataset
from onnxpq.data.inputs import InputSpec
from onnxpq.data.reading import Reading, load
from onnxpq.errors import OnnxpqError
from onnxpq.graph import files
from onnxpq.graph.normalising import normalise
from onnxpq.network import importing, partition
from onnxpq.runtime import activations
from onnxpq.verification import floor, proof

X = InputSpec("x", np.dtype(np.float32), (None, FEATURES))


def no_model(scratch: Path) -> None:
    (scratch / "m.onnx").write_bytes(b"hello")
    files.load(scratch / "m.onnx")


def no_input(scratch: Path) -> None:
    load({"z": samples()}, Reading([X]))


def no_rows(scratch: Path) -> None:
    nodes = [
        helper.make_node("ReduceSum", ["x"], ["s"], name="sum", keepdims=0),
        helper.make_node("Identity", ["s"], ["y"], name="out"),
    ]
    model = normalise(files.load(build(nodes, {"x": ["N", 4]}, {"y": []}, [])))
    activations.capture(model, ["s"], Dataset({"x": samples()[:, :4]}), cache_dir=None)


def no_such_number(scratch: Path) -> None:
    PQConfig(codewords=0)


def no_folder(scratch: Path) -> None:
    files.check_output_path(scratch / "missing" / "o.onnx")


def no_layer(scratch: Path) -> None:
    nodes = [helper.make_node("Conv", ["x", "K"], ["y"], name="conv")]
    weights = [initializer("K", 64, 8, 3, 3, seed=0)]
    onnxpq.compress(build(nodes, {"x": ["N", 8, 9, 9]}, {"y": ["N", 64, 7, 7]}, weights))


def no_handler(scratch: Path) -> None:
    importing.import_model(ir.from_proto(mlp(activation="Trilu", domain="com.microsoft")))


def another_network(scratch: Path) -> None:
    network = importing.import_model(files.load(mlp(seed=0)))
    importing.check_forward(network, files.load(mlp(seed=9)), {"x": samples(4)})


def no_output_to_train(scratch: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "W1", "b1"], ["h"], name="fc1", transB=1),
        helper.make_node("ArgMax", ["h"], ["label"], name="top", axis=1),
    ]
    weights = [initializer("W1", HIDDEN, FEATURES, seed=0), initializer("b1", HIDDEN, seed=1)]
    model = build(nodes, {"x": ["N", FEATURES]}, {"label": ["N", 1]}, weights, output_types={"label": 7})
    partition.cut(normalise(files.load(model)), ["W1"])


def not_smaller(scratch: Path) -> None:
    (scratch / "m.onnx").write_bytes(mlp().SerializeToString())
    path = scratch / "m.onnx"
    proof.verify(
        path,
        path,
        Dataset({"x": samples()}),
        [X],
        output="logits",
        aligned=Alignment(),
        description="",
        held_out=True,
        file_bytes=(7, 7),
    )


def lost(_: Path) -> None:
    config = Config(pq=PQConfig(16, 2), training=TrainingConfig(epochs=0), min_weights=1)
    floor.above_floor(onnxpq.compress(mlp(), {"x": samples(400)}, config=config))


def no_work_folder(scratch: Path) -> None:
    onnxpq.compress(mlp(), restart=True)


def out_of_reach(scratch: Path) -> None:
    onnxpq.compress(mlp(), config=onnxpq.Config(target=onnxpq.TargetConfig(ratio=1000)))


def no_library(scratch: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnxpq, "__path__", [str(scratch)])
        runtime.library_path()


TRIGGERS: dict[type[OnnxpqError], tuple[Callable[[Path], None], str]] = {
    errors.ModelError: (no_model, r"^'.*m\.onnx' is not an ONNX model: 5 bytes that are no protobuf of one\.$"),
    errors.DataError: (
        no_input,
        r"^data lacks the model's input 'x' \(float32 \[N, 64\]\); found the keys 'z'\.$",
    ),
    errors.UnalignedError: (
        no_rows,
        r"^Value 's' has no dimension whose size is that of the batch, .* without data",
    ),
    errors.ConfigError: (
        no_such_number,
        r"^The 'codewords' parameter of PQConfig must be an integer in \[2, 256\]\. Got 0 instead\.$",
    ),
    errors.OutputError: (
        no_folder,
        r"^Cannot write '.*o\.onnx': the folder '.*missing' does not exist\. Create it first\.$",
    ),
    errors.NothingToCompressError: (
        no_layer,
        r"^The model has no fully-connected layer that can be compressed\.\n  conv \(Conv\): It is a "
        r"convolution\. --only conv takes it\.$",
    ),
    errors.UnsupportedOperatorError: (
        no_handler,
        r"(?s)'act'.*com\.microsoft::Trilu version 1 .*cannot train through.*register_op.*compress without data",
    ),
    errors.ForwardMismatchError: (
        another_network,
        r"^Node 'fc1' \(Gemm\) computes 'h' in torch with a relative L2 difference of [\d.]+ to onnxruntime, more than "
        r"0\.001\. Found .* in element \d+ of shape \[4, 128\], expected .*\. Please report",
    ),
    errors.TrainingError: (
        no_output_to_train,
        r"^No floating-point output of the model depends on the weights to train\. Its outputs are label\.",
    ),
    errors.VerificationError: (
        not_smaller,
        r"^The compressed file would have 7 bytes, the original has 7: .*; try a larger --sub-vector\.$",
    ),
    errors.WorkspaceError: (
        no_work_folder,
        r"^A restart deletes what is in a work folder, and none was given\. Add --work-dir\.$",
    ),
    errors.TargetError: (
        out_of_reach,
        r"^Out of reach: a file at least 1000 times smaller\. With the smallest codes for every layer the file has "
        r"[\d,]+ bytes, [\d.]+ times smaller, of which [\d,]+ are all that is not a compressed layer\. Ask for less",
    ),
    errors.FloorError: (
        lost,
        r"^The result is too far from the original: .*output 'logits' .*; --floor sets how much may be lost",
    ),
    errors.RuntimeLibraryError: (
        no_library,
        r"^This installation of onnxpq has no operator library \(looked for .* in .*\): .* Install a compiler and run",
    ),
}


def subclasses(kind: type) -> set[type]:
    return {found for child in kind.__subclasses__() for found in ({child} | subclasses(child))}


def test_every_class_has_a_trigger() -> None:
    # What is never raised itself has the two below it.
    assert subclasses(OnnxpqError) - {errors.MissedError} == TRIGGERS.keys()
    assert all(kind.__module__ == errors.__name__ and kind.__doc__ for kind in TRIGGERS)


@pytest.mark.parametrize("kind", TRIGGERS, ids=lambda kind: kind.__name__)
def test_trigger(kind: type[OnnxpqError], tmp_path: Path) -> None:
    trigger, sentence = TRIGGERS[kind]
    with pytest.raises(OnnxpqError, match=sentence) as caught:
        trigger(tmp_path)
    assert caught.type is kind

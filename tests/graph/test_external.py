"""Where external data may lie: what onnxruntime takes is taken, and nothing outside of the model's folder is read."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import tiny_models as tiny

import onnxpq
from onnxpq.errors import ModelError
from onnxpq.graph import files

DATA = "model.onnx_data"


def saved(folder: Path, location: str = DATA) -> Path:
    """A model and its data in a folder, the data then being said to lie at `location`."""
    folder.mkdir(parents=True)
    path = folder / "model.onnx"
    onnx.save(tiny.mlp(), path, save_as_external_data=True, location=DATA, size_threshold=0)
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            entry.value = location if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    return path


def hugging_face_cache(folder: Path) -> Path:
    saved(folder / "made")
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "revision"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for name in ("model.onnx", DATA):
        (folder / "made" / name).rename(blobs / f"hash of {name}")
        (snapshot / name).symlink_to(Path("../../blobs") / f"hash of {name}")
    return snapshot / "model.onnx"


def link_inside(folder: Path) -> Path:
    path = saved(folder / "m")
    (folder / "m" / DATA).rename(folder / "m" / "weights")
    (folder / "m" / DATA).symlink_to("weights")
    return path


def hard_link(folder: Path) -> Path:
    path = saved(folder / "m")
    (folder / "again").hardlink_to(folder / "m" / DATA)
    return path


def linked_folder(folder: Path) -> Path:
    saved(folder / "m")
    (folder / "link").symlink_to("m")
    return folder / "link" / "model.onnx"


def roundabout(folder: Path) -> Path:
    path = saved(folder / "m", f"sub/../{DATA}")
    (folder / "m" / "sub").mkdir()
    return path


def sub_folder(folder: Path) -> Path:
    path = saved(folder / "m", f"sub/{DATA}")
    (folder / "m" / "sub").mkdir()
    (folder / "m" / DATA).rename(folder / "m" / "sub" / DATA)
    return path


def in_the_folder_of_the_blob(folder: Path) -> Path:
    """The model is a link; its data are named by the way to the blobs."""
    path = saved(folder / "blobs", f"../blobs/{DATA}")
    (folder / "snapshot").mkdir()
    (folder / "snapshot" / "model.onnx").symlink_to(path)
    return folder / "snapshot" / "model.onnx"


TAKEN = [
    hugging_face_cache,
    link_inside,
    hard_link,
    linked_folder,
    roundabout,
    sub_folder,
    in_the_folder_of_the_blob,
]


def absolute(folder: Path) -> Path:
    return saved(folder / "m", str(folder / "m" / DATA))


def above(folder: Path) -> Path:
    path = saved(folder / "m", f"../{DATA}")
    (folder / "m" / DATA).rename(folder / DATA)
    return path


def link_out(folder: Path) -> Path:
    path = saved(folder / "m")
    (folder / "m" / DATA).rename(folder / "elsewhere")
    (folder / "m" / DATA).symlink_to(folder / "elsewhere")
    return path


def linked_folder_out(folder: Path) -> Path:
    path = saved(folder / "m", f"sub/{DATA}")
    (folder / "other").mkdir()
    (folder / "m" / DATA).rename(folder / "other" / DATA)
    (folder / "m" / "sub").symlink_to(folder / "other")
    return path


def beside_the_other_end(folder: Path) -> Path:
    """The model is a link to another folder, and its data a link to a third one."""
    saved(folder / "blobs")
    (folder / "m").mkdir()
    (folder / "m" / "model.onnx").symlink_to(folder / "blobs" / "model.onnx")
    (folder / "blobs" / DATA).rename(folder / "elsewhere")
    (folder / "m" / DATA).symlink_to(folder / "elsewhere")
    return folder / "m" / "model.onnx"


REFUSED = [absolute, above, link_out, linked_folder_out, beside_the_other_end]


def runs(path: Path) -> bool:
    try:
        onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    except onnxruntime.capi.onnxruntime_pybind11_state.Fail:
        return False
    return True


@pytest.mark.parametrize("make", TAKEN, ids=lambda make: make.__name__)
def test_what_onnxruntime_takes(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    assert runs(path)
    model = files.load(path)
    for tensor in tiny.mlp().graph.initializer:
        found = model.graph.initializers[tensor.name].const_value
        assert isinstance(found, ir.ExternalTensor), "it stays in its file"
        np.testing.assert_array_equal(found.numpy(), onnx.numpy_helper.to_array(tensor))
    report = onnxpq.compress(path).report
    assert report.verification.bytes_before == path.stat().st_size + 38_440
    assert report.ratio > 1


@pytest.mark.parametrize("make", REFUSED, ids=lambda make: make.__name__)
def test_what_onnxruntime_refuses(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    assert not runs(path)
    for read in (files.load, files.file_bytes):
        with pytest.raises(
            ModelError, match=r"The tensor 'W1' has its external data in .* lies outside of the model's"
        ):
            read(path)


def test_a_model_in_memory_may_have_hard_linked_data(tmp_path: Path) -> None:
    model = files.load(ir.load(hard_link(tmp_path)))
    assert model.graph.initializers["W1"].const_value.numpy().shape == (tiny.HIDDEN, tiny.FEATURES)
    with pytest.raises(ModelError, match="lies outside"):
        files.load(ir.load(link_out(tmp_path / "other")))


def test_a_name_with_a_zero_byte(tmp_path: Path) -> None:
    path = saved(tmp_path / "m")
    path.write_bytes(path.read_bytes().replace(DATA.encode(), b"\0" + DATA.encode()[1:]))
    with pytest.raises(ModelError):
        files.load(path)


def test_data_that_the_rewriting_leaves_nothing_of_get_no_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "m")
    small = onnxpq.Config(min_weights=1, pq=onnxpq.PQConfig(sub_vector=8, codewords=4))
    onnxpq.compress(path, config=small).save(tmp_path / "out.onnx")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m", "out.onnx"]

import os
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import numpy_helper
from skl2onnx import to_onnx
from sklearn.neural_network import MLPClassifier

from onnxpq import rewriting
from onnxpq.errors import ModelError, OutputError
from onnxpq.graph import files, opset, opsets, protobuf


def proto(opset: int = 17, ir_version: int = 8, weight: np.ndarray | None = None) -> onnx.ModelProto:
    text = f"""<ir_version: {ir_version}, opset_import: ["" : {opset}]>
    main (float[N,64] x) => (float[N,32] y) {{ h = MatMul(x, w) [add] y = Add(h, b) }}"""
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(0)
    w = rng.standard_normal((64, 32)).astype(np.float32) if weight is None else weight
    model.graph.initializer.extend(
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.ones(32, np.float32), "b")]
    )
    return model


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(proto(), path)
    return path


@pytest.fixture
def external_file(tmp_path: Path) -> Path:
    path = tmp_path / "external.onnx"
    onnx.save(proto(), path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    return path


def run(path: Path | bytes) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.ones((1, 64), np.float32)})[0]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


class TestLoad:
    def test_every_kind_of_source_gives_the_same_model(self, model_file: Path):
        path_model = files.load(model_file)
        expected = files.to_bytes(path_model)
        for source in (str(model_file), model_file.read_bytes(), proto(), path_model):
            assert files.to_bytes(files.load(source)) == expected

    def test_the_source_is_not_changed(self):
        source = proto()
        before = source.SerializeToString()
        model = files.load(source)
        model.graph.node("add").name = "renamed"
        model.graph.initializers["b"].const_value = ir.tensor(np.zeros(32, np.float32))
        again = files.load(model)
        again.graph.node("renamed").name = "twice"
        assert source.SerializeToString() == before
        assert model.graph.node("renamed").name == "renamed"

    def test_external_data_stays_on_disk(self, external_file: Path):
        model = files.load(external_file)
        assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)
        np.testing.assert_array_equal(model.graph.initializers["b"].const_value.numpy(), np.ones(32))

    def test_external_data_is_found_beside_the_model_whatever_the_working_directory(self, external_file, monkeypatch):
        monkeypatch.chdir(external_file.parent)
        files.load(external_file.name)
        monkeypatch.chdir("/")
        files.load(external_file)

    @pytest.mark.parametrize("version", [7, 8])
    def test_old_opsets_are_raised(self, version, tmp_path: Path):
        path = tmp_path / "old.onnx"
        old = proto(version, ir_version=4)
        old.metadata_props.add(key="mean", value="0.5")
        onnx.save(old, path)
        model = files.load(path)
        assert opset(model) == 13
        assert model.metadata_props == {"mean": "0.5"}
        assert [node.name for node in model.graph] == ["", "add"]
        np.testing.assert_allclose(run(files.to_bytes(model)), run(path.read_bytes()), rtol=1e-6)

    def test_old_opset_with_external_data(self, tmp_path: Path):
        path = tmp_path / "old.onnx"
        onnx.save(proto(8, ir_version=4), path, save_as_external_data=True, location="w.bin", size_threshold=0)
        assert opset(files.load(path)) == 13

    def test_an_old_opset_that_cannot_be_raised(self):
        text = """<ir_version: 4, opset_import: ["" : 8]>
        main (float[1,3,4,4] x) => (float[1,3,8,8] y) { [up] y = Upsample(x) }"""
        old = onnx.parser.parse_model(text)
        with pytest.raises(ModelError, match=r"opset 8; onnxpq needs 9 or newer.*Export it again with a newer opset"):
            opsets.raised(old, 8, "'old.onnx'")

    def test_map_types_survive(self, tmp_path: Path):
        x = np.random.default_rng(0).standard_normal((30, 4)).astype(np.float32)
        classifier = MLPClassifier((8,), max_iter=500, tol=1.0, random_state=0).fit(x, np.arange(30) % 3)
        source = to_onnx(classifier, x[:1])
        files.save(files.load(files.load(source)), tmp_path / "copy.onnx")
        saved = onnx.load(tmp_path / "copy.onnx")
        assert saved.graph.output == source.graph.output
        assert saved.graph.output[1].type.sequence_type.elem_type.HasField("map_type")
        onnx.checker.check_model(saved, full_check=True)

    def test_infinity_is_a_mask_unless_it_is_a_weight(self):
        masked = onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["" : 17]> main (float[N,2] x) => (float[N,2] y) { y = Add(x, mask) }"""
        )
        masked.graph.initializer.append(numpy_helper.from_array(np.array([0, -np.inf], np.float32), "mask"))
        files.load(masked)


def spoiled(value: float) -> np.ndarray:
    weight = np.ones((64, 32), np.float32)
    weight[3, 4] = value
    return weight


class TestBadInput:
    @pytest.mark.parametrize(
        ("content", "sentence"),
        [
            (b"", r"'.*bad.onnx' is empty \(0 bytes\); expected an ONNX model"),
            (b"hello world, this is text", r"'.*bad.onnx' is not an ONNX model"),
            (b"\x00" * 64, r"'.*bad.onnx' is not an ONNX model"),
            (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", r"not an ONNX model but a Git LFS pointer"),
            (b"PK\x03\x04rest of a checkpoint", r"not an ONNX model but a zip archive"),
            (b"\x89HDF\r\n\x1a\n", r"not an ONNX model but an HDF5 file"),
            (b"\x28\x00\x00\x00ORTM\x00\x00", r"onnxruntime's own .ort format"),
            (onnx.TensorProto(name="t", data_type=1).SerializeToString(), r"'.*bad.onnx' is not a"),
        ],
    )
    def test_what_is_no_model(self, tmp_path: Path, content, sentence):
        path = tmp_path / "bad.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelError, match=sentence):
            files.load(path)

    @pytest.mark.parametrize("keep", [0.999, 0.9, 0.5, 0.01])
    def test_a_truncated_file(self, model_file: Path, keep):
        content = model_file.read_bytes()
        model_file.write_bytes(content[: int(len(content) * keep)])
        with pytest.raises(ModelError, match=r"'.*model.onnx' is damaged or truncated.*Download or copy it again"):
            files.load(model_file)

    def test_every_truncation_is_a_named_error(self):
        content = proto(weight=np.ones((64, 32), np.float32)).SerializeToString()
        for size in (*range(1, 60), *range(60, len(content), 211), len(content) - 1):
            with pytest.raises(ModelError):
                files.load(content[:size])

    def test_missing_and_folder(self, tmp_path: Path):
        with pytest.raises(ModelError, match=r"'.*none.onnx' does not exist. Check the path."):
            files.load(tmp_path / "none.onnx")
        with pytest.raises(ModelError, match=r"is a folder; expected an ONNX file"):
            files.load(tmp_path)

    def test_unreadable(self, model_file: Path, monkeypatch):
        def refuse(*_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("builtins.open", refuse)
        with pytest.raises(ModelError, match=r"cannot be read: Permission denied. Check its permissions."):
            files.load(model_file)

    def test_missing_external_data(self, external_file: Path):
        (external_file.parent / "weights.bin").unlink()
        with pytest.raises(
            ModelError, match=r"the tensor 'w' in the external data file '.*weights.bin', which does not"
        ):
            files.load(external_file)

    def test_external_data_of_bytes(self, external_file: Path):
        with pytest.raises(ModelError, match=r"'.*weights.bin', which does not exist.*pass the model by its path"):
            files.load(external_file.read_bytes())

    def test_short_external_data(self, external_file: Path):
        data = external_file.parent / "weights.bin"
        data.write_bytes(data.read_bytes()[:1000])
        with pytest.raises(ModelError, match=r"too short for the tensor 'w': found 1000 bytes, expected 8192 or more"):
            files.load(external_file)

    def test_external_data_outside_the_folder(self, external_file: Path, tmp_path: Path):
        inner = tmp_path / "inner"
        inner.mkdir()
        model = onnx.load(external_file, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                entry.value = "../weights.bin" if entry.key == "location" else entry.value
        (inner / "escape.onnx").write_bytes(model.SerializeToString())
        with pytest.raises(ModelError, match=r"'w' has its external data in '../weights.bin', .* lies outside"):
            files.load(inner / "escape.onnx")

    def test_what_the_checker_refuses(self):
        bad = proto()
        bad.graph.node[0].input[1] = "nowhere"
        with pytest.raises(ModelError, match=r"is not a valid ONNX model. The checker of onnx .* says: .*nowhere"):
            files.load(bad)
        twice = proto()
        twice.graph.node.append(twice.graph.node[0])
        with pytest.raises(ModelError, match=r"is not a valid ONNX model"):
            files.load(twice)
        unsorted = files.load(proto())
        unsorted.graph.node("add").name = ""
        unsorted.graph.outputs.append(
            ir.Value(name="ghost", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([1]))
        )
        with pytest.raises(ModelError, match="ghost"):
            files.load(unsorted)

    def test_names_that_are_no_text(self):
        content = proto().SerializeToString().replace(b"add", b"a\xffd")
        with pytest.raises(ModelError, match=r"is damaged: the name b'a.*d' is no text. Export or copy it again"):
            files.load(content)

    def test_data_of_the_wrong_size(self):
        bad = proto()
        bad.graph.initializer[0].raw_data = b"\x00" * 12
        with pytest.raises(ModelError, match=r"tensor name: w.*8192 bytes required"):
            files.load(bad)

    @pytest.mark.parametrize(
        ("value", "sentence"),
        [
            (np.nan, r"The initializer 'w' has 1 NaN and 0 infinite values of 2048; expected finite numbers"),
            (np.inf, r"The initializer 'w' has 0 NaN and 1 infinite values of 2048"),
        ],
    )
    def test_weights_that_are_not_finite(self, value, sentence):
        with pytest.raises(ModelError, match=sentence):
            files.load(proto(weight=spoiled(value)))

    def test_opset_of_a_domain_that_is_not_imported(self):
        model = files.load(proto(opset=15))
        assert opset(model) == opset(model, "ai.onnx") == 15
        with pytest.raises(ModelError, match=r"does not import the operator set 'ai.onnx.ml'. It imports: '' 15."):
            opset(model, "ai.onnx.ml")


class TestSave:
    def test_round_trip(self, model_file: Path, tmp_path: Path):
        target = tmp_path / "out.onnx"
        files.save(files.load(model_file), target)
        assert names(tmp_path) == ["model.onnx", "out.onnx"]
        np.testing.assert_array_equal(run(target), run(model_file))
        assert files.file_bytes(target) == target.stat().st_size

    def test_an_existing_file_is_replaced(self, tmp_path: Path):
        target = tmp_path / "out.onnx"
        target.write_text("old")
        files.save(files.load(proto()), target)
        files.load(target)

    def test_relative_paths(self, tmp_path: Path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        files.save(files.load(proto()), "out.onnx", external_data=True)
        assert names(tmp_path) == ["out.onnx", "out.onnx.data"]
        files.load("out.onnx")

    def test_external_data_follows_the_source(self, external_file: Path, tmp_path: Path):
        target = tmp_path / "out.onnx"
        model = files.load(external_file)
        files.save(model.clone(), target)
        assert names(tmp_path) == ["external.onnx", "out.onnx", "out.onnx.data", "weights.bin"]
        np.testing.assert_array_equal(run(target), run(external_file))
        assert files.file_bytes(target) == target.stat().st_size + (tmp_path / "out.onnx.data").stat().st_size
        assert isinstance(model.graph.initializers["w"].const_value, ir.ExternalTensor)
        files.save(model, tmp_path / "single.onnx", external_data=False)
        (tmp_path / "weights.bin").unlink()
        np.testing.assert_array_equal(run(tmp_path / "single.onnx"), run(target))

    def test_small_tensors_that_somebody_looks_at_are_written_too(self, external_file: Path, tmp_path: Path):
        """onnx_ir closes the file that a small tensor is mapped from, which fails while an array of it is in use."""
        model = files.load(external_file)
        held = [
            value.const_value.numpy() for value in model.graph.initializers.values() if value.const_value.nbytes < 1024
        ]
        assert held
        target = tmp_path / "out.onnx"
        files.save(model, target)
        np.testing.assert_array_equal(run(target), run(external_file))
        assert all(np.isfinite(array).all() for array in held)

    def test_large_models_get_external_data(self, tmp_path: Path, monkeypatch):
        monkeypatch.setattr(files, "MAX_EMBEDDED_BYTES", 5000)
        model = files.load(proto())
        files.save(model, tmp_path / "out.onnx")
        assert names(tmp_path) == ["out.onnx", "out.onnx.data"]
        with pytest.raises(ModelError, match="8320 bytes of tensors; one ONNX protobuf is written up to 5000 bytes"):
            files.to_bytes(model)

    def test_external_data_of_constant_nodes_is_taken_along(self, tmp_path: Path):
        text = """<ir_version: 8, opset_import: ["" : 17]>
        main (float[N,4] x) => (float[N,4] y) { c = Constant<value = float[1] {1.0}>() y = Add(x, c) }"""
        model = onnx.parser.parse_model(text)
        tensor = numpy_helper.from_array(np.arange(4, dtype=np.float32), "c")
        model.graph.node[0].attribute[0].t.CopyFrom(tensor)
        path = tmp_path / "model.onnx"
        onnx.save(model, path, save_as_external_data=True, location="c.bin", size_threshold=0, convert_attribute=True)
        assert (tmp_path / "c.bin").exists()
        loaded = files.load(path)
        files.save(loaded, tmp_path / "out.onnx")
        (tmp_path / "c.bin").unlink()
        assert files.load(tmp_path / "out.onnx").graph.num_nodes() == 2

    def test_a_failure_leaves_nothing_behind(self, model_file: Path, tmp_path: Path, monkeypatch):
        target = tmp_path / "out.onnx"
        target.write_text("old")

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(OutputError, match=r"Cannot write '.*out.onnx': .*No space left on device"):
            files.save(files.load(model_file), target)
        assert names(tmp_path) == ["model.onnx", "out.onnx"]
        assert target.read_text() == "old"

    def test_files_that_the_model_reads_are_not_overwritten(self, external_file: Path):
        model = files.load(external_file)
        with pytest.raises(OutputError, match=r"would overwrite '.*weights.bin', a file of the input model"):
            files.save(model, external_file.parent / "weights.bin")


def test_write_text(tmp_path: Path):
    files.write_text(tmp_path / "report.json", "\u00e9")
    assert names(tmp_path) == ["report.json"]
    assert (tmp_path / "report.json").read_bytes() == b"\xc3\xa9"
    with pytest.raises(OutputError, match="does not exist"):
        files.write_text(tmp_path / "none" / "report.json", "")


class TestCheckOutputPath:
    def test_fine(self, model_file: Path, tmp_path: Path):
        files.check_output_path(tmp_path / "out.onnx", model_file)
        assert names(tmp_path) == ["model.onnx"]

    def test_the_input_itself_by_another_name(self, model_file: Path, tmp_path: Path):
        link = tmp_path / "link.onnx"
        link.symlink_to(model_file)
        for path in (model_file, link, tmp_path / "." / "model.onnx"):
            with pytest.raises(OutputError, match=r"would overwrite '.*model.onnx', a file of the input model"):
                files.check_output_path(path, model_file)

    def test_the_external_data_of_the_input(self, external_file: Path):
        (external_file.parent / "weights.bin").rename(external_file.parent / "out.onnx.data")
        model = onnx.load(external_file, load_external_data=False)
        for tensor in model.graph.initializer:
            tensor.external_data[0].value = "out.onnx.data"
        external_file.write_bytes(model.SerializeToString())
        for source in (external_file, files.load(external_file)):
            with pytest.raises(OutputError, match=r"would overwrite '.*out.onnx.data'"):
                files.check_output_path(external_file.parent / "out.onnx", source)

    def test_folders(self, tmp_path: Path):
        with pytest.raises(OutputError, match=r"the folder '.*none' does not exist. Create it first."):
            files.check_output_path(tmp_path / "none" / "out.onnx")
        with pytest.raises(OutputError, match="it is a folder; expected the path of a file"):
            files.check_output_path(tmp_path)

    def test_not_writable(self, tmp_path: Path, monkeypatch):
        def refuse(**_: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
        with pytest.raises(OutputError, match=r"the folder '.*' is not writable \(Permission denied\)"):
            files.check_output_path(tmp_path / "out.onnx")


class TestFileBytes:
    def test_missing_external_data(self, external_file: Path):
        (external_file.parent / "weights.bin").unlink()
        with pytest.raises(ModelError, match=r"needs external data in '.*weights.bin', which does not exist"):
            files.file_bytes(external_file)

    def test_no_model(self, tmp_path: Path):
        (tmp_path / "x.onnx").write_bytes(b"text")
        with pytest.raises(ModelError, match="is not an ONNX model"):
            files.file_bytes(tmp_path / "x.onnx")


def test_structure_is_small_and_keeps_types():
    model = files.load(proto())
    small = protobuf.structure(model)
    assert [value.name for value in small.graph.input] == ["x", "w"]
    assert [tensor.name for tensor in small.graph.initializer] == ["b"]
    assert small.ByteSize() < 1000
    assert [value.name for value in model.graph.inputs] == ["x"]


def test_weights_of_old_files_are_constants(tmp_path: Path) -> None:
    """IR version 3, as exporters wrote it until 2019: every initializer is listed as an input, too."""
    weight = onnx.numpy_helper.from_array(np.ones((4, 3), np.float32), "w")
    node = onnx.helper.make_node("MatMul", ["x", "w"], ["y"])
    inputs = [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in (("x", ["N", 4]), ("w", [4, 3]))]
    output = onnx.helper.make_tensor_value_info("y", 1, ["N", 3])
    graph = onnx.helper.make_graph([node], "old", inputs, [output], [weight])
    path = tmp_path / "old.onnx"
    onnx.save(onnx.helper.make_model(graph, ir_version=3, opset_imports=[onnx.helper.make_opsetid("", 9)]), path)
    model = files.load(path)
    assert [value.name for value in model.graph.inputs] == ["x"]
    assert set(model.graph.initializers) == {"w"}
    layers, _ = rewriting.find(model, min_weights=1)
    assert [layer.weight for layer in layers] == ["w"]


def test_external_files_are_asked_again_where_the_file_is_another(external_file: Path):
    path = external_file.parent / "m.onnx"
    onnx.save(proto(), path)
    assert files.files_of(path) == [str(path)]
    external_file.replace(path)
    assert len(files.files_of(path)) == 2

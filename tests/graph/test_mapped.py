"""Large model files: the same model as when they are read, of which no values are in memory."""

import gc
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny_models import mlp

import onnxpq
from onnxpq.errors import ModelError
from onnxpq.graph import files, mapped

LARGE = mapped.EMBEDDED_BYTES + 8
"""Values of one byte each that are too many to stay in the protobuf; a multiple of the sizes of all types."""


@pytest.fixture(autouse=True)
def all_files_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGE_BYTES", 0)


def saved(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "m.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def of_tensors(*tensors: onnx.TensorProto) -> onnx.ModelProto:
    nodes = [helper.make_node("Identity", [tensor.name], [f"out {tensor.name}"]) for tensor in tensors]
    outputs = [helper.make_tensor_value_info(f"out {t.name}", t.data_type, t.dims) for t in tensors]
    graph = helper.make_graph(nodes, "g", [], outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=11)


def raw(name: str, data_type: int, dims: list[int], content: bytes) -> onnx.TensorProto:
    return helper.make_tensor(name, data_type, dims, content, raw=True)


def test_the_same_model_as_when_it_is_read(tmp_path: Path) -> None:
    model = mlp()
    model.graph.initializer[0].doc_string = "first"
    path = saved(tmp_path, model)
    found = mapped.read(str(path))
    assert found is not None
    large = {tensor.name for tensor in model.graph.initializer if len(tensor.raw_data) > mapped.EMBEDDED_BYTES}
    assert set(found[1]) == large
    assert files.to_bytes(files.load(path)) == files.to_bytes(files.load(model))


def test_what_is_said_of_a_tensor_stays(tmp_path: Path) -> None:
    model = mlp()
    model.graph.initializer[0].metadata_props.add(key="a", value="b")
    again = onnx.ModelProto.FromString(files.to_bytes(files.load(saved(tmp_path, model))))
    assert again.graph.initializer == model.graph.initializer


def test_values_are_those_of_the_file_and_cannot_be_written(tmp_path: Path) -> None:
    path = saved(tmp_path, mlp())
    array = files.load(path).graph.initializers["W1"].const_value.numpy()
    expected = numpy_helper.to_array(mlp().graph.initializer[0])
    np.testing.assert_array_equal(array, expected)
    assert not array.flags.writeable
    # What is written into the file shows: nothing was copied.
    content = path.read_bytes()
    at = content.index(expected.tobytes())
    with path.open("r+b") as file:
        file.seek(at)
        file.write(np.float32(7).tobytes())
    assert array.flat[0] == 7


def test_the_file_can_be_replaced_by_the_model_that_is_read_from_it(tmp_path: Path) -> None:
    path = saved(tmp_path, mlp())
    before = path.read_bytes()
    model = files.load(path)
    files.save(model, path)
    assert files.to_bytes(model) == files.to_bytes(files.load(before))
    assert files.to_bytes(files.load(path)) == files.to_bytes(files.load(before))


def test_values_outlive_the_model(tmp_path: Path) -> None:
    path = saved(tmp_path, mlp())
    array = files.load(path).graph.initializers["W1"].const_value.numpy()
    path.unlink()
    gc.collect()
    np.testing.assert_array_equal(array, numpy_helper.to_array(mlp().graph.initializer[0]))


def test_compressed_like_a_file_that_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, mlp())
    samples = {"x": np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)}
    found = files.to_bytes(onnxpq.compress(path, samples).model)
    monkeypatch.setattr(files, "LARGE_BYTES", 2**27)
    assert found == files.to_bytes(onnxpq.compress(path, samples).model)


@st.composite
def tensors(draw: st.DrawFn) -> list[onnx.TensorProto]:
    """Of every type that has values of whole bytes, some with their bytes in one run and some as numbers."""
    made = []
    for index in range(draw(st.integers(1, 4))):
        data_type = draw(st.sampled_from([t for t in TensorProto.DataType.values() if itemsize(t)]))
        count = draw(st.sampled_from([0, 8, LARGE])) // itemsize(data_type)
        dims = draw(st.sampled_from([[count], [1, count], [count, 1]]))
        content = draw(st.binary(min_size=count, max_size=count)).ljust(count * itemsize(data_type), b"\1")
        made.append(raw(f"t{index}", data_type, dims, content))
        if data_type == TensorProto.FLOAT and draw(st.booleans()):
            made[-1].ClearField("raw_data")
            made[-1].float_data.extend([0.5] * count)
        made[-1].doc_string = draw(st.sampled_from(["", "text"]))
    return made


def itemsize(data_type: int) -> int:
    """Bytes of a value, by onnx's own table; 0 of strings and of types that share bytes."""
    if data_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        return 0
    bits = re.search(r"(?:INT|FLOAT)(2|4|6)(?:E|$)", TensorProto.DataType.Name(data_type))
    return 0 if bits else np.dtype(helper.tensor_dtype_to_np_dtype(data_type)).itemsize


@settings(max_examples=80, deadline=None)
@given(tensors=tensors())
def test_against_protobuf_itself(tensors: list[onnx.TensorProto], tmp_path_factory: pytest.TempPathFactory) -> None:
    model = of_tensors(*tensors)
    path = saved(tmp_path_factory.mktemp("mapped"), model)
    found = mapped.read(str(path))
    large = {tensor.name: tensor for tensor in tensors if len(tensor.raw_data) > mapped.EMBEDDED_BYTES}
    assert (found is None) == (not large)
    if found is None:
        return
    proto, values = found
    assert values.keys() == large.keys()
    for tensor in proto.graph.initializer:
        if tensor.name in values:
            assert not tensor.HasField("raw_data")
            assert values[tensor.name].shape == tuple(tensor.dims)
            tensor.raw_data = values[tensor.name].tobytes()
    assert proto == model


def with_fields(**fields: object) -> onnx.TensorProto:
    tensor = raw("t", TensorProto.FLOAT, [LARGE // 4], bytes(LARGE))
    for name, value in fields.items():
        if isinstance(value, list):
            tensor.ClearField(name)
            getattr(tensor, name).extend(value)
        else:
            setattr(tensor, name, value)
    return tensor


@pytest.mark.parametrize(
    "tensor",
    [
        with_fields(dims=[LARGE]),
        with_fields(dims=[-1, -LARGE // 4]),
        with_fields(dims=[2**62, 2**62]),
        with_fields(data_type=0),
        with_fields(data_type=99),
        with_fields(data_type=TensorProto.STRING),
        with_fields(data_type=TensorProto.INT4, dims=[2 * LARGE]),
        with_fields(name=""),
        with_fields(float_data=[1.0]),
        with_fields(data_location=TensorProto.EXTERNAL),
    ],
    ids=str,
)
def test_what_is_odd_is_left_to_the_ordinary_way(tensor: onnx.TensorProto, tmp_path: Path) -> None:
    assert mapped.read(str(saved(tmp_path, of_tensors(tensor)))) is None


def test_fields_of_another_type_than_theirs_are_nothing(tmp_path: Path) -> None:
    """As protobuf has it: number 7, the graph, but an integer; number 9 of a tensor, the bytes, but an integer."""
    tensor = with_fields(doc_string="x" * LARGE)
    tensor.ClearField("raw_data")
    content = of_tensors(with_fields()).SerializeToString() + bytes([7 << 3 | 0, 5])
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    proto, values = mapped.read(str(path)) or (None, {})
    assert set(values) == {"t"}
    assert proto is not None
    assert len(proto.graph.node) == 1
    number = tensor.SerializeToString() + bytes([9 << 3 | 0, 5])
    graph = bytes([5 << 3 | 2, *varint(len(number))]) + number
    path.write_bytes(bytes([7 << 3 | 2, *varint(len(graph))]) + graph)
    assert mapped.read(str(path)) is None


def varint(number: int) -> bytes:
    return bytes([number % 128 | 128, *varint(number // 128)]) if number >= 128 else bytes([number])


def test_two_of_a_name_are_left_to_the_ordinary_way(tmp_path: Path) -> None:
    model = of_tensors(with_fields())
    model.graph.initializer.append(with_fields(doc_string="again"))
    path = saved(tmp_path, model)
    assert mapped.read(str(path)) is None
    (tensor,) = (value.const_value for value in files.load(path).graph.initializers.values())
    assert tensor is not None
    assert tensor.doc_string == "again", "one of the two"


def test_the_checker_sees_all_but_the_values(tmp_path: Path) -> None:
    model = mlp()
    model.graph.node[0].op_type = "NoSuchOperator"
    path = saved(tmp_path, model)
    assert mapped.read(str(path)) is not None
    with pytest.raises(ModelError, match=r"not a valid ONNX model.*NoSuchOperator"):
        files.load(path)


def test_external_data_beside_values_of_its_own(tmp_path: Path) -> None:
    """A part of the weights in the file, a part in another one."""
    onnx.save(mlp(), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    inside = mlp().graph.initializer[0]
    model.graph.initializer[0].CopyFrom(inside)
    path = saved(tmp_path, model)
    found = mapped.read(str(path))
    assert found is not None
    assert set(found[1]) == {inside.name}
    assert files.to_bytes(files.load(path)) == files.to_bytes(files.load(mlp()))

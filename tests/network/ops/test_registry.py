import inspect
import pkgutil

import onnx
import onnx_ir as ir
import pytest
import torch

from onnxpq.errors import ConfigError, OnnxpqError, UnsupportedOperatorError
from onnxpq.network import ops
from onnxpq.network.importing import import_model
from onnxpq.network.ops import registry
from onnxpq.network.ops.registry import attributes_of, register, register_op, registered, resolve, version_in_force

FIRST_OPSET = 7
ATTRIBUTE_TOLERANCE = 1e-7  # ONNX stores defaults in float32


@pytest.fixture(autouse=True)
def _forget_what_a_test_registers(monkeypatch):
    monkeypatch.setattr(registry, "_users", {})
    monkeypatch.setattr(registry, "_built_in", {k: dict(v) for k, v in registry._built_in.items()})


def history(domain: str, op_type: str) -> set[int]:
    """The versions in force at some opset from the oldest that onnxruntime runs."""
    newest = onnx.defs.onnx_opset_version() if domain == "" else 1
    return {version_in_force(domain, op_type, opset) for opset in range(1 if domain else FIRST_OPSET, newest + 1)} & {
        s.since_version for s in onnx.defs.get_all_schemas_with_history() if (s.domain, s.name) == (domain, op_type)
    }


def as_default(value):
    if isinstance(value, float):
        return pytest.approx(value, rel=ATTRIBUTE_TOLERANCE)
    if isinstance(value, bytes):
        return value.decode()
    return tuple(map(as_default, value)) if isinstance(value, list) else value


def of_onnx():
    """All but onnxruntime's operators, whose schemas the onnx package does not have."""
    return [key for key in registered() if key[0] not in ("com.microsoft", registry.ONNXRUNTIME)]


@pytest.mark.parametrize("name", sorted({(d, o) for d, o, _ in of_onnx()}), ids="::".join)
def test_versions_are_exactly_those_in_force_since_opset_7(name):
    assert {v for d, o, v in registered() if (d, o) == name} == history(*name)


@pytest.mark.parametrize("key", sorted(of_onnx()), ids=lambda key: f"{key[1]}-{key[2]}")
def test_attributes_and_defaults_are_those_of_the_schema(key):
    domain, op_type, version = key
    schema = onnx.defs.get_schema(op_type, version, domain)
    taken = attributes_of(registered()[key])
    for name, attribute in schema.attributes.items():
        if name == "consumed_inputs":
            continue
        assert name in taken, f"{op_type}-{version} has an attribute {name}"
        if attribute.required:
            assert taken[name] is inspect.Parameter.empty
        elif attribute.default_value.name:
            assert taken[name] == as_default(onnx.helper.get_attribute_value(attribute.default_value))
        else:
            assert taken[name] is None or op_type == "Unsqueeze"


def test_the_families_are_the_files_of_the_folder():
    helpers = {"registry", "tensors"}
    files = {module.name for module in pkgutil.iter_modules(ops.__path__)} - helpers
    assert {family.__name__.rpartition(".")[2] for family in ops.FAMILIES} == files


def test_handlers_are_the_functions_of_the_version_in_force():
    assert resolve("", "Softmax", 12, "n") is registered()["", "Softmax", 11]
    assert resolve("ai.onnx", "Softmax", 13, "n") is registered()["", "Softmax", 13]


def test_a_second_handler_is_refused():
    with pytest.raises(ConfigError, match=r"ai.onnx::Relu version 14 has a handler already: relu"):
        register("Relu", 14)(abs)
    with pytest.raises(ConfigError, match=r"ai.onnx::Relu version 14 has a handler in onnxpq already"):
        register_op("", "Relu", abs, since_version=14)
    register_op("my", "Op", abs)
    with pytest.raises(ConfigError, match="my::Op version 1 has a handler already: abs"):
        register_op("my", "Op", abs)


def test_since_version_must_be_positive():
    with pytest.raises(ConfigError, match=r"'since_version' of register_op must be an integer of at least 1. Got 0"):
        register_op("my", "Op", abs, since_version=0)


def test_a_users_operator_serves_until_the_next_version():
    def first(x):
        return x

    def second(x):
        return -x

    register_op("my", "Op", first, since_version=2)
    register_op("my", "Op", second, since_version=4)
    with pytest.raises(UnsupportedOperatorError):
        resolve("my", "Op", 1, "n")
    assert resolve("my", "Op", 3, "n").__wrapped__ is first
    assert resolve("my", "Op", 9, "n").__wrapped__ is second


def test_an_unknown_operator_is_named():
    with pytest.raises(UnsupportedOperatorError) as error:
        resolve("com.example", "Fancy", 3, "layer/7")
    message = str(error.value)
    for part in ("layer/7", "com.example::Fancy version 3", "register_op", "Exclude the layers", "without data"):
        assert part in message


def test_an_unknown_version_is_named():
    del registry._built_in["", "Relu"][14]
    with pytest.raises(UnsupportedOperatorError, match=r"ai.onnx::Relu version 14.*knows versions 6, 13"):
        resolve("", "Relu", 20, "n")


def test_an_opset_that_onnx_does_not_know_is_refused():
    newest = onnx.defs.onnx_opset_version()
    with pytest.raises(UnsupportedOperatorError, match=f"the installed onnx package knows opsets up to {newest}"):
        resolve("", "Relu", newest + 1, "n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3, "Mine", torch.relu, 1), r"'domain' and 'op_type' of register_op must be strings, .* Got 3 and 'Mine'"),
        (("my", "", torch.relu, 1), r"the latter not empty. Got 'my' and ''"),
        (
            ("my", "Mine", "relu", 1),
            r"'fn' of register_op must be a function of the input tensors of my::Mine. Got 'relu'",
        ),
        (("my", "Mine", torch.relu, 1.5), r"must be an integer of at least 1. Got 1.5"),
        (("my", "Mine", torch.relu, True), r"must be an integer of at least 1. Got True"),
    ],
)
def test_arguments_that_register_op_refuses(arguments, message):
    with pytest.raises(ConfigError, match=message):
        register_op(*arguments)


def numpy_result(x):
    return x.numpy()


def division(x):
    return x * (1 // 0)


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (
            numpy_result,
            r"Node 'n' \(my::Mine\) failed on x: float32\[2\]: numpy_result returned ndarray; expected a torch.Te",
        ),
        (lambda _x: None, r"<lambda> returned NoneType; expected a torch.Tensor or a tuple of them"),
        (division, r"Node 'n' \(my::Mine\) failed on x: float32\[2\]: division raised ZeroDivisionError"),
        (
            lambda: None,
            r"Node 'n' \(my::Mine\) has 1 inputs and the attributes \[\], which its rule in onnxpq does not take",
        ),
    ],
)
def test_a_users_function_that_is_wrong_is_named_with_its_node(fn, message, monkeypatch):
    monkeypatch.setattr(registry, "_users", {})
    register_op("my", "Mine", fn)
    h = onnx.helper
    info = [h.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("x", "y")]
    graph = h.make_graph([h.make_node("Mine", ["x"], ["y"], name="n", domain="my")], "g", info[:1], info[1:])
    model = h.make_model(graph, opset_imports=[h.make_opsetid("", 17), h.make_opsetid("my", 1)])
    with pytest.raises(OnnxpqError, match=message):
        import_model(ir.from_proto(model))({"x": torch.zeros(2)})

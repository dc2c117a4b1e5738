import importlib
import subprocess
import sys

import pytest

import onnxpq

PUBLIC = [
    "Config",
    "Dataset",
    "LayerConfig",
    "Layout",
    "OnnxpqError",
    "PQConfig",
    "PQTensor",
    "Report",
    "Result",
    "TargetConfig",
    "TrainingConfig",
    "compress",
    "decompress",
    "inline",
    "library_available",
    "library_path",
    "register_op",
    "rewrite",
    "session",
    "update_weights",
]


def test_what_is_public_is_written_down() -> None:
    assert onnxpq.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_are_those_of_their_modules(name: str) -> None:
    value = getattr(onnxpq, name)
    assert value is getattr(importlib.import_module(onnxpq._HOMES[name]), name)
    assert value.__doc__
    assert value.__name__ == name


def test_dir_lists_them_before_they_are_used() -> None:
    code = f"import onnxpq; assert set({PUBLIC}) <= set(dir(onnxpq)); assert 'compress' not in vars(onnxpq)"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(PUBLIC) <= set(dir(onnxpq))


def test_star_import() -> None:
    names: dict[str, object] = {}
    exec("from onnxpq import *", names)  # noqa: S102 (the statement is what is tested)
    assert set(PUBLIC) <= names.keys()


def test_unknown_names_are_an_ordinary_error() -> None:
    with pytest.raises(AttributeError, match=r"^module 'onnxpq' has no attribute 'compres'$"):
        _ = onnxpq.compres

"""onnxruntime: the only module that imports it. Sessions with the operator library, and their outputs as arrays.

Models with operators of other libraries run with those registered: the ones that the caller names, and
onnxruntime-extensions (tokenizers, image decoding) where the model uses its domains.
"""

import hashlib
import importlib
import os
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

import onnxpq
from onnxpq.data import of_objects
from onnxpq.errors import DataError, ModelError, RuntimeLibraryError
from onnxpq.graph import files
from onnxpq.support import memory

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

Model: TypeAlias = str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model
Libraries: TypeAlias = Sequence[str | os.PathLike[str]]
"""Paths of custom-operator libraries."""

LIBRARY_NAMES: Final = ("libonnxpq_ops.so", "libonnxpq_ops.dylib", "onnxpq_ops.dll")
MIN_RUNTIME: Final = (1, 17)
"""First onnxruntime that the operator library works with (KernelContext_ParallelFor)."""

LIBRARY_MISSING: Final = (
    "onnxpq was installed without its operator library (no C++ compiler when it was built). Compressed models run on"
    " onnxruntime's own operators: correct, but at the speed and memory of the uncompressed layers."
)
"""Said once a process by `session`."""

HANDED_BYTES: Final = 2**23
"""A model in memory with more bytes of tensors is handed to onnxruntime as a file: from external data it takes 1.1
bytes for each byte of them, from bytes in memory 3 while it loads and 2.2 as long as the session lives."""

EXTENSIONS_DOMAINS: Final = ("ai.onnx.contrib", "com.microsoft.extensions")
"""Domains of the operators of the package onnxruntime-extensions."""

_ERRORS_ONLY: Final = 3
_FATAL_ONLY: Final = 4
_WITHOUT_PREPACKING: Final = "session.disable_prepacking"
_NOT_REGISTERED: Final = "is not a registered function/op"
"""What onnxruntime says of an operator of a domain that it does not know."""
_REGISTERED: Final = "onnxpq.registered."


def library_path() -> str:
    """Path of the operator library, for ``SessionOptions.register_custom_ops_library`` of any binding.

    Raises:
        RuntimeLibraryError: onnxpq was built on a machine without a C++ compiler.
    """
    # An editable install has two folders: the checkout, and the one that the build wrote to.
    for folder in onnxpq.__path__:
        for name in LIBRARY_NAMES:
            path = Path(folder, "lib", name)
            if path.is_file():
                return str(path)
    raise RuntimeLibraryError(
        f"This installation of onnxpq has no operator library (looked for {', '.join(LIBRARY_NAMES)} in"
        f" {', '.join(str(Path(folder, 'lib')) for folder in onnxpq.__path__)}): it was built where there was no C++"
        " compiler. Install a compiler and run `pip install --force-reinstall --no-deps onnxpq`."
    )


def library_available() -> bool:
    """Whether this installation has the operator library."""
    try:
        library_path()
    except RuntimeLibraryError:
        return False
    return True


def session(
    model: Model,
    *,
    use_library: bool = True,
    fold_constants: bool = True,
    prepack: bool = True,
    options: "SessionOptions | None" = None,
    providers: Sequence[Any] | None = None,
    custom_ops_libraries: Libraries = (),
) -> "InferenceSession":
    """An onnxruntime session that runs `PQMatMul` with the operator library.

    The library of onnxruntime-extensions is added where the model uses its domains.

    Args:
        model: a path, the bytes of a file, or a model in memory; external data are found only beside a path and in an
            `onnx_ir.Model`.
        use_library: False runs the model's own function body instead, in onnxruntime's standard operators.
        fold_constants: False decodes the weights of a function body at each call, and a layer's only while it runs.
            onnxruntime's constant folding decodes all when it loads, which takes nine times their bytes meanwhile.
        prepack: False leaves weights as they are in external data, which are mapped and take no memory. onnxruntime's
            prepacking copies them into the order that its kernels read them in. Without it a call of 256 rows takes
            up to a fifth longer, one of 8 three times as long (`python -m benchmarks prepacking`).
        options: the caller's options, to which the library and what is asked for here are added. Default:
            onnxruntime's, but without its warnings.
        providers: execution providers, as onnxruntime takes them; where absent, the CPU.
        custom_ops_libraries: paths of further libraries of operators that the model uses.

    Raises:
        ModelError: onnxruntime cannot load the model.
        RuntimeLibraryError: onnxruntime is missing, too old for the library, or refuses a library; or the model needs
            onnxruntime-extensions and it is not installed.

    Warns:
        RuntimeWarning: once a process, where the library is asked for and the installation has none; the function body
            runs instead.
    """
    ort = _onnxruntime()
    if options is None:
        options = ort.SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
    if not prepack:
        options.add_session_config_entry(_WITHOUT_PREPACKING, "1")
    if use_library and _library_or_warning():
        _check_version(ort)
        _register(ort, options, library_path())
    for library in custom_ops_libraries:
        _register(ort, options, _existing(library))
    with tempfile.TemporaryDirectory(prefix="onnxpq-", ignore_cleanup_errors=True) as scratch:
        source = source_of(model, Path(scratch))
        open_session = partial(
            ort.InferenceSession,
            source,
            options,
            providers=providers or ["CPUExecutionProvider"],
            disabled_optimizers=None if fold_constants else ["ConstantFolding"],
        )
        try:
            return open_session()
        except _failures(ort) as error:
            failure = error
        try:
            # Only now, so that an ordinary model is not read twice.
            if _uses_extensions(source) and _register(ort, options, _extensions_path()):
                return open_session()
        except _failures(ort) as error:
            failure = error
    name = f"'{source}'" if isinstance(source, str) else "given in memory"
    hint = ". Give the library that has it with --custom-ops-library." if _NOT_REGISTERED in str(failure) else ""
    raise ModelError(f"onnxruntime {ort.__version__} cannot load the model {name}: {failure}{hint}") from failure


def save_ort(model: Model, path: Path) -> None:
    """Write a model in onnxruntime's own format, for runtimes in which the operator library is registered.

    Args:
        model: compressed.
        path: the file to write.

    Raises:
        ModelError, RuntimeLibraryError: as `session`; the operator library must be there.
    """
    library_path()
    options = _onnxruntime().SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    # Kernels that only this processor has would be in the file otherwise.
    options.graph_optimization_level = _onnxruntime().GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(path)
    options.add_session_config_entry("session.save_model_format", "ORT")
    session(model, options=options)


def frugal(model: Model, *, use_library: bool = False, custom_ops_libraries: Libraries = ()) -> "InferenceSession":
    """A session for what a model computes and not for the time it takes: it holds no weights of a large one.

    Of a model in half precision onnxruntime holds them nevertheless, turned into float32, and of a file those inside.

    Args:
        model: as for `session`.
        use_library: as for `session`.
        custom_ops_libraries: as for `session`.

    Raises:
        ModelError, RuntimeLibraryError: as `session`.
    """
    small = not is_large(model)
    return session(
        model,
        use_library=use_library,
        fold_constants=small,
        prepack=small,
        custom_ops_libraries=custom_ops_libraries,
    )


def is_large(model: Model) -> bool:
    """Whether a model has more bytes than `files.LARGE_BYTES`, those of external data included."""
    if isinstance(model, str | os.PathLike):
        return files.file_bytes(model) > files.LARGE_BYTES
    if isinstance(model, ir.Model):
        return files.tensor_bytes(model) > files.LARGE_BYTES
    return (len(model) if isinstance(model, bytes) else model.ByteSize()) > files.LARGE_BYTES


def run(
    session: "InferenceSession", inputs: Mapping[str, NDArray[Any]], *, quiet: bool = False
) -> dict[str, NDArray[Any]]:
    """Run a session on a batch, with every output as an array.

    Args:
        session: from `session`.
        inputs: input name -> array.
        quiet: onnxruntime prints nothing where it fails, as for inputs that are only tried.

    Returns:
        Output name -> array. A list of maps (ZipMap of skl2onnx: for each of N samples a score for each of C
        classes) becomes [N, C] with the classes in ascending order. Any other sequence becomes an array of objects,
        which are arrays; any other map one of two, its keys in ascending order and their values.

    Raises:
        DataError: the inputs do not fit the model.
        ModelError: the model fails while it runs, or an output is of another type.
    """
    expected = [i.name for i in session.get_inputs()]
    if set(inputs) != set(expected):
        raise DataError(
            f"The model's inputs are {_quoted(expected)}; found {_quoted(list(inputs))}. Missing:"
            f" {_quoted([n for n in expected if n not in inputs])}; unknown:"
            f" {_quoted([n for n in inputs if n not in expected])}."
        )
    ort = _onnxruntime()
    names = [o.name for o in session.get_outputs()]
    options = ort.RunOptions() if quiet else None
    if options is not None:
        options.log_severity_level = _FATAL_ONLY
    try:
        values = session.run(names, dict(inputs), options)
    except ort.capi.onnxruntime_pybind11_state.InvalidArgument as error:
        found = ", ".join(f"'{name}' {array.dtype}{list(array.shape)}" for name, array in inputs.items())
        wanted = ", ".join(f"'{i.name}' {i.type} {i.shape}" for i in session.get_inputs())
        raise DataError(f"onnxruntime refuses the inputs: {error}. Found {found}; expected {wanted}.") from error
    except _failures(ort) as error:
        raise ModelError(f"The model fails while it runs in onnxruntime {ort.__version__}: {error}") from error
    return {name: _as_array(name, value) for name, value in zip(names, values, strict=True)}


def _onnxruntime() -> ModuleType:
    """Imported when first needed: `import onnxpq` must stay light."""
    try:
        return importlib.import_module("onnxruntime")
    except ImportError as error:
        raise RuntimeLibraryError(
            f"onnxruntime cannot be imported ({error}). Install it with `pip install onnxruntime`, or one of its other"
            " builds."
        ) from error


def _failures(ort: ModuleType) -> tuple[type[Exception], ...]:
    """The exceptions that onnxruntime raises; they have no common base of their own."""
    state = ort.capi.onnxruntime_pybind11_state
    classes = [value for value in vars(state).values() if isinstance(value, type) and issubclass(value, Exception)]
    return (*classes, RuntimeError, ValueError)


_warned = False


def _library_or_warning() -> bool:
    global _warned  # noqa: PLW0603 (once a process is what is wanted)
    if library_available():
        return True
    if not _warned:
        _warned = True
        warnings.warn(LIBRARY_MISSING, RuntimeWarning, stacklevel=3)
    return False


def _check_version(ort: ModuleType) -> None:
    version = tuple(int(part) for part in ort.__version__.split(".")[:2])
    if version < MIN_RUNTIME:
        raise RuntimeLibraryError(
            f"This is onnxruntime {ort.__version__}; the operator library needs {'.'.join(map(str, MIN_RUNTIME))} or"
            " newer. Upgrade onnxruntime, or pass use_library=False to run the model's own function body."
        )


def _register(ort: ModuleType, options: "SessionOptions", path: str) -> bool:
    """Add a library to the options; False if they have it already: onnxruntime refuses to register a domain twice."""
    entry = _REGISTERED + hashlib.sha256(path.encode()).hexdigest()
    try:
        if options.get_session_config_entry(entry):
            return False
    except RuntimeError:
        pass  # this is how onnxruntime says that there is no such entry
    try:
        options.register_custom_ops_library(path)
    except _failures(ort) as error:
        raise RuntimeLibraryError(
            f"onnxruntime {ort.__version__} refuses the operator library '{path}': {error}"
        ) from error
    options.add_session_config_entry(entry, "1")
    return True


def _existing(library: str | os.PathLike[str]) -> str:
    path = Path(library)
    if not path.is_file():
        raise RuntimeLibraryError(
            f"The custom-operator library '{path}' does not exist or is no file. Give the path of a shared library that"
            " exports RegisterCustomOps."
        )
    return str(path.resolve())


def _uses_extensions(source: str | bytes) -> bool:
    try:
        proto = (
            onnx.load_from_string(source) if isinstance(source, bytes) else onnx.load(source, load_external_data=False)
        )
    # What onnxruntime could not read, protobuf may not read either; onnxruntime's own words are the better ones.
    except Exception:
        return False
    imports = [*proto.opset_import, *(entry for function in proto.functions for entry in function.opset_import)]
    return any(entry.domain in EXTENSIONS_DOMAINS for entry in imports)


def _extensions_path() -> str:
    try:
        return str(importlib.import_module("onnxruntime_extensions").get_library_path())
    except ImportError as error:
        raise RuntimeLibraryError(
            f"The model uses operators of onnxruntime-extensions (domains {' and '.join(EXTENSIONS_DOMAINS)}), which"
            f" cannot be imported ({error}). Install it with `pip install onnxruntime-extensions`."
        ) from error


def source_of(model: Model, scratch: Path) -> str | bytes:
    """What onnxruntime loads: a path or bytes. A large model in memory goes by way of a file in `scratch`."""
    if isinstance(model, bytes):
        return model
    if isinstance(model, str | os.PathLike):
        return os.fspath(model)
    if isinstance(model, ir.Model):
        if files.tensor_bytes(model) <= HANDED_BYTES:
            return files.to_bytes(model)
        path = scratch / "model.onnx"
        files.save(model, path, external_data=True)
        # The pages of the file that the weights were read from are as many as those that the session will look at.
        memory.give_back()
        return str(path)
    try:
        return bytes(model.SerializeToString())
    # protobuf's implementations raise different classes.
    except Exception as error:
        raise ModelError(f"The model in memory cannot be serialized: {error}. Save it and pass its path.") from error


def _as_array(name: str, value: object) -> NDArray[Any]:
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, list) and all(isinstance(row, dict) for row in value):
        keys = sorted({key for row in value for key in row})
        if all(len(row) == len(keys) for row in value):
            return np.array([[row[key] for key in keys] for row in value], np.float32).reshape(len(value), len(keys))
    if isinstance(value, dict):
        keys = sorted(value)
        return of_objects([np.array(keys), np.array([value[key] for key in keys])])
    if isinstance(value, list | tuple):
        return of_objects([_as_array(name, entry) for entry in value])
    if value is None or isinstance(value, bool | int | float | str | bytes | np.generic):
        return np.asarray(value, None if isinstance(value, bool | int | float | np.generic) else object)
    raise ModelError(
        f"Output '{name}' is a {type(value).__name__}; expected a tensor, or sequences and maps of them. Make the "
        "model output tensors."
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names) or "none"

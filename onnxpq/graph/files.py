"""Model files: read and checked on the way in, written whole or not at all on the way out.

The in-memory form is `onnx_ir.Model`; tensors in external data stay memory-mapped, and so do those of a large file.
"""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Final, NamedTuple, TypeAlias

import onnx
import onnx_ir as ir
from onnx_ir.passes import common

from onnxpq.errors import ModelError, OutputError
from onnxpq.graph import external, mapped, private, protobuf
from onnxpq.graph.checking import check, objection, refused
from onnxpq.graph.finite import check_finite
from onnxpq.graph.inlining import inline
from onnxpq.graph.mending import FIRST_IR_WITH_CONSTANTS, mend
from onnxpq.graph.opsets import FIRST_BROADCASTING_OPSET, MIN_OPSET, imported, raised
from onnxpq.graph.protobuf import (
    EMBEDDED_BYTES,
    all_tensors,
    check_tensors,
    embed_external,
    external_tensors,
    from_proto,
    open_negative_dimensions,
    structure,
    to_proto,
)
from onnxpq.graph.reading import read_proto
from onnxpq.support.writing import scratch_folder, write_bytes

Source: TypeAlias = str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model
Judge: TypeAlias = Callable[[Source], str | None]
"""Says why onnxruntime does not load a model; None where it does."""

MAX_EMBEDDED_BYTES: Final = 1_500_000_000
"""Models with more bytes of tensors get an external data file; protobuf cannot write 2 GiB."""

LARGE_BYTES: Final = 2**27
"""A model with more is large: its weights are kept out of memory where that takes somewhat longer. Those of a file are
mapped, not read (`onnxpq.graph.mapped`), and sessions that are not timed leave them there (`runtime.frugal`)."""

OLDER_THAN_RUNTIMES: Final = (
    "The model was mended: its operator set is older than those that onnxruntime runs, and was raised."
)

HELD_BY_FUNCTIONS: Final = (
    "The model was mended: the functions {names} hold operators that onnxruntime has, and dies of in functions; they "
    "were put in the place of their calls."
)

_EXTERNAL_KEY: Final = "onnxpq.external_data"


class Loaded(NamedTuple):
    """A model that was read, and what the user should know of how.

    Attributes:
        model: as `load` gives it.
        notes: sentences; none where the model was in order.
        mended: whether it is another model than the source, or one that ONNX's checker refuses.
    """

    model: ir.Model
    notes: tuple[str, ...]
    mended: bool


def load(source: Source, judge: Judge | None = None) -> ir.Model:
    """Reads and checks a model.

    Args:
        source: a path, the bytes of a file, a protobuf or an `onnx_ir.Model`; what is passed is never changed.
        judge: says why onnxruntime does not load a model, or None. It is asked about a model that ONNX's checker
            refuses; without a judge such a model is refused.

    Returns:
        A model of its own, of ai.onnx opset 9 or newer and IR version 4 or newer: initializers of older ones are
        constants, not graph inputs. What onnxruntime takes and ONNX's tools do not is mended (`onnxpq.graph.mending`).
        External data stays memory-mapped, and so does a file of more than `LARGE_BYTES`: what is written into it as
        long as the model is used changes the model.

    Raises:
        ModelError: the source cannot be read, is damaged or invalid, refers to external data that is missing, too
            short or not the model's own, has NaN or infinite weights, or has an opset below 9 that cannot be raised.
    """
    return read(source, judge).model


def read(source: Source, judge: Judge | None = None) -> Loaded:
    """Reads and checks a model as `load` does, and tells what was done to it.

    Raises:
        ModelError: as `load`.
    """
    where = _describe(source)
    if isinstance(source, ir.Model):
        loaded, has_external = _of_model(source, where, judge)
    else:
        proto, path, values = read_proto(source, where, LARGE_BYTES)
        loaded, has_external = _of_proto(proto, path, values, where, judge)
    model, notes, mended = loaded
    open_negative_dimensions(model)
    if has_external:
        model.graph.meta[_EXTERNAL_KEY] = True
    version = imported(model)
    if version is not None and version < MIN_OPSET:
        model = raised(onnx.ModelProto.FromString(to_bytes(model)), version, where)
        if version < FIRST_BROADCASTING_OPSET:
            notes, mended = (*notes, OLDER_THAN_RUNTIMES), True
    _free_initializers(model)
    check_finite(model)
    return Loaded(model, notes, mended)


def _of_model(source: ir.Model, where: str, judge: Judge | None) -> tuple[Loaded, bool]:
    """A copy of a model in memory, and whether it has external data."""
    outside = [_placed(tensor) for tensor in external_tensors(source)]
    external.check(outside, where)
    try:
        model = _copied(source, where)
        check(model)
    except ModelError:
        # A protobuf can be mended.
        if outside or tensor_bytes(source) > MAX_EMBEDDED_BYTES:
            raise
        return _of_proto(to_proto(source), None, {}, where, judge)
    external.relocate(model, _placed)
    return Loaded(model, (), mended=False), bool(outside)


def _placed(tensor: ir.ExternalTensor) -> ir.ExternalTensor:
    """A tensor of a model in memory: one with a base directory was read from a file in it."""
    folder = os.fspath(tensor.base_dir)
    return external.located(tensor, os.path.join(folder, "model.onnx")) if folder else tensor


def _of_proto(
    proto: onnx.ModelProto, path: str | None, values: mapped.Values, where: str, judge: Judge | None
) -> tuple[Loaded, bool]:
    """The model of a protobuf, which is changed, and whether it has external data."""
    check_tensors(proto, where)
    outside = external.find(proto, path)
    external.check(outside, where)
    notes, changed = mend(proto, where)
    text = objection(proto, elsewhere=values)
    if text is not None and judge is None:
        raise refused(where, text)
    try:
        model = from_proto(proto, where)
        mapped.put_in(model, values)
        external.relocate(model, lambda tensor: external.located(tensor, path))
        _check_writable(model, where)
    except ModelError as error:
        raise error if text is None else refused(where, text) from error
    if functions := private.in_functions(proto):
        inline(model, functions)
        notes.append(HELD_BY_FUNCTIONS.format(names=", ".join(f"'{name}'" for _, name, _ in sorted(functions))))
        changed = True
    if text is not None and judge is not None:
        notes.append(_judged(model, where, text, judge))
    return Loaded(model, tuple(notes), changed or text is not None), bool(outside)


def _judged(model: ir.Model, where: str, text: str, judge: Judge) -> str:
    """What to tell of a model that onnxruntime loads, whatever the checker says against it.

    Raises:
        ModelError: it does not load it.
    """
    # What cannot be read makes onnxruntime fail in its own ways.
    check_finite(model)
    reason = judge(model)
    if reason is not None:
        raise ModelError(f"{refused(where, text)} onnxruntime does not take it either: {reason}")
    return f"ONNX's checker refuses the model, which onnxruntime runs: {text}"


def save(model: ir.Model, path: str | os.PathLike[str], *, external_data: bool | None = None) -> None:
    """Writes a model to a temporary folder beside the target, then renames it into place.

    Args:
        model: the model; not changed.
        path: the file to write; an existing one is replaced.
        external_data: whether tensors go to a second file `<path>.data`. Default: if the model was loaded with
            external data, or has more than `MAX_EMBEDDED_BYTES` of tensors.

    Raises:
        OutputError: the target cannot be written, or holds tensors that the model still reads.
        ModelError: `external_data` is False and the model is too large for one file.
    """
    check_output_path(path, model)
    if external_data is None:
        external_data = bool(model.graph.meta.get(_EXTERNAL_KEY)) or tensor_bytes(model) > MAX_EMBEDDED_BYTES
    target = os.fspath(path)
    data_name = f"{os.path.basename(target)}.data"
    with scratch_folder(target) as scratch:
        content = _write_external(model, scratch, data_name) if external_data else to_bytes(model)
        temporary = write_bytes(scratch, content)
        temporary_data = os.path.join(scratch, data_name)
        if os.path.exists(temporary_data) and os.path.getsize(temporary_data):
            # An old model beside new data would read wrong weights, were we stopped between the two renames.
            with suppress(FileNotFoundError):
                os.remove(target)
            os.replace(temporary_data, os.path.join(os.path.dirname(target), data_name))
        os.replace(temporary, target)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes a text file, UTF-8, whole or not at all.

    Raises:
        OutputError: the file cannot be written.
    """
    check_output_path(path)
    target = os.fspath(path)
    with scratch_folder(target) as scratch:
        os.replace(write_bytes(scratch, text.encode()), target)


def check_output_path(path: str | os.PathLike[str], source: Source | None = None) -> None:
    """Checks that a model can be written, before hours of work.

    Args:
        path: where the model is to be written.
        source: the model that is being compressed: none of its files may be overwritten.

    Raises:
        OutputError: the folder does not exist or is not writable, `path` is a folder, or `path` or its external data
            file is a file of the source.
    """
    target = os.fspath(path)
    folder = os.path.dirname(target) or "."
    if not os.path.isdir(folder):
        raise OutputError(f"Cannot write '{target}': the folder '{folder}' does not exist. Create it first.")
    if os.path.isdir(target) or not os.path.basename(target):
        raise OutputError(f"Cannot write '{target}': it is a folder; expected the path of a file.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OutputError(
            f"Cannot write '{target}': the folder '{folder}' is not writable ({error.strerror}). Choose another folder."
        ) from error
    for used in files_of(source):
        for written in (target, f"{target}.data"):
            if os.path.exists(written) and os.path.exists(used) and os.path.samefile(written, used):
                raise OutputError(
                    f"Writing '{target}' would overwrite '{used}', a file of the input model. Choose another path."
                )


def file_bytes(path: str | os.PathLike[str]) -> int:
    """Bytes on disk of a model file and of the external data files that it refers to.

    Raises:
        ModelError: a file is missing or is not an ONNX model.
    """
    model_path = os.fspath(path)
    files = {os.path.realpath(name) for name in files_of(model_path, strict=True)}
    missing = sorted(name for name in files if not os.path.isfile(name))
    if missing:
        raise ModelError(f"'{model_path}' needs external data in '{missing[0]}', which does not exist.")
    return sum(os.path.getsize(name) for name in files)


def to_bytes(model: ir.Model) -> bytes:
    """The model as the bytes of one file, with all tensors inside.

    Raises:
        ModelError: the model is too large for one protobuf.
    """
    size = tensor_bytes(model)
    if size > MAX_EMBEDDED_BYTES:
        raise ModelError(
            f"The model has {size} bytes of tensors; one ONNX protobuf is written up to {MAX_EMBEDDED_BYTES} bytes. "
            "Save it to a path: external data has no limit."
        )
    embedded = model.clone()
    embed_external(embedded)
    return bytes(to_proto(embedded).SerializeToString())


def tensor_bytes(model: ir.Model) -> int:
    """Bytes of all constants, those of strings apart."""
    return sum(map(protobuf.tensor_bytes, all_tensors(model)))


def bytes_as_file(model: ir.Model) -> int:
    """Bytes of the model as one file; a large one is not put together, which makes some bytes per tensor less."""
    if tensor_bytes(model) <= LARGE_BYTES:
        return len(to_bytes(model))
    small = structure(model)
    kept = {tensor.name for tensor in small.graph.initializer}
    tensors = (value.const_value for name, value in model.graph.initializers.items() if name not in kept)
    return int(small.ByteSize()) + sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _describe(source: Source) -> str:
    if isinstance(source, str | os.PathLike):
        return f"'{os.fspath(source)}'"
    return "the model that was passed"


def _free_initializers(model: ir.Model) -> None:
    """Before IR version 4 every initializer had to be a graph input as well: that did not make it one to be fed."""
    if model.ir_version < FIRST_IR_WITH_CONSTANTS:
        common.RemoveInitializersFromInputsPass()(model)
        model.ir_version = FIRST_IR_WITH_CONSTANTS


def _copied(model: ir.Model, where: str) -> ir.Model:
    try:
        return model.clone()
    # onnx_ir's cloner wraps what it meets in one RuntimeError per level.
    except RuntimeError as error:
        raise ModelError(f"{where} is not a valid graph: {_innermost(error)}.") from error


def _check_writable(model: ir.Model, where: str) -> None:
    """What cannot be written back is found now, not after hours: names that are not UTF-8 pass ONNX's checker."""
    try:
        structure(model)
    except Exception as error:
        raise ModelError(f"{where} is damaged: {_innermost(error)}. Export or copy it again.") from error


def _innermost(error: BaseException) -> BaseException:
    return error if error.__cause__ is None else _innermost(error.__cause__)


def _write_external(model: ir.Model, folder: str, data_name: str) -> bytes:
    """Writes the tensors to `folder`; returns the bytes of the model file."""
    unloaded = model.clone()
    # onnx_ir would close the files that small ones are mapped from, which others may look at.
    embed_external(unloaded, most=EMBEDDED_BYTES)
    ir.external_data.unload_from_model(unloaded, folder, data_name, size_threshold_bytes=EMBEDDED_BYTES)
    return bytes(to_proto(unloaded).SerializeToString())


def files_of(source: Source | None, *, strict: bool = False) -> list[str]:
    """The files that hold a model, its own first. A path without a model yields itself, or a ModelError if `strict`."""
    if isinstance(source, ir.Model):
        return sorted({tensor.path for tensor in external_tensors(source)})
    if not isinstance(source, str | os.PathLike):
        return []
    path = os.fspath(source)
    try:
        return [path, *_external_files(path, _identity(path))]
    except ModelError:
        if strict:
            raise
        return [path]


@lru_cache(maxsize=8)
def _external_files(path: str, _identity: tuple[int, ...]) -> tuple[str, ...]:
    """The external data files of a model file, which is asked several times in a run."""
    proto, _, _ = read_proto(path, f"'{path}'", LARGE_BYTES)
    return tuple(sorted({tensor.path for tensor in external.find(proto, path)}))


def _identity(path: str) -> tuple[int, ...]:
    """What changes with a file's content; nothing where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

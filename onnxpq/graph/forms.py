"""One model in the forms that the stages need: each is made once, and has one owner."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Final

import onnx
import onnx_ir as ir

from onnxpq.graph import files
from onnxpq.graph.normalising import normalise
from onnxpq.graph.preparing import has_bfloat16, prepare, widened
from onnxpq.graph.protobuf import external_tensors

WIDENED: Final = (
    "The model computes in bfloat16, which onnxruntime has no operators for on a CPU: its outputs and times are those "
    "of the same model in float32."
)

MENDED_ALONE: Final = (
    "onnxruntime does not load the model as it was given: its outputs and times are those of the mended one."
)


@dataclass(frozen=True, eq=False)
class Forms:
    """The forms of a model. None of them is changed; tensors are shared.

    Attributes:
        source: what the user passed.
        original: the model as it was loaded.
        runnable: as onnxruntime runs it: in float32 where it has no operators for the bfloat16 of the original.
        prepared: as its layers are found and rewritten (`onnxpq.graph.preparing.prepare`).
        normal: as it is trained (`onnxpq.graph.normalising.normalise`).
        notes: what the user should know of it: sentences.
        file_runs: whether onnxruntime runs what the user passed, not only what was made of it.
    """

    source: files.Source
    original: ir.Model
    runnable: ir.Model
    prepared: ir.Model
    normal: ir.Model
    notes: tuple[str, ...]
    file_runs: bool

    @classmethod
    def of(cls, source: files.Source, judge: files.Judge) -> "Forms":
        """Load a model and bring it into its forms.

        Args:
            source: what the user passed.
            judge: says why onnxruntime does not load a model, or None; asked only where there is doubt.

        Raises:
            ModelError: see `files.load`, `prepare` and `normalise`.
        """
        original, notes, mended = files.read(source, judge)
        file_runs = not mended or judge(source) is None
        runnable = original if not has_bfloat16(original) or judge(original) is None else widened(original)
        if runnable is not original:
            notes = (*notes, WIDENED)
        if not file_runs:
            notes = (*notes, MENDED_ALONE)
        return cls(source, original, runnable, prepare(original), normalise(runnable), notes, file_runs)

    def rewritten(self, change: Callable[[ir.Model], ir.Model]) -> "Forms":
        """The same with a change to what is trained and what is rewritten; both stay copies of one another."""
        return replace(self, prepared=change(self.prepared), normal=change(self.normal))

    @property
    def is_widened(self) -> bool:
        """Whether onnxruntime runs another model than the user's."""
        return self.runnable is not self.original

    @property
    def file(self) -> str | PathLike[str] | None:
        """The user's file, where a path was passed."""
        return self.source if isinstance(self.source, str | PathLike) else None

    @property
    def bytes_before(self) -> int:
        """Of the original file; of a model that was passed in memory with external data, as one file."""
        if self.file is not None:
            return files.file_bytes(self.file)
        if isinstance(self.source, bytes):
            return len(self.source)
        if isinstance(self.source, onnx.ModelProto) and not any(external_tensors(self.original)):
            return int(self.source.ByteSize())
        return files.bytes_as_file(self.original)

    @property
    def as_it_runs(self) -> str | PathLike[str] | ir.Model:
        """What is run as the original: the user's file, where that is what runs and has not much inside.

        onnxruntime copies the weights that a file has inside. A large model it gets with external data, which are
        mapped.
        """
        if (
            self.file is None
            or self.is_widened
            or not self.file_runs
            or Path(self.file).stat().st_size > files.LARGE_BYTES
        ):
            return self.runnable
        return self.file

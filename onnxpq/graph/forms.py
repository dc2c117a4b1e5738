"""One model in the forms that the stages need: each is made once, and has one owner."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import onnx_ir as ir

from onnxpq.graph import files
from onnxpq.graph.normalising import normalise
from onnxpq.graph.preparing import has_bfloat16, prepare, widened


@dataclass(frozen=True, eq=False)
class Forms:
    """The forms of a model. None of them is changed; tensors are shared.

    Attributes:
        source: what the user passed.
        original: the model as it was loaded.
        runnable: as onnxruntime runs it: in float32 where it has no operators for the bfloat16 of the original.
        prepared: as its layers are found and rewritten (`onnxpq.graph.preparing.prepare`).
        normal: as it is trained (`onnxpq.graph.normalising.normalise`).
    """

    source: files.Source
    original: ir.Model
    runnable: ir.Model
    prepared: ir.Model
    normal: ir.Model

    @classmethod
    def of(cls, source: files.Source, runs: Callable[[ir.Model], bool]) -> "Forms":
        """Load a model and bring it into its forms.

        Args:
            source: what the user passed.
            runs: whether onnxruntime runs a model; asked only where there is doubt.

        Raises:
            ModelError: see `files.load`, `prepare` and `normalise`.
        """
        original = files.load(source)
        runnable = original if not has_bfloat16(original) or runs(original) else widened(original)
        return cls(source, original, runnable, prepare(original), normalise(runnable))

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
        """Of the original file."""
        return files.bytes_as_file(self.original) if self.file is None else files.file_bytes(self.file)

    @property
    def as_it_runs(self) -> str | PathLike[str] | ir.Model:
        """What is run as the original: the user's file, where that is what runs and has not much inside.

        onnxruntime copies the weights that a file has inside. A large model it gets with external data, which are
        mapped.
        """
        if self.file is None or self.is_widened or Path(self.file).stat().st_size > files.LARGE_BYTES:
            return self.runnable
        return self.file

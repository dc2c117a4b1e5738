"""Every way in which onnxpq can fail, as a class.

Each message says what went wrong, where (node, tensor or file names), what was found, what was
expected, and what to do. Callers who want to catch everything catch `OnnxpqError`.
"""


class OnnxpqError(Exception):
    """Base of all errors that onnxpq raises on purpose.

    Attributes:
        node: name of the one node that the error is about; None where it is about something else.
    """

    def __init__(self, message: str, *, node: str | None = None) -> None:
        super().__init__(message)
        self.node = node


class ModelError(OnnxpqError):
    """The input is not a usable ONNX model: unreadable, truncated, invalid, or its weights hold NaN."""


class DataError(OnnxpqError):
    """The data does not fit the model: missing input, wrong shape or type, NaN, no samples, bad labels."""


class UnalignedError(DataError):
    """A value of the graph has no entry per sample, or entries of several shapes: it cannot be kept for a data set.

    Attributes:
        value: its name.
    """

    def __init__(self, message: str, *, value: str) -> None:
        super().__init__(message)
        self.value = value


class ConfigError(OnnxpqError):
    """A setting has a value that it cannot have, or settings contradict each other."""


class OutputError(OnnxpqError):
    """The result cannot be written where it was asked for."""


class NothingToCompressError(OnnxpqError):
    """The model has no layer that onnxpq can compress; the message lists the reasons per node."""


class UnsupportedOperatorError(OnnxpqError):
    """An operator has no rule in the importer; the message names it, its domain and its version."""


class ForwardMismatchError(OnnxpqError):
    """The imported network computes something else than onnxruntime; the message names the node."""


class TrainingError(OnnxpqError):
    """Fine-tuning cannot start or has diverged."""


class WorkspaceError(OnnxpqError):
    """The work folder cannot be used: another process is in it, it holds another run, or it cannot be written."""


class VerificationError(OnnxpqError):
    """The compressed model does not load, is not finite, or is no smaller than the original."""


class MissedError(OnnxpqError):
    """The result is not what it has to be.

    Attributes:
        result: what was reached instead, an `onnxpq.Result` whose model can be saved all the same; None where that was
            seen to be impossible before the work.
    """

    def __init__(self, message: str, *, result: object = None) -> None:
        super().__init__(message)
        self.result = result


class TargetError(MissedError):
    """A target is out of reach, or was missed in the end."""


class FloorError(MissedError):
    """The result has lost more of the original than what may be written (`onnxpq.verification.floor`)."""


class RuntimeLibraryError(OnnxpqError):
    """onnxruntime or the operator library is missing, too old, or refuses a model."""

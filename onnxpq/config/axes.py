"""Which axis has the samples, as users say it: ``1``, ``past_*=1,ids=0`` or ``none``."""

from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from onnxpq.errors import ConfigError

WHOLE: Final = "none"
"""No axis has samples: data are whole calls."""

_FORM: Final = f"an axis such as 1, axes of single inputs such as 'past_*=1', or '{WHOLE}' where data are whole calls"


@dataclass(frozen=True)
class BatchAxes:
    """The axes that a user named.

    Attributes:
        axis: of all arrays that have so many dimensions; None where nothing was said.
        named: globs over names of inputs, or of the labels, and the axis of what they match; the first match counts.
        whole: whether data are whole calls, so that no axis has samples.
    """

    axis: int | None = None
    named: tuple[tuple[str, int], ...] = ()
    whole: bool = False

    def of(self, name: str, rank: int) -> int | None:
        """The axis of an array, None where nothing was said of it.

        Args:
            name: of the input, or key of the labels.
            rank: number of its dimensions. Beside [T, N, C] there may be [N].
        """
        for glob, axis in self.named:
            if fnmatchcase(name, glob):
                return axis
        return self.axis if self.axis is None or self.axis < rank else 0

    def check(self, names: Iterable[str]) -> None:
        """Check that each glob matches one of the names.

        Raises:
            ConfigError: one does not.
        """
        known = list(names)
        for glob, _ in self.named:
            if not any(fnmatchcase(name, glob) for name in known):
                raise ConfigError(
                    f"The batch axis of '{glob}' was given, which matches no input: the model's inputs (and labels) "
                    f"are {', '.join(map(repr, known))}."
                )


def parse_axes(value: object) -> BatchAxes:
    """What the setting `batch_axis` says.

    Raises:
        ConfigError: it has another form.
    """
    if value is None:
        return BatchAxes()
    if value == WHOLE:
        return BatchAxes(whole=True)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _refused(value)
    axis: int | None = None
    named: list[tuple[str, int]] = []
    for part in str(value).split(","):
        name, _, number = part.strip().rpartition("=")
        if not number.strip().isdecimal():
            raise _refused(value)
        if name:
            named.append((name.strip(), int(number)))
        else:
            axis = int(number)
    return BatchAxes(axis, tuple(named))


def _refused(value: object) -> ConfigError:
    return ConfigError(f"The 'batch_axis' parameter of Config must be {_FORM}. Got {value!r} instead.")

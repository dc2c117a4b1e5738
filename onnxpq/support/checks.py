"""Checks of single settings, all with one form of sentence."""

from onnxpq.errors import ConfigError


def sentence(owner: object, name: str, wanted: str, value: object) -> str:
    """The one form of a sentence about a setting that has a value which it cannot have."""
    return f"The '{name}' parameter of {type(owner).__name__} must be {wanted}. Got {value!r} instead."


def integer(owner: object, name: str, low: int, high: int) -> None:
    """Check that a setting is an integer within bounds.

    Raises:
        ConfigError: it is not.
    """
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(sentence(owner, name, f"an integer in [{low}, {high}]", value))


def real(owner: object, name: str, low: float, high: float) -> None:
    """Check that a setting is a number within bounds.

    Raises:
        ConfigError: it is not.
    """
    value = getattr(owner, name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ConfigError(sentence(owner, name, f"a number in [{low:g}, {high:g}]", value))


def choice(owner: object, name: str, choices: tuple[str, ...]) -> None:
    """Check that a setting is one of some names.

    Raises:
        ConfigError: it is not.
    """
    value = getattr(owner, name)
    if value not in choices:
        raise ConfigError(sentence(owner, name, "one of " + ", ".join(f"'{choice}'" for choice in choices), value))

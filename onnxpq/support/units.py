"""Sizes and shares as people write them: "2MB", "1.5MiB", "0.5%"."""

import re
from typing import Final

from onnxpq.errors import ConfigError

_SIZES: Final = {"": 1, "B": 1} | {
    f"{prefix}{unit}": base**power
    for unit, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate("KMG", start=1)
}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([kKMG]?i?B?)\s*", re.ASCII)
_SHARE: Final = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(%?)\s*", re.ASCII)


def parse_size(text: str) -> int:
    """Bytes from a number with or without a unit: B, kB, MB, GB (powers of 1000), KiB, MiB, GiB (of 1024).

    Raises:
        ConfigError: it is no such number.
    """
    found = _SIZE.fullmatch(text)
    unit = found[2].replace("k", "K") if found else None
    if found is None or unit not in _SIZES:
        raise ConfigError(f"'{text}' is no size. Write bytes, or a number with a unit: 2MB, 500kB, 1.5MiB.")
    return int(float(found[1]) * _SIZES[unit])


def parse_share(text: str) -> float:
    """A share from per cent ("0.5%") or from a plain number ("0.005").

    Raises:
        ConfigError: it is neither.
    """
    found = _SHARE.fullmatch(text)
    if found is None:
        raise ConfigError(f"'{text}' is no share. Write per cent or a plain number: 0.5% or 0.005.")
    return float(found[1]) / (100 if found[2] else 1)

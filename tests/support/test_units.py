import re

import pytest

from onnxpq.errors import ConfigError
from onnxpq.support.units import parse_share, parse_size


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("123", 123),
        ("2MB", 2_000_000),
        ("500kB", 500_000),
        ("500KB", 500_000),
        ("1.5MiB", 1_572_864),
        (" .5 KiB ", 512),
        ("3B", 3),
        ("1GB", 10**9),
        ("1GiB", 2**30),
    ],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "MB", "-1", "2TB", "2 M B", "1e6", "2mb", "1iB", "two", "2M"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"'{text}' is no size. Write bytes, or a number with a unit: 2MB")):
        parse_size(text)


@pytest.mark.parametrize(("text", "expected"), [("0.5%", 0.005), ("0.005", 0.005), ("1 %", 0.01), ("0", 0.0), ("2", 2)])
def test_shares(text: str, expected: float) -> None:
    assert parse_share(text) == expected


@pytest.mark.parametrize("text", ["", "%", "-1%", "half", "0,5%", "1%%"])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"'{text}' is no share. Write per cent or a plain number")):
        parse_share(text)

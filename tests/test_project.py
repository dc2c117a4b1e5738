"""What a stranger looks for first: a license, how to contribute, how to cite, what changed."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGES = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")
MOST_COLUMNS = 120


def test_the_license_is_apache_everywhere() -> None:
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert PROJECT["license"] == "Apache-2.0"
    assert "license: Apache-2.0" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_versions_agree() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (\S+)$", citation, re.MULTILINE)[1] == PROJECT["version"]
    assert metadata.version("onnxpq") == PROJECT["version"]


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_there_and_narrow(name: str) -> None:
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert all(len(line) <= MOST_COLUMNS for line in lines)


def test_folders_and_commands_that_contributors_are_told_of_are_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    for path in (".ci/run", "docs/architecture.md", "tests/test_layering.py", "benchmarks", "LICENSE"):
        assert path in text
        assert (ROOT / path).exists()


def test_types_are_shipped() -> None:
    assert (ROOT / "onnxpq" / "py.typed").exists()

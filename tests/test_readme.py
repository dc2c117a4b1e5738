"""README's examples are run, in order and in one folder, as a reader would."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"(<!-- (?P<mark>[a-z ]+) -->\n)?```(?P<language>\w+)\n(?P<code>.*?)```", re.DOTALL)


def blocks() -> list[tuple[str | None, str, str]]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [(match["mark"], match["language"], match["code"]) for match in BLOCK.finditer(text)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reader")
    (path / "models").symlink_to(ROOT / "models")
    return path


def run(command: list[str], folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_two_commands_are_there() -> None:
    marks = {mark: code for mark, _, code in blocks() if mark}
    assert marks.keys() == {"main command", "test command"}
    assert "torch==" in marks["main command"]
    assert "pytest" in marks["test command"]


def test_command_lines(folder: Path) -> None:
    """Every line that starts with onnxpq; the main command's own is the same program with the same arguments."""
    lines = [
        line.removeprefix(".venv/bin/")
        for _, language, code in blocks()
        if language == "sh"
        for line in code.splitlines()
        if line.removeprefix(".venv/bin/").startswith("onnxpq ")
    ]
    assert len(lines) >= 4
    for line in lines:
        program, *arguments = shlex.split(line)
        # The shortest training that is one; what the default settings reach is measured in benchmarks/.
        quick = ["--epochs", "20"] if "--data" in arguments else []
        printed = run([sys.executable, "-m", program, *arguments, *quick], folder)
        assert "Wrote" in printed if "-o" in arguments else "Can be compressed" in printed


def test_python_examples(folder: Path) -> None:
    examples = [code for _, language, code in blocks() if language == "python"]
    assert len(examples) >= 2
    for example in examples:
        run([sys.executable, "-W", "error", "-c", example], folder)
    assert (folder / "small.onnx").is_file()


def test_linked_files_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / link).exists(), link

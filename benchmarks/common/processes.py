"""Scripts of this folder in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
"""The top of the repository."""


def output(
    script: str, *arguments: object, python: str | Path = sys.executable, environment: Mapping[str, str] | None = None
) -> str:
    """Run a script to its end.

    Args:
        script: its name.
        arguments: its flags.
        python: an interpreter; another one where the script needs an environment of its own.
        environment: variables that are set besides those of this process.

    Returns:
        What it printed.

    Raises:
        CalledProcessError: it ended with an error, which it has told on the standard error output.
    """
    command = [str(python), "-m", "benchmarks", script, *map(str, arguments)]
    variables = {**os.environ, **(environment or {})}
    return subprocess.run(command, cwd=ROOT, env=variables, check=True, stdout=subprocess.PIPE, text=True).stdout

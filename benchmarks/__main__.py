"""The one way to run the benchmarks: `python -m benchmarks NAME [flags]`; without a name, a list of them.

A script is a module in a folder of this one that has a function `main`; its name is that of its file. Nothing but the
standard library is loaded before the script is: some run in an environment of their own.
"""

import difflib
import importlib
import re
import sys
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent
TESTS: Final = (ROOT / "tests", ROOT / "tests" / "network" / "ops")
"""Folders with models and cases that some scripts share with the tests."""


def scripts() -> dict[str, Path]:
    """The scripts' files by name, those of a group side by side."""
    files = sorted(HERE.glob("*/*.py"))
    return {file.stem: file for file in files if re.search(r"^def main\(", _source(file), re.MULTILINE)}


def description(file: Path) -> str:
    """The first line of a module's docstring, read off its source: to load the modules takes seconds."""
    return _source(file).partition("\n")[0].strip('"')


def _source(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def listing() -> str:
    """Every script with its description, under its group's."""
    found = scripts()
    width = max(map(len, found))
    lines = ["python -m benchmarks NAME [flags]    (NAME --help tells the flags)"]
    for group in dict.fromkeys(file.parent for file in found.values()):
        lines += ["", f"{group.name}: {description(group / '__init__.py')}"]
        lines += [f"  {name:{width}}  {description(file)}" for name, file in found.items() if file.parent == group]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """See the module's description.

    Args:
        arguments: a script's name and its flags.

    Returns:
        The exit code: the script's, or 2 where there is no such script.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(listing())
        return 0
    name, *flags = arguments
    found = scripts()
    if name not in found:
        close = difflib.get_close_matches(name, found)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        print(f"There is no benchmark '{name}'.\n{hint}`python -m benchmarks` lists all.", file=sys.stderr)
        return 2
    module = importlib.import_module(f"benchmarks.{found[name].parent.name}.{name}")
    sys.argv = [f"python -m benchmarks {name}", *flags]  # argparse takes the first one for the name in its sentences
    return module.main() or 0


def arrange_path() -> None:
    """Put the repository's root, where `-m` has found this folder, last: the installed onnxpq is meant.

    The one in the root has no operator library.
    """
    if Path(sys.path[0]).resolve() == ROOT:
        sys.path.append(sys.path.pop(0))
    sys.path.extend(map(str, TESTS))


if __name__ == "__main__":
    arrange_path()
    sys.exit(main(sys.argv[1:]))

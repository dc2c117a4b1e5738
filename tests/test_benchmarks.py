"""How the benchmarks are run and how they store: every script is there by its name, and no row is ever lost."""

import importlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import __main__ as command
from benchmarks.common import machine, store
from benchmarks.common.store import Results, Times

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = command.scripts()

ENVIRONMENTS = {"make_exports_jax": "jax"}
"""Scripts that another environment is needed for, by what tells that this is not it."""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    call = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(call, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_script_has_a_main_and_a_line_that_describes_it(name, monkeypatch):
    if name in ENVIRONMENTS:
        pytest.importorskip(ENVIRONMENTS[name])
    monkeypatch.setattr(sys, "path", [*sys.path, *map(str, command.TESTS)])
    module = importlib.import_module(f"benchmarks.{SCRIPTS[name].parent.name}.{name}")
    assert callable(module.main)
    line = command.description(SCRIPTS[name])
    assert line.endswith(".")
    assert module.__doc__.splitlines()[0] == line


def test_every_group_is_described_and_no_two_scripts_have_one_name():
    files = [file for file in command.HERE.glob("*/*.py") if "\ndef main(" in file.read_text(encoding="utf-8")]
    assert len(files) == len(SCRIPTS) > 20
    for group in {file.parent for file in files}:
        assert command.description(group / "__init__.py").endswith(".")


def test_without_a_name_all_are_listed():
    done = run()
    assert done.returncode == 0, done.stderr
    for name, file in SCRIPTS.items():
        assert f"  {name} " in done.stdout
        assert command.description(file) in done.stdout
    assert "accuracy: What models lose at a size." in done.stdout.splitlines()


def test_readme_names_all():
    page = (command.HERE / "README.md").read_text(encoding="utf-8")
    assert all(f"  * `{name}" in page for name in SCRIPTS)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("acuracy", "Did you mean accuracy? `python -m benchmarks` lists all."),
        ("operator_sped", "Did you mean operator_speed or operator_memory? `python -m benchmarks` lists all."),
        ("xyzzy", "`python -m benchmarks` lists all."),
        # A module that others take things from, and no script.
        ("store", "`python -m benchmarks` lists all."),
    ],
)
def test_an_unknown_name_is_refused_with_what_is_like_it(name, advice, capsys):
    assert command.main([name, "--table"]) == 2
    assert capsys.readouterr().err.splitlines() == [f"There is no benchmark '{name}'.", advice]


def test_a_script_gets_its_flags_and_gives_its_exit_code(tmp_path):
    assert run("models", "--table").stdout.startswith("| model | layers |")
    refused = run("main_job", "--tables", str(tmp_path))
    assert refused.returncode == 2
    assert "usage: python -m benchmarks main_job [-h] [--table]" in refused.stderr
    assert run("xyzzy").returncode == 2


def test_the_installed_package_comes_first(monkeypatch):
    monkeypatch.setattr(sys, "path", [str(ROOT), "site-packages"])
    command.arrange_path()
    assert sys.path == ["site-packages", str(ROOT), *map(str, command.TESTS)]


def test_a_path_without_the_root_in_front_stays(monkeypatch):
    monkeypatch.setattr(sys, "path", ["site-packages", str(ROOT)])
    command.arrange_path()
    assert sys.path[:2] == ["site-packages", str(ROOT)]


@pytest.mark.parametrize("file", sorted(store.FOLDER.glob("*/*.json")), ids=lambda file: file.stem)
def test_what_is_stored_is_that_of_a_script_and_stays_as_it_is(file, tmp_path):
    assert Results.of(f"benchmarks.{file.parent.name}.{file.stem}").file == file
    assert SCRIPTS[file.stem].parent.name == file.parent.name
    copy = tmp_path / file.name
    Results(copy).replace(json.loads(file.read_text()))
    assert copy.read_text().strip() == file.read_text().strip()


@pytest.fixture
def results(tmp_path) -> Results:
    return Results(tmp_path / "group" / "name.json")


def test_rows_are_read_as_they_were_stored(results):
    assert results.rows() == {}
    assert results.add({"error": 0.5}, "digits", "0") == {"digits": {"0": {"error": 0.5}}}
    assert results.add([1, 2], "mnist") == {"digits": {"0": {"error": 0.5}}, "mnist": [1, 2]}
    results.add({"error": 0.25}, "digits", "1")
    results.add({"error": 0.75}, "digits", "0")
    again = Results(results.file)
    assert again.rows() == {"digits": {"0": {"error": 0.75}, "1": {"error": 0.25}}, "mnist": [1, 2]}
    again.replace([{"last": "run"}])
    assert json.loads(results.file.read_text()) == [{"last": "run"}]


def test_times_name_their_machine_and_take_those_of_no_other(tmp_path, monkeypatch):
    times = Times(tmp_path / "name.json")
    times.check()
    assert times.add({"hot": 1.5}, "256x256") == {"256x256": {"hot": 1.5}}
    assert times.rows() == {"256x256": {"hot": 1.5}}
    assert json.loads(times.file.read_text()) == {"machine": machine.facts(), "cases": times.rows()}
    monkeypatch.setattr(machine, "facts", lambda: {"processor": "another"})
    for refused in (times.check, lambda: times.add({"hot": 2.5}, "512x512")):
        with pytest.raises(SystemExit, match=r"this is .*another.*: delete it first"):
            refused()
    assert times.rows() == {"256x256": {"hot": 1.5}}


@pytest.mark.parametrize("at", ["json.dumps", "pathlib.Path.write_text", "pathlib.Path.replace"])
def test_an_interruption_loses_nothing_and_leaves_nothing(results, monkeypatch, at):
    results.add(1, "first")

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(at, stop)
        with pytest.raises(KeyboardInterrupt):
            results.add(2, "second")
    assert results.rows() == {"first": 1}
    assert {file.name for file in results.file.parent.iterdir()} == {"name.json", ".lock"}
    assert results.add(2, "second") == {"first": 1, "second": 2}


WRITER = """
import sys
from pathlib import Path
from benchmarks.common.store import Results
results = Results(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    results.add("x" * 10_000, sys.argv[2], str(number))
    print(number, flush=True)
"""


def writer(results: Results, name: str, rows: int) -> subprocess.Popen[str]:
    call = [sys.executable, "-c", WRITER, str(results.file), name, str(rows)]
    return subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("seconds", [0.02, 0.07, 0.13])
def test_a_killed_script_has_lost_no_row(results, seconds):
    with writer(results, "rows", 10**6) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        told = [0, *map(int, process.stdout.read().split())]
    stored = results.rows()["rows"]
    assert list(stored) == [str(number) for number in range(len(stored))]
    assert len(stored) >= len(told)
    results.add("on", "rows", "next")
    assert len(results.rows()["rows"]) == len(stored) + 1


def test_two_scripts_that_store_at_once_keep_each_others_rows(results):
    count = 40
    with writer(results, "a", count) as first, writer(results, "b", count) as second:
        for process in (first, second):
            process.communicate()
    assert {name: len(rows) for name, rows in results.rows().items()} == {"a": count, "b": count}


def test_the_commit_is_named_or_none():
    assert machine.commit() is None or len(machine.commit()) >= 4

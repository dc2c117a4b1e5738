"""The command line."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.paper import paper as command

ROOT = Path(__file__).resolve().parent.parent.parent


def test_help_names_the_commands_without_loading_torch():
    code = "import sys; sys.modules['torch'] = None; from benchmarks.paper import paper; paper.main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("run", "latency", "histograms", "tables"))


def test_an_interrupted_run_says_that_it_goes_on(monkeypatch, capsys):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("benchmarks.paper.running.run", stop)
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    assert command.main(["run", "--only", "mnist_mlp/original"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_rows_are_measured_again_into_a_folder_of_their_own(monkeypatch, tmp_path, capsys):
    ran = []
    monkeypatch.setattr("benchmarks.common.datasets.cache_folder", lambda: tmp_path)
    monkeypatch.setattr("benchmarks.paper.running.run", lambda store, wanted, *_, **__: ran.append((store, wanted)))
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    assert command.main(["run", "--again", "--only", "mnist_mlp/original", "mnist_mlp/pq/8/0"]) == 0
    ((store, wanted),) = ran
    assert store.folder == tmp_path / "paper_again"
    assert [str(key) for key in wanted] == ["mnist_mlp original 1x seed 0", "mnist_mlp pq 8x seed 0"]
    assert "No row was measured again." in capsys.readouterr().out


def test_rows_are_named_where_there_is_no_terminal(capsys):
    with command._progress() as progress:
        progress(0, 1, None)
    assert "0/1 done" in capsys.readouterr().err


def test_a_command_is_needed():
    with pytest.raises(SystemExit):
        command.main([])

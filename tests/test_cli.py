"""The command line: what it prints, writes and returns."""

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from model_forms import FORMS
from tiny_models import CLASSES, classes, mlp, samples, save_data, save_model

from onnxpq import cli, pipeline, rewriting, runtime
from onnxpq.errors import TrainingError
from onnxpq.graph import files
from onnxpq.quantization import encoding
from onnxpq.training import finetuning
from onnxpq.verification import proof

QUICK = ("--epochs", "2", "--batch-size", "16")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with `m.onnx`, and `d.npz` of its input and labels."""
    monkeypatch.chdir(tmp_path)
    save_model(tmp_path / "m.onnx", mlp())
    save_data(tmp_path / "d.npz", x=samples(), y=classes())
    return tmp_path


# What works


@pytest.mark.parametrize("command", [[], ["compress"], ["inspect"]])
def test_help_is_printed(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("usage: onnxpq")


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert re.fullmatch(r"onnxpq \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_help_names_the_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["compress", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "--sub-vector N weights that share one code (default: 8, without data 1)" in out
    assert "0.5% or 0.005" in out
    assert "None" not in out


def test_compress_writes_model_and_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--data", "d.npz", "--labels", "y", "--report", "r.json"]
    assert cli.main(["compress", "m.onnx", "-o", "o.onnx", *files, *QUICK, "--sub-vector", "4"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("Compressed layers\n")
    assert out.endswith("\nWrote o.onnx.\n")
    found = json.loads((folder / "r.json").read_text())
    assert found["settings"]["pq"]["sub_vector"] == 4
    assert found["settings"]["training"]["epochs"] == 2
    assert [layer["node"] for layer in found["layers"]] == ["fc1", "fc2"]
    assert found["verification"]["bytes_after"] == os.path.getsize("o.onnx") < os.path.getsize("m.onnx")
    assert found["verification"]["accuracy"]["output"] == "logits"
    assert f"{found['ratio']:.1f} times smaller" in out
    logits = runtime.run(runtime.session("o.onnx", use_library=False), {"x": samples()})["logits"]
    assert logits.shape == (60, CLASSES)


def test_compress_without_data_says_what_it_did_not_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compress", "m.onnx", "-o", "o.onnx"]) == 0
    out, _ = capsys.readouterr()
    assert "Note: No training data was given: the weights were quantized as they are, without training." in out
    assert "Note: The result was compared with the original on random inputs only, which says nothing about" in out
    assert (folder / "o.onnx").exists()


def test_an_existing_output_is_replaced(folder: Path) -> None:
    (folder / "o.onnx").write_bytes(b"old")
    assert cli.main(["compress", "m.onnx", "-o", "o.onnx"]) == 0
    assert onnx.load("o.onnx").graph.node


def test_convolutions_of_one_point_are_taken_where_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_model(folder / "conv.onnx", FORMS["Conv 1x1"].model())
    assert cli.main(["inspect", "conv.onnx"]) == 0
    assert "1 Conv (fc): It is a convolution with a kernel of one point" in capsys.readouterr().out
    assert cli.main(["inspect", "conv.onnx", "--conv1x1"]) == 0
    assert "160 x 96" in capsys.readouterr().out


def test_tables_are_taken_where_asked_for_or_where_the_file_is_to_be_small(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(folder / "table.onnx", FORMS["Gather (embedding)"].model())

    def is_taken(command: str, *flags: str) -> bool:
        assert cli.main([command, "table.onnx", *flags]) in (0, 1)
        text = "".join(capsys.readouterr())
        assert ("It is a table that is looked up" in text) != ("160 x 96" in text)
        return "160 x 96" in text

    assert not is_taken("inspect")
    assert is_taken("inspect", "--tables")
    save = ("-o", "o.onnx")
    assert not is_taken("compress", *save)
    assert is_taken("compress", *save, "--tables")
    assert is_taken("compress", *save, "--ratio", "4")
    assert not is_taken("compress", *save, "--fc-ratio", "4")
    assert not is_taken("compress", *save, "--ratio", "4", "--no-tables")
    (folder / "c.toml").write_text("tables = true\n")
    assert is_taken("inspect", "--config", "c.toml")
    assert not is_taken("inspect", "--config", "c.toml", "--no-tables")


def test_flags_win_over_the_file_of_settings(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "c.toml").write_text('min_weights = 2000\n[pq]\ncodewords = 4\nsub_vector = 2\ncodebooks = "layer"\n')
    assert cli.main(["inspect", "m.onnx", "--config", "c.toml", "--sub-vector", "4"]) == 0
    out = re.sub(" +", " ", capsys.readouterr().out)
    # 4 blocks x 16 sub-vectors x 16 bytes, one codebook of 4 x 4, scales 512
    assert f" fc1 Gemm W1 128 x 64 4 4 1 32768 {4 * 16 * 16 + 16 + 512}\n" in out
    assert " bytes in 1 Gemm (fc2): It has fewer than 2000 weights (--min-weights), and would gain too little.\n" in out


def test_codebooks_by_name_and_number(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for given, groups in (("layer", 1), ("position", 8), ("2", 2)):
        assert cli.main(["inspect", "m.onnx", "--codebooks", given, "--include", "fc1"]) == 0
        assert f"16  {groups}  32768" in capsys.readouterr().out


def test_every_flag_reaches_its_setting() -> None:
    given = {
        "--sub-vector": 3,
        "--codewords": 5,
        "--codebooks": "layer",
        "--body": "int8",
        "--loss": "mse",
        "--epochs": 6,
        "--minutes": 2.5,
        "--regularizer": "l1",
        "--alpha": 0.5,
        "--alpha-growth": 7.0,
        "--learning-rate": 0.25,
        "--batch-size": 8,
        "--rest": "float16",
        "--batch-axis": "past_*=1,0",
        "--min-weights": 9,
        "--floor": 0.25,
        "--output-name": "y",
        "--seed": 11,
    }
    targets = {"--size": ("2kB", 2000), "--max-drop": ("5%", 0.05), "--metric": ("mse", "mse")}
    targets |= {"--attempts": ("3", 3), "--max-codewords": ("16", 16)}
    assert given.keys() | {"--steps"} == {flag for flag, *_ in cli._SETTINGS}, (
        "but --steps, which is instead of --epochs"
    )
    assert {"--ratio", "--fc-ratio", *targets} == {flag for flag, *_ in cli._TARGETS}
    arguments = [text for flag, value in given.items() for text in (flag, str(value))]
    options = cli._parser().parse_args(
        [
            *("inspect", "m", *arguments, "--include", "a*", "--include", "b", "--exclude", "c"),
            *("--only", "fc", "--only", "conv", "--keep-metadata"),
        ]
    )
    settings = cli._config(options).to_dict()
    for flag, setting in ((flag, setting) for flag, setting, *_ in cli._SETTINGS if flag in given):
        table, _, name = setting.rpartition(".")
        assert (settings[table] if table else settings)[name] == given[flag], flag
    assert (settings["include"], settings["exclude"]) == (("a*", "b"), ("c",))
    assert (settings["only"], settings["keep_metadata"]) == (("fc", "conv"), True)
    chosen = [text for flag, (text, _) in targets.items() for text in (flag, text)]
    found = cli._config(cli._parser().parse_args(["compress", "m", "-o", "o", *chosen])).to_dict()["target"]
    for flag, setting, _, _ in cli._TARGETS:
        if flag in targets:
            assert found[setting.removeprefix("target.")] == targets[flag][1], flag
    for flag in ("--ratio", "--fc-ratio"):
        options = cli._parser().parse_args(["compress", "m", "-o", "o", flag, "2.5"])
        assert cli._config(options).to_dict()["target"][flag[2:].replace("-", "_")] == 2.5


# Targets


def test_a_target_is_reached_and_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", "d.npz", "--fc-ratio", "8", "--epochs", "0", "--report", "r.json"]
    assert cli.main(["compress", "m.onnx", "-o", "o.onnx", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "Target: layers at least 8 times smaller\n  reached: a file of" in out
    assert "Tried, judged on 5 validation samples, not learned from" in out
    found = json.loads((folder / "r.json").read_text())
    assert found["layer_ratio"] >= 8
    assert found["target"]["reached"]
    assert found["target"]["trials"][0]["file_bytes"] == os.path.getsize("o.onnx")
    assert len(found["target"]["expected"]) > 3
    assert found["settings"]["target"]["fc_ratio"] == 8


def missed(folder: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """A target that is missed: the metric says that every model but the original is worthless."""
    (folder / "my_missed_metric.py").write_text(
        "def score(outputs, original, labels):\n    return 1.0 if outputs is original else 0.0\n"
    )
    target = ["--data", "d.npz", "--fc-ratio", "8", "--max-drop", "50%", "--metric", "my_missed_metric:score"]
    code = cli.main(["compress", "m.onnx", "-o", "o.onnx", *target, "--epochs", "0", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_missed_target_writes_nothing_but_the_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = missed(folder, capsys, "--report", "r.json")
    assert code == 1
    assert err.startswith("onnxpq: error: Missed: layers at least 8 times smaller and my_missed_metric:score at most")
    assert out.endswith("Nothing was written; --force writes it all the same.\n")
    assert "MISSED" in out
    assert not (folder / "o.onnx").exists()
    assert not json.loads((folder / "r.json").read_text())["target"]["reached"]


def test_a_missed_target_can_be_written_all_the_same(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = missed(folder, capsys, "--force")
    assert code == 1
    assert out.endswith("Wrote o.onnx.\n")
    onnx.checker.check_model(onnx.load("o.onnx"))


def test_an_impossible_target_is_an_error_without_a_report(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compress", "m.onnx", "-o", "o.onnx", "--size", "1kB", "--force"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("onnxpq: error: Out of reach: a file of at most 1,000 bytes. With the smallest")
    assert not (folder / "o.onnx").exists()


@pytest.mark.parametrize("flag", ["--sub-vector", "--codewords", "--codebooks"])
def test_a_target_and_settings_of_all_layers_contradict_each_other(
    folder: Path, capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    # 8 is the default: it was given all the same.
    assert cli.main(["compress", "m.onnx", "-o", "o.onnx", "--ratio", "4", flag, "8"]) == 1
    expected = f"onnxpq: error: {flag} fixes for all layers what a target chooses for each. Leave out one of them"
    assert capsys.readouterr().err.startswith(expected)


def test_layer_tables_reach_inspect(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "c.toml").write_text(
        '[[layer]]\nmatch = "fc2"\nsub_vector = 2\n[[layer]]\nmatch = "fc*"\ncodewords = 4\n'
    )
    assert cli.main(["inspect", "m.onnx", "--config", "c.toml"]) == 0
    out = re.sub(" +", " ", capsys.readouterr().out)
    assert " fc1 Gemm W1 128 x 64 8 4 " in out
    assert " fc2 Gemm W2 10 x 128 2 16 " in out


# What ends before the end


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: command"),
        (["compress", "m.onnx"], "the following arguments are required: -o/--output"),
        (["compress", "m.onnx", "-o", "o.onnx", "--foo"], "unrecognized arguments: --foo"),
        (
            ["compress", "m.onnx", "-o", "o.onnx", "--codewords", "many"],
            "argument --codewords: invalid int value: 'many'",
        ),
        (["train", "m.onnx"], "invalid choice: 'train'"),
        (["compress", "m.onnx", "-o", "o.onnx", "--size", "2 apples"], "argument --size: '2 apples' is no size."),
        (
            ["compress", "m.onnx", "-o", "o.onnx", "--max-drop", "half"],
            "argument --max-drop: 'half' is no share.",
        ),
        (["compress", "m.onnx", "-o", "o.onnx", "--ratio", "many"], "argument --ratio: invalid float value: 'many'"),
    ],
)
def test_wrong_usage(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


# Each where the pipeline finds it: a room's face, or the module itself.
@pytest.mark.parametrize(
    ("module", "stage"),
    [
        (encoding, "quantize"),
        (finetuning, "finetune"),
        (rewriting, "rewrite"),
        (proof, "verify"),
        (files, "save"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, TrainingError("The loss became nan.")], ids=["interrupted", "failed"]
)
def test_stage_that_ends_early_leaves_no_file(
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    module: Any,
    stage: str,
    error: BaseException,
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(module, stage, stop)
    before = sorted(folder.rglob("*"))
    code = cli.main(["compress", "m.onnx", "-o", "o.onnx", "--data", "d.npz", *QUICK])
    _, err = capsys.readouterr()
    if error is KeyboardInterrupt:
        assert (code, err) == (130, "onnxpq: interrupted; nothing was written.\n")
    else:
        assert (code, err) == (1, "onnxpq: error: The loss became nan.\n")
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("name", ["torch", "rich"])
def test_missing_extra_is_named(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def lacking(*_: object, **__: object) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(pipeline, "compress", lacking)
    assert cli.main(["compress", "m.onnx", "-o", "o.onnx"]) == 1
    expected = f'onnxpq: error: compressing needs {name}: pip install "onnxpq[compress]".\n'
    assert capsys.readouterr().err == expected


def test_other_missing_modules_are_a_defect(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object, **__: object) -> None:
        raise ModuleNotFoundError("No module named 'foo'", name="foo")

    monkeypatch.setattr(pipeline, "compress", lacking)
    with pytest.raises(ModuleNotFoundError, match="foo"):
        cli.main(["compress", "m.onnx", "-o", "o.onnx"])


# Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_bars_on_a_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", Terminal())
    assert cli.main(["compress", "m.onnx", "-o", "o.onnx", "--data", "d.npz", *QUICK]) == 0
    shown = sys.stderr.getvalue()
    for stage in ("clustering", "caching", "training", "verification"):
        assert stage in shown
    assert "100%" in shown


def test_no_progress_bars_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with cli._progress() as progress:
        assert progress is None


# As a program


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onnxpq", *arguments], capture_output=True, text=True, check=False, timeout=120
    )


def test_program_refuses_with_a_sentence_and_no_traceback(folder: Path) -> None:
    (folder / "bad.onnx").write_bytes(b"hello")
    found = program("compress", "bad.onnx", "-o", "o.onnx", "--data", "d.npz")
    expected = "onnxpq: error: 'bad.onnx' is not an ONNX model: 5 bytes that are no protobuf of one.\n"
    assert (found.returncode, found.stdout, found.stderr) == (1, "", expected)
    assert not (folder / "o.onnx").exists()


def test_program_writes_a_model(folder: Path) -> None:
    found = program("compress", "m.onnx", "-o", "o.onnx", "--data", "d.npz", "--labels", "y", *QUICK)
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.endswith("Wrote o.onnx.\n")
    assert (folder / "o.onnx").exists()


def test_program_ends_quietly_when_nobody_reads_on(folder: Path) -> None:
    # A reader that closes its end at once; what is printed is shorter than Python's buffer, so it fails at the end.
    reading, writing = os.pipe()
    os.close(reading)
    found = subprocess.run(
        [sys.executable, "-m", "onnxpq", "inspect", "m.onnx"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=120,
    )
    os.close(writing)
    assert (found.returncode, found.stderr) == (141, "")
